"""Processes that tests start: forked from a server that has imported what takes seconds, torch above all."""

import multiprocessing

# The last two are imported by the first optimiser and by the data set `digits`.
PRELOADED = ["torch", "wmse.run", "wmse.training", "torch._dynamo", "sklearn.datasets"]


def warm():
    """The context of `multiprocessing` whose processes start warm; one server lasts for the whole session."""
    multiprocessing.set_forkserver_preload(PRELOADED)
    return multiprocessing.get_context("forkserver")
