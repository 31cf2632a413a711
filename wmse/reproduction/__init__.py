"""The paper's figures, and tables, claims, ablations and the queue of runs, computed from records."""
