"""Energy deposits of edep-sim in the HDF5 layout of larnd-sim: a table `segments` with one row a straight step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from nufm_hub.detectors import DetectorSpec, load_detector

from ..event import Event
from ..voxelise import merge_voxels, split_segments
from .common import PARTICLE_CLASSES, Format, Hdf5EventFile, OnBad, label_classes, one_hot, particle_class, read_format, to_classes

_UNITS = {"mm": 1.0, "cm": 10.0}
# Spellings in use, the first that a file has counts.
_EVENT, _TRACK, _PDG = ("event_id", "eventID"), ("traj_id", "track_id", "trackID"), ("pdg_id", "pdgId")
_COORDINATES = ("x_start", "y_start", "z_start", "x_end", "y_end", "z_end")
_ROWS_AT_ONCE = 100_000


def read_edepsim(
    source: str | Path | Sequence[str | Path],
    detector: str | Path | DetectorSpec,
    length_unit: str,
    offset: Sequence[float] = (0.0, 0.0, 0.0),
    on_bad: OnBad | None = None,
) -> Iterator[Event]:
    """Events of edep-sim segments, voxelised onto the first voxel branch of any detector.

    Each segment is cut at the faces of the voxels and its energy shared by length; pieces outside every voxel are dropped. The
    voxel label `particle` (energy shares by PDG code) and the instance `particle` (track id of the largest deposit) are filled
    where the detector declares them; the particle table lists track ids and PDG codes. `provenance["index"]` is the event id.

    Args:
        source: a `.h5` file, a folder of them, or a list of these.
        detector: the detector to voxelise onto.
        length_unit: unit of the positions in the file, `"mm"` or `"cm"`; both are in use.
        offset: mm added to the positions, to go from the frame of the file to that of the detector.
        on_bad: called with the error of an unreadable file or event, which is then skipped; None raises it.

    Raises:
        ValueError: names file, event, dataset and what is wrong; also when an event has no deposit inside the detector.
    """
    return read_format(EDEPSIM, source, load_detector(detector), on_bad, length_unit=length_unit, offset=offset)


class _SegmentsFile(Hdf5EventFile):
    def __init__(self, path: Path, name: str, spec: DetectorSpec, length_unit: str, offset: Sequence[float] = (0.0, 0.0, 0.0)) -> None:
        self._scale, self._offset = _UNITS[length_unit], np.asarray(offset, dtype=np.float64)
        super().__init__(path, name, spec)

    def _count(self) -> int:
        held = self._file.dataset("segments", ("dE", *_COORDINATES)).dtype.names
        self._event_field, self._track_field, self._pdg_field = (_first(held, names) for names in (_EVENT, _TRACK, _PDG))
        self._events = self._find_events()
        return len(self._events)

    def _find_events(self) -> list[tuple[int, int, int]]:
        """(event id, first row, end row) of each event; rows of an event must follow each other."""
        events: list[tuple[int, int, int]] = []
        table = self._file.dataset("segments")
        for start in range(0, len(table), _ROWS_AT_ONCE):
            ids = self._file.rows("segments", slice(start, start + _ROWS_AT_ONCE))[self._event_field].astype(np.int64)
            edges = np.flatnonzero(np.diff(ids)) + 1
            for a, b in zip(np.append(0, edges), np.append(edges, len(ids))):
                if events and events[-1][0] == ids[a]:
                    events[-1] = (events[-1][0], events[-1][1], start + int(b))
                else:
                    events.append((int(ids[a]), start + int(a), start + int(b)))
        if len({event for event, _, _ in events}) < len(events):
            raise ValueError(f"dataset 'segments': rows of an event are apart; sort the table by {self._event_field!r}")
        return events

    def event(self, index: int) -> Event:
        number, first, end = self._events[index]
        table = self._file.rows("segments", slice(first, end))
        points = np.stack([table[c] for c in _COORDINATES], axis=1).astype(np.float64)
        energy = table["dE"].astype(np.float64)
        if not (np.isfinite(points).all() and np.isfinite(energy).all()):
            row = first + int(np.flatnonzero(~(np.isfinite(points).all(axis=1) & np.isfinite(energy)))[0])
            raise ValueError(f"dataset 'segments', row {row} (event id {number}): not finite")
        points = points * self._scale + np.tile(self._offset, 2)
        positions, segment, share = split_segments(points[:, :3], points[:, 3:], self._branch)
        coordinates, inside = self._branch.to_voxel(positions)
        if not inside.any():
            raise ValueError(
                f"dataset 'segments' (event id {number}): none of {len(table)} segments, spanning {points.min(axis=0)[:3].tolist()} to "
                f"{points.max(axis=0)[3:].tolist()} mm, is inside the detector {self._branch.bounds.tolist()} mm; check length_unit and offset"
            )
        segment = segment[inside]
        track, pdg = table[self._track_field].astype(np.int64), table[self._pdg_field].astype(np.int64)
        labels = {}
        if classes := label_classes(self._branch, "particle"):
            labels["particle"] = one_hot(to_classes(particle_class(pdg), PARTICLE_CLASSES, classes), len(classes))[segment]
        instances = {"particle": track[segment]} if "particle" in self._branch.instances else {}
        voxels = merge_voxels(coordinates[inside], energy[segment] * share[inside], self._branch, labels, instances)
        voxels.voxel_of_hit = None  # pieces of segments are nobody's hits
        ids, row = np.unique(track, return_index=True)
        return Event(
            self._spec.name,
            {self._branch.name: voxels},
            particles={"id": ids.astype(np.int32), "pdg": pdg[row].astype(np.int32)},
            provenance={"generator": "edep-sim", "index": number},
        )


def _first(held: Sequence[str], names: Sequence[str]) -> str:
    for name in names:
        if name in held:
            return name
    raise ValueError(f"dataset 'segments' has none of the fields {list(names)}; it has {list(held)}")


def _check(length_unit: str | None = None, offset: Sequence[float] = (0.0, 0.0, 0.0)) -> None:
    if length_unit not in _UNITS:
        raise ValueError(f"length_unit {length_unit!r} is not one of {sorted(_UNITS)}: say in which unit the positions of the file are")
    if len(offset) != 3 or not np.isfinite(offset).all():
        raise ValueError(f"offset {offset} is not three finite numbers")


EDEPSIM = Format("edep-sim", (".h5", ".hdf5"), None, _SegmentsFile, ("length_unit", "offset"), _check)
