"""Events on disk: one parquet row an event, readable by `datasets` as it is, with the detector in the file's metadata.

Variable-length arrays are `datasets.Array2D((None, k))` columns: reading one is some thirty times faster than lists of lists.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Array2D, Features, Value
from datasets.arrow_writer import OptimizedTypedSequence

from nufm_hub.detectors import DetectorSpec
from nufm_hub.files import new_file

from .event import PARTICLE_FIELDS, PROVENANCE_FIELDS, TRUTH_FIELDS, Event, Field, Voxels

SCHEMA_VERSION = 1
_METADATA_KEY = b"nufm"
# Events of a row group: small enough that reading one event of a large file stays cheap in memory.
ROW_GROUP = 16


def event_features(spec: DetectorSpec, voxel_truth: bool = True) -> Features:
    """The `datasets.Features` of a detector's events; without `voxel_truth`, of all but labels and instances of voxels."""
    columns: dict[str, Any] = {"detector": Value("string")}
    for b in spec.voxel_branches:
        columns[f"{b.name}.coordinates"] = Array2D((None, 3), "int16")
        columns[f"{b.name}.values"] = Array2D((None, len(b.channels)), "float32")
        for label in b.labels if voxel_truth else ():
            columns[f"{b.name}.label.{label.name}"] = Array2D((None, len(label.classes)), "float32")
        for name in b.instances if voxel_truth else ():
            columns[f"{b.name}.instance.{name}"] = Array2D((None, 1), "int32")
        columns[f"{b.name}.voxel_of_hit"] = Array2D((None, 1), "int32")
    for b in spec.image_branches:
        columns[f"{b.name}.image"] = Array2D((None, b.size), "float32")
    for b in spec.track_branches:
        columns[f"{b.name}.tracks"] = Array2D((None, len(b.features)), "float32")
    for name in spec.event_labels:
        columns[f"truth.{name}"] = Value("int32")
    for name, f in TRUTH_FIELDS.items():
        columns[f"truth.{name}"] = Array2D((None, *f.shape), f.dtype) if f.shape else Value(f.dtype)
    for name, f in PARTICLE_FIELDS.items():
        columns[f"particles.{name}"] = Array2D((None, *(f.shape or (1,))), f.dtype)
    for name, kind in PROVENANCE_FIELDS.items():
        columns[f"provenance.{name}"] = Value("string" if kind is str else "int64")
    return Features(columns)


def event_to_row(event: Event, spec: DetectorSpec) -> dict[str, Any]:
    """A row for `event_features(spec)`; what the event does not have is None."""
    row: dict[str, Any] = dict.fromkeys(event_features(spec))
    row["detector"] = event.detector
    for name, v in event.voxels.items():
        row[f"{name}.coordinates"] = v.coordinates
        row[f"{name}.values"] = v.values
        row.update({f"{name}.label.{k}": a for k, a in v.labels.items()})
        row.update({f"{name}.instance.{k}": a[:, None] for k, a in v.instances.items()})
        if v.voxel_of_hit is not None:
            row[f"{name}.voxel_of_hit"] = v.voxel_of_hit[:, None]
    for name, image in event.images.items():
        row[f"{name}.image"] = np.asarray(image, dtype=np.float32).reshape(1, -1)
    for name, tracks in event.tracks.items():
        row[f"{name}.tracks"] = np.asarray(tracks, dtype=np.float32)
    for name, value in event.truth.items():
        field = TRUTH_FIELDS.get(name, Field("int32"))
        array = np.asarray(value, dtype=field.dtype)
        row[f"truth.{name}"] = array[None] if field.shape else array.item()
    for name, value in event.particles.items():
        field = PARTICLE_FIELDS[name]
        row[f"particles.{name}"] = np.asarray(value, dtype=field.dtype).reshape(-1, *(field.shape or (1,)))
    for name, value in event.provenance.items():
        row[f"provenance.{name}"] = value
    return row


