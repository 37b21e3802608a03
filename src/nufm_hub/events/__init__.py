"""Events: the one type that every reader and simulation makes and everything downstream takes."""

from .event import PARTICLE_FIELDS, PROVENANCE_FIELDS, TRUTH_FIELDS, Event, Voxels
from .parquet import event_features, event_from_row, event_to_row, read_detector, read_events, write_events
from .streaming import EventDataset, StreamingEvents, list_shards

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
    "list_shards",
    "read_detector",
    "read_events",
    "write_events",
]
