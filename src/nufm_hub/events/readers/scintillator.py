"""Scintillator-cube particles of Zenodo 10998285 (arXiv:2502.07724): one `.pt` file an event, in folders named after the particle."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nufm_hub.detectors import DetectorSpec, load_detector

from ..event import Event
from ..voxelise import voxelise
from .common import Format, OnBad, SingleEventFile, label_classes, read_format, to_classes

CLASSES = ("proton", "pion", "muon", "electron")
_MOMENTUM_UNITS = {"MeV": 1e-3, "GeV": 1.0}
# The functions that numpy pickles an array and a scalar as.
_REBUILD = (np.zeros(0).__reduce__()[0], np.float64(0).__reduce__()[0])
# All that a pickled numpy array or scalar of numbers needs, under its numpy 1 and 2 names. None of these runs code of the file.
_NUMPY = [
    np.ndarray,
    np.dtype,
    *[(f, f"{module}.multiarray.{f.__name__}") for f in _REBUILD for module in ("numpy.core", "numpy._core")],
    *[type(np.dtype(kind)) for kind in "?bBhHiIlLqQefd"],
]


def read_scintillator(
    source: str | Path | Sequence[str | Path],
    momentum_unit: str = "MeV",
    detector: str | Path | DetectorSpec = "superfgd",
    on_bad: OnBad | None = None,
) -> Iterator[Event]:
    """Single particles in scintillator cubes from a `.pt` file, a folder of them, or a list of these.

    Hits are given in mm and become voxels (index = rint((x + 995) / 10) on the grid of the benchmark). The charge is kept in
    the unit of the file. The class comes from the name of the folder that holds the file (`proton`, `pion`, `muon`,
    `electron`) and is left out elsewhere; a voxel's `crosstalk` label is the charge share of its hits that `Tag_Trk` does not mark as track.
    The published split shares initial conditions between its halves: split again with `split_events(..., group_by="initial_condition")`.

    The files are pickles. Only arrays and scalars of numbers are unpickled; anything else is refused before it runs.

    Args:
        source: where the files are.
        momentum_unit: unit of `TrueIniP`, `"MeV"` or `"GeV"`.
        detector: the 200 x 200 x 200 grid of 1 cm.
        on_bad: called with the error of an unreadable event, which is then skipped; None raises it.

    Raises:
        ValueError: names the file, the entry and what is wrong; also for a file that asks for anything but numbers.
    """
    return read_format(SCINTILLATOR, source, load_detector(detector), on_bad, momentum_unit=momentum_unit)


class _PtFile(SingleEventFile):
    def __init__(self, path: Path, name: str, spec: DetectorSpec, momentum_unit: str = "MeV") -> None:
        super().__init__(path, name, spec)
        self._scale = _MOMENTUM_UNITS[momentum_unit]

    def event(self, index: int) -> Event:
        data = _load(self._path)
        hits = _array(data, "reco_hits", 2)
        if hits.shape[1] < 4:
            raise ValueError(f"entry 'reco_hits' has shape {hits.shape}, not (N, 4 or more): x, y, z in mm, charge")
        branch = self._spec.voxel_branches[0]
        labels = {}
        if "Tag_Trk" in data and label_classes(branch, "crosstalk"):
            track = _array(data, "Tag_Trk", 1)
            if len(track) != len(hits):
                raise ValueError(f"entries 'reco_hits' ({len(hits)}) and 'Tag_Trk' ({len(track)}) differ in length")
            labels["crosstalk"] = 1.0 - track.astype(bool)
        event = Event(self._spec.name, provenance={"generator": "scintillator cubes (Zenodo 10998285)", "index": index})
        event.voxels[branch.name] = voxelise(hits[:, :3], hits[:, 3], branch, labels)
        folder = self._path.parent.name
        if folder in CLASSES and "particle" in self._spec.event_labels:
            event.truth["particle"] = int(to_classes(np.array(CLASSES.index(folder)), CLASSES, self._spec.classes("particle")))
        if "TrueIniPos" in data:
            event.truth["particle_position"] = _vector(data, "TrueIniPos")
        if "TrueIniDir" in data and "TrueIniP" in data:
            direction = _vector(data, "TrueIniDir")
            norm = np.linalg.norm(direction)
            if not norm > 0:
                raise ValueError(f"entry 'TrueIniDir' {direction.tolist()} is not a direction")
            event.truth["particle_momentum"] = direction / norm * float(_array(data, "TrueIniP").item()) * self._scale
        return event


def _load(path: Path) -> dict[str, Any]:
    try:
        with torch.serialization.safe_globals(_NUMPY):
            data = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(f"is refused: it asks for more than arrays of numbers, or is damaged ({str(error).splitlines()[0]})") from error
    except (OSError, EOFError, RuntimeError, KeyError, IndexError, TypeError, AttributeError) as error:
        # What torch raises for truncated and foreign files depends on the byte at which they go wrong.
        raise ValueError(f"is not a readable .pt file (truncated, or of another format): {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"holds a {type(data).__name__}, not a dictionary")
    return data


def _array(data: dict[str, Any], name: str, dimensions: int | None = None) -> np.ndarray:
    if name not in data:
        raise ValueError(f"entry {name!r} is missing; the file holds {sorted(map(str, data))}")
    array = np.asarray(data[name])
    if array.dtype.kind not in "biuf" or (dimensions is not None and array.ndim != dimensions):
        raise ValueError(f"entry {name!r} has shape {array.shape} and type {array.dtype}; numbers in {dimensions} dimensions are expected")
    return array


def _vector(data: dict[str, Any], name: str) -> np.ndarray:
    vector = _array(data, name).astype(np.float64).ravel()
    if vector.shape != (3,) or not np.isfinite(vector).all():
        raise ValueError(f"entry {name!r} is {vector.tolist()}, not three finite numbers")
    return vector


def _check(momentum_unit: str = "MeV") -> None:
    if momentum_unit not in _MOMENTUM_UNITS:
        raise ValueError(f"momentum_unit {momentum_unit!r} is not one of {sorted(_MOMENTUM_UNITS)}")


SCINTILLATOR = Format("scintillator", (".pt",), "superfgd", _PtFile, ("momentum_unit",), _check)