def event_from_row(row: Mapping[str, Any], spec: DetectorSpec) -> Event:
    """The event of a row of a `datasets.Dataset` (any format) or of a parquet table."""

    def array(column: str, dtype: str) -> np.ndarray | None:
        value = row.get(column)
        return None if _is_null(value) else np.asarray(value, dtype=dtype)

    event = Event(detector=str(row["detector"]))
    for b in spec.voxel_branches:
        coordinates = array(f"{b.name}.coordinates", "int16")
        if coordinates is None:
            continue
        labels = {x.name: array(f"{b.name}.label.{x.name}", "float32") for x in b.labels}
        instances = {x: array(f"{b.name}.instance.{x}", "int32") for x in b.instances}
        hits = array(f"{b.name}.voxel_of_hit", "int32")
        event.voxels[b.name] = Voxels(
            coordinates,
            array(f"{b.name}.values", "float32").reshape(-1, len(b.channels)),
            {x.name: v.reshape(-1, len(x.classes)) for x in b.labels if (v := labels[x.name]) is not None},
            {k: v.ravel() for k, v in instances.items() if v is not None},
            None if hits is None else hits.ravel(),
        )
    for b in spec.image_branches:
        if (image := array(f"{b.name}.image", "float32")) is not None:
            event.images[b.name] = image.reshape(b.shape)
    for b in spec.track_branches:
        if (tracks := array(f"{b.name}.tracks", "float32")) is not None:
            event.tracks[b.name] = tracks.reshape(-1, len(b.features))
    for name in [*spec.event_labels, *TRUTH_FIELDS]:
        field = TRUTH_FIELDS.get(name, Field("int32"))
        if (value := array(f"truth.{name}", field.dtype)) is not None:
            event.truth[name] = value.reshape(field.shape) if field.shape else value.item()
    for name, field in PARTICLE_FIELDS.items():
        if (value := array(f"particles.{name}", field.dtype)) is not None:
            event.particles[name] = value.reshape(-1, *field.shape)
    for name, kind in PROVENANCE_FIELDS.items():
        if not _is_null(value := row.get(f"provenance.{name}")):
            event.provenance[name] = kind(value)
    return event


def _is_null(value: Any) -> bool:
    # The numpy and torch formats of datasets turn a null into a NaN scalar.
    return value is None or (isinstance(value, (float, np.floating)) and math.isnan(value))


def _arrow_schema(spec: DetectorSpec) -> pa.Schema:
    schema = event_features(spec).arrow_schema
    ours = json.dumps({"schema_version": SCHEMA_VERSION, "detector": spec.to_dict()}, sort_keys=True)
    return schema.with_metadata({**(schema.metadata or {}), _METADATA_KEY: ours.encode()})


def write_events(events: Iterable[Event], path: str | Path, detector: DetectorSpec) -> int:
    """Stream events to a new parquet file and return how many there were.

    The file appears under its name only when it is complete. Every event is validated first.

    Raises:
        FileExistsError: `path` exists; nothing is overwritten.
        ValueError: an event does not fit the detector.
    """
    features, count, rows = event_features(detector), 0, []
    with (
        new_file(path) as temporary,
        pq.ParquetWriter(temporary, _arrow_schema(detector), compression="zstd", compression_level=9) as writer,
    ):
        for event in events:
            event.validate(detector)
            rows.append(event_to_row(event, detector))
            count += 1
            if len(rows) == ROW_GROUP:
                writer.write_table(_table(rows, features, detector))
                rows = []
        if rows:
            writer.write_table(_table(rows, features, detector))
    return count


def _table(rows: list[dict[str, Any]], features: Features, spec: DetectorSpec) -> pa.Table:
    columns = [pa.array(OptimizedTypedSequence([row[name] for row in rows], type=feature)) for name, feature in features.items()]
    return pa.Table.from_arrays(columns, schema=_arrow_schema(spec))


