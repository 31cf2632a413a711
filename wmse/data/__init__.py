"""Image sets: in memory or streamed from files, with their labels and the statistics that normalise them."""

from wmse.data.sets import OWN_PROBE, SETS, SPLITS, STATISTICS, ImageSet, load, view_batches
from wmse.data.streaming import StreamedSet, stream_views

__all__ = [
    "OWN_PROBE",
    "SETS",
    "SPLITS",
    "STATISTICS",
    "ImageSet",
    "StreamedSet",
    "load",
    "stream_views",
    "view_batches",
]
