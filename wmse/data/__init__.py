"""Data sets: images in memory or streamed from files, their labels, and random views of their batches."""

from wmse.data.own import load_own
from wmse.data.sets import (
    OWN_PROBE,
    SETS,
    SPLITS,
    STATISTICS,
    Images,
    ImageSet,
    load,
    load_validation,
    stratified_subset,
    view_batches,
)
from wmse.data.streaming import StreamedSet, stream_views

__all__ = [
    "OWN_PROBE",
    "SETS",
    "SPLITS",
    "STATISTICS",
    "ImageSet",
    "Images",
    "StreamedSet",
    "load",
    "load_own",
    "load_validation",
    "stratified_subset",
    "stream_views",
    "view_batches",
]
