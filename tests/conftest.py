"""For `pytest -n`: each of its processes, and each that a test starts, computes with one thread.

Two processes of two threads each would wait for each other on two cores. Set before torch is imported.
"""

import os

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_addoption(parser):
    parser.addoption("--kills", type=int, default=10, help="how often test_kills.py kills its run")