def _open(path: str | Path) -> tuple[pq.ParquetFile, DetectorSpec]:
    try:
        file = pq.ParquetFile(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise ValueError(f"{path} is not a readable parquet file (truncated, or of another format): {error}") from error
    held = (file.schema_arrow.metadata or {}).get(_METADATA_KEY)
    if held is None:
        file.close()
        raise ValueError(f"{path} holds no nufm events: its metadata lacks the detector. Write it with nufm_hub.events.write_events")
    data = json.loads(held)
    if data["schema_version"] != SCHEMA_VERSION:
        file.close()
        raise ValueError(f"{path} has event schema version {data['schema_version']}; this package reads {SCHEMA_VERSION}")
    return file, DetectorSpec.from_dict(data["detector"])


def read_detector(path: str | Path) -> DetectorSpec:
    """The detector that the events of a parquet file were written for."""
    file, spec = _open(path)
    file.close()
    return spec


def read_events(path: str | Path) -> Iterator[Event]:
    """Stream the events of a parquet file, one row group in memory at a time.

    Raises:
        ValueError: the file is truncated, of another format, or of another schema version.
    """
    file, spec = _open(path)
    features = event_features(spec)
    with file:
        for group in range(file.num_row_groups):
            try:
                # Arrow's own threads may drop the Python extension types of datasets while the interpreter ends, which aborts it.
                table = file.read_row_group(group, use_threads=False)
            except (OSError, pa.ArrowInvalid) as error:
                raise ValueError(f"{path}: row group {group} cannot be read (the file is damaged): {error}") from error
            for batch in table.to_batches():
                yield from EventBatch(batch, spec, features)


class EventBatch(Sequence[Event]):
    """The events of an Arrow batch, made when they are asked for, with arrays of their own: of a batch that is mapped from a file, only what
    belongs to an event is read.

    Args:
        batch: rows as `write_events` makes them.
        spec: their detector.
        features: the columns to read, of `event_features`.
    """

    def __init__(self, batch: pa.RecordBatch, spec: DetectorSpec, features: Mapping[str, Any]) -> None:
        self._batch, self._spec, self._features = batch, spec, features

    def __len__(self) -> int:
        return self._batch.num_rows

    def __getitem__(self, index: int) -> Event:  # type: ignore[override]
        if not 0 <= index < len(self):
            raise IndexError(f"event {index} of {len(self)}")
        return event_from_row({name: cells[index] for name, cells in self._columns.items()}, self._spec)

    @cached_property
    def _columns(self) -> dict[str, Sequence[Any]]:
        return {name: _column(self._batch.column(name), feature, name) for name, feature in self._features.items()}


class _Arrays(Sequence[np.ndarray | None]):
    """Cells (N, width) of an `Array2D` column as copies out of the memory of Arrow; None where null.

    The offsets of the rows of a cell are half of the bytes of an event, and say no more than that rows have the same width: they are not read.
    """

    def __init__(self, column: pa.Array, width: int, name: str) -> None:
        cells = column.storage if isinstance(column, pa.ExtensionArray) else column
        rows, edges = cells.values, cells.offsets.to_numpy().astype(np.int64)
        first, last = (rows.offsets[int(edge)].as_py() for edge in edges[[0, -1]])
        if last - first != (edges[-1] - edges[0]) * width:
            raise ValueError(f"column {name!r} holds rows that are not {width} wide: the file was not written by nufm_hub.events.write_events")
        self._flat, self._width = rows.values.to_numpy(zero_copy_only=False), width
        self._edges, self._valid = (first + (edges - edges[0]) * width).tolist(), cells.is_valid().to_pylist()

    def __len__(self) -> int:
        return len(self._valid)

    def __getitem__(self, index: int) -> np.ndarray | None:  # type: ignore[override]
        if not self._valid[index]:
            return None
        return self._flat[self._edges[index] : self._edges[index + 1]].reshape(-1, self._width).copy()


def _column(column: pa.Array, feature: Any, name: str) -> Sequence[Any]:
    """Cells as numpy arrays or scalars, None where null."""
    return _Arrays(column, feature.shape[1], name) if isinstance(feature, Array2D) else column.to_pylist()
