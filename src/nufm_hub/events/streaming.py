"""Training from parquet shards without holding the data set in memory: `EventDataset` (random access) and `StreamingEvents` (one pass)."""

from __future__ import annotations

import glob
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info
from tqdm import tqdm

from nufm_hub.detectors import DetectorSpec, load_detector

from .arrow_copy import arrow_copy, mapped
from .event import Event
from .parquet import EventBatch, _open, event_features

# Files kept open by one reader: an epoch visits row groups in random order, and a footer costs more to parse than a group to find.
_OPEN_FILES = 16


def list_shards(paths: str | Path | Sequence[str | Path]) -> list[str]:
    """Parquet files of a file, a folder (searched recursively), a glob pattern, or a list of these; each file once, in order.

    Raises:
        ValueError: a path matches no parquet file.
    """
    paths = [paths] if isinstance(paths, (str, Path)) else list(paths)
    if not paths:
        raise ValueError("no parquet files were given")
    shards: dict[str, None] = {}
    for path in paths:
        if Path(path).is_dir():
            found = sorted(str(p) for p in Path(path).rglob("*.parquet") if not p.name.startswith("."))
        elif Path(path).is_file():
            found = [str(path)]
        else:
            found = sorted(glob.glob(str(path), recursive=True))
        if not found:
            raise ValueError(f"{path} matches no parquet file: give a file, a folder that holds *.parquet, or a glob pattern")
        shards.update(dict.fromkeys(found))
    return list(shards)


