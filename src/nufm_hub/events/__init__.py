"""Events: the one type that every reader and simulation makes and everything downstream takes."""

from typing import TYPE_CHECKING

from nufm_hub.lazy import lazy_names

from .event import PARTICLE_FIELDS, PROVENANCE_FIELDS, TRUTH_FIELDS, Event, Voxels

if TYPE_CHECKING:
    from .parquet import event_features, event_from_row, event_to_row, read_detector, read_events, write_events
    from .start import geometric_vertex
    from .streaming import EventDataset, StreamingEvents, list_shards
    from .summary import summary_features, summary_sources

__all__ = [
    "PARTICLE_FIELDS",
    "PROVENANCE_FIELDS",
    "TRUTH_FIELDS",
    "Event",
    "EventDataset",
    "StreamingEvents",
    "Voxels",
    "event_features",
    "event_from_row",
    "event_to_row",
    "geometric_vertex",
    "list_shards",
    "read_detector",
    "read_events",
    "summary_features",
    "summary_sources",
    "write_events",
]

# What reads and writes files needs pyarrow, datasets and torch: seconds that an Event alone does not cost.
__getattr__ = lazy_names(
    __name__,
    {
        **dict.fromkeys(("event_features", "event_from_row", "event_to_row", "read_detector", "read_events", "write_events"), "parquet"),
        **dict.fromkeys(("EventDataset", "StreamingEvents", "list_shards"), "streaming"),
        "geometric_vertex": "start",
        **dict.fromkeys(("summary_features", "summary_sources"), "summary"),
    },
)
