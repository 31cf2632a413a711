"""Whitening for self-supervised learning: W-MSE (Ermolov et al., ICML 2021), taught and reproduced.

First comes the paper, then what a run is made of, then what is measured and where it runs, then what is kept
and shown. A module imports only from the floors below it, as tests/test_imports.py says.

    whitening     `whiten`: the whitening transform, its factorisations and its gradient
    losses        `w_mse_loss`, and the losses that the paper and later work compare it with
    minimal       W-MSE from images to k-NN on one page, with torch and torchvision alone

    data/         image sets in memory and streamed from files, and their downloads
    views         random augmented views of a batch of images
    networks      encoder, projector, BYOL's target
    objectives    from a recipe to its loss
    recipes       every run of the book as a named set of choices: "cifar10/w-mse-4"
    run           the networks, optimiser and generators of one run; its steps, epochs and checkpoints
    checkpoints   what lets a run go on after an interruption, in a folder that it owns
    training      `train` a recipe from start to record, `evaluate_run` a saved one
    distributed   several processes, started by torchrun, as one run

    evaluation    k-NN, linear probes and all measures of a trained run
    metrics       effective rank, shared dimensions, alignment, uniformity
    numerics      precision: float32 inside autocast; deferred checks, which do not make the host wait; sizes
    machine       threads, memory, files, what people type; the hardware and code that a record describes

    records       record.json, metrics.csv: one run, one folder
    figures       the style and the plots that chapters share
    reproduction/ published figures, tables, claims, ablations and the queue of runs
    __main__      python -m wmse train | evaluate | table | queue
"""

from importlib import import_module

__version__ = "0.1.0"

_EXPORTS = {"whiten": "whitening", "SingularCovarianceError": "whitening", "w_mse_loss": "losses"}
_EXPORTS |= {"WMSELoss": "objectives", "load_encoder": "run"}
__all__ = ["SingularCovarianceError", "WMSELoss", "load_encoder", "w_mse_loss", "whiten"]


def __getattr__(name: str) -> object:
    """Import an export on first use (PEP 562), so that `import wmse` does not load torch."""
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"wmse.{_EXPORTS[name]}"), name)