class _Shards:
    """Files of one detector: how many events and row groups each holds."""

    def __init__(self, paths: str | Path | Sequence[str | Path], detector: str | Path | DetectorSpec | None) -> None:
        self.files = list_shards(paths)
        self.spec = load_detector(detector) if detector is not None else None
        self.groups: list[tuple[str, int, int]] = []  # file, row group, its number of events
        for path in self.files:
            file, spec = _open(path)
            with file:
                rows = [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
            if self.spec is None:
                self.spec = spec
            elif spec.hash != self.spec.hash:
                raise ValueError(
                    f"{path} holds events of detector {spec.name!r} (hash {spec.hash}), not of {self.spec.name!r} (hash {self.spec.hash}): "
                    "read one detector at a time"
                )
            self.groups += [(path, g, n) for g, n in enumerate(rows)]
        self.features = event_features(self.spec)

    @property
    def num_events(self) -> int:
        return sum(n for _, _, n in self.groups)

    def events_of_files(self) -> dict[str, int]:
        """Number of events of each file."""
        counts = dict.fromkeys(self.files, 0)
        for path, _, number in self.groups:
            counts[path] += number
        return counts

    def decode(self, table: pa.Table, features: Mapping[str, Any] | None = None) -> list[EventBatch]:
        """The events of a table; all columns, or those of `features`."""
        return [EventBatch(batch, self.spec, self.features if features is None else features) for batch in table.to_batches()]


class EventDataset(Dataset):
    """Events of parquet shards by position, for samplers that visit them in any order.

    The shards are converted once to uncompressed Arrow files beside the cache of `datasets` (about 60 bytes a voxel on disk), which are mapped
    into memory: reading an event takes a fraction of a millisecond and touches that event alone, and worker processes share the
    pages. Use `StreamingEvents` where that copy does not fit. A copy belongs to the content of a shard, see `arrow_copy`.

    Args:
        paths: file, folder, glob pattern, or a list of these.
        detector: detector the events must belong to; that of the first file when None.
        cache_dir: folder for the Arrow files; `HF_DATASETS_CACHE` when None.
        voxel_truth: False leaves out labels and instances of voxels, two thirds of the bytes of a labelled event.

    Raises:
        ValueError: no file, a damaged file, or events of another detector.
    """

    def __init__(
        self,
        paths: str | Path | Sequence[str | Path],
        detector: str | Path | DetectorSpec | None = None,
        cache_dir: str | Path | None = None,
        voxel_truth: bool = True,
    ) -> None:
        self._shards = _Shards(paths, detector)
        self._features = event_features(self._shards.spec, voxel_truth)
        counts = self._shards.events_of_files()
        shown = tqdm(counts.items(), "decode", unit="shard", disable=len(counts) < 2, leave=False)
        self._copies = [arrow_copy(path, events, cache_dir) for path, events in shown]

    @property
    def spec(self) -> DetectorSpec:
        """The detector of the events."""
        return self._shards.spec

    @property
    def files(self) -> list[str]:
        """The parquet files, in order."""
        return self._shards.files

    @property
    def nbytes(self) -> int:
        """Bytes of all events, uncompressed."""
        return sum(table.nbytes for table in self._tables)

    def __len__(self) -> int:
        return self._shards.num_events

    def __getitem__(self, index: int) -> Event:
        position = int(index)
        if not -len(self) <= position < len(self):
            raise IndexError(f"event {position} of {len(self)}")
        position %= len(self)
        batch = bisect_right(self._first, position) - 1
        return self._batches[batch][position - self._first[batch]]

    @cached_property
    def _first(self) -> list[int]:
        """Position of the first event of each batch."""
        return list(accumulate((len(batch) for batch in self._batches[:-1]), initial=0))

    @cached_property
    def _batches(self) -> list[EventBatch]:
        return [batch for table in self._tables for batch in self._shards.decode(table, self._features)]

    @cached_property
    def _tables(self) -> list[pa.Table]:
        return [mapped(copy) for copy in self._copies]

    def __getstate__(self) -> dict[str, Any]:
        # A worker maps the files itself; pickling the views would copy the data.
        return {k: v for k, v in self.__dict__.items() if k not in ("_first", "_batches", "_tables")}

    def __getitems__(self, indices: Sequence[int]) -> list[Event]:
        return [self[i] for i in indices]


class StreamingEvents(IterableDataset):
    """Events of parquet shards in shuffled order, in one pass over the files and bounded memory.

    Row groups are visited in an order that depends on `seed` and epoch only, and shared out among ranks and DataLoader
    workers, so that each event is seen exactly once an epoch; within a worker a buffer mixes the events of several groups.
    `datasets` can stream the same files, but its shuffle buffer turns every array into Python lists.

    Args:
        paths: file, folder, glob pattern, or a list of these.
        shuffle_buffer: events held for mixing; 0 keeps the order of the files. Memory is about this many events.
        seed: seed of the order.
        detector: detector the events must belong to; that of the first file when None.
        rank, world_size: the share of this process. Leave them at 0 and 1 under `transformers.Trainer` and `accelerate`, which
            share the batches out themselves.

    Raises:
        ValueError: no file, a damaged file, events of another detector, or fewer row groups than readers.
    """

    def __init__(
        self,
        paths: str | Path | Sequence[str | Path],
        shuffle_buffer: int = 256,
        seed: int = 0,
        detector: str | Path | DetectorSpec | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if shuffle_buffer < 0 or not 0 <= rank < world_size:
            raise ValueError(f"need shuffle_buffer >= 0 and 0 <= rank < world_size, got {shuffle_buffer}, {rank}, {world_size}")
        self._shards = _Shards(paths, detector)
        self.shuffle_buffer, self.seed, self.rank, self.world_size = shuffle_buffer, seed, rank, world_size
        # In shared memory, so that set_epoch also reaches workers that outlive an epoch (persistent_workers=True).
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    @property
    def spec(self) -> DetectorSpec:
        """The detector of the events."""
        return self._shards.spec

    @property
    def num_events(self) -> int:
        """Events of all ranks and workers together."""
        return self._shards.num_events

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next pass; training loops call this once an epoch."""
        self._epoch.fill_(epoch)

    def __iter__(self) -> Iterator[Event]:
        worker = get_worker_info()
        workers, worker_id = (worker.num_workers, worker.id) if worker else (1, 0)
        reader, readers = self.rank * workers + worker_id, self.world_size * workers
        if len(self._shards.groups) < readers:
            raise ValueError(
                f"{len(self._shards.groups)} row groups cannot be shared out among {readers} readers ({self.world_size} ranks x {workers} workers): "
                "use fewer workers or more events"
            )
        epoch = int(self._epoch)
        groups = range(len(self._shards.groups))
        if self.shuffle_buffer:
            groups = np.random.default_rng([self.seed, epoch]).permutation(len(groups))
        events = self._read(groups[reader::readers])
        if self.shuffle_buffer:
            return _shuffled(events, self.shuffle_buffer, np.random.default_rng([self.seed, epoch, reader, readers]))
        return events

    def _read(self, groups: Sequence[int]) -> Iterator[Event]:
        opened = lru_cache(_OPEN_FILES)(pq.ParquetFile)
        for g in groups:
            path, group, _ = self._shards.groups[g]
            try:
                table = opened(path).read_row_group(group, use_threads=False)
            except (OSError, pa.ArrowInvalid) as error:
                raise ValueError(f"{path}: row group {group} cannot be read (the file is damaged or has changed): {error}") from error
            for batch in self._shards.decode(table):
                yield from batch


def _shuffled(events: Iterator[Event], size: int, rng: np.random.Generator) -> Iterator[Event]:
    """Yield a random one of `size` held events for each that comes in, then the rest in random order."""
    held: list[Event] = []
    for event in events:
        if len(held) < size:
            held.append(event)
            continue
        i = int(rng.integers(size))
        yield held[i]
        held[i] = event
    for i in rng.permutation(len(held)):
        yield held[i]
