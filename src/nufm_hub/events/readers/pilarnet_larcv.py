"""The original PILArNet (arXiv:2006.01993): larcv3 HDF5."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from nufm_hub.detectors import DetectorSpec, load_detector

from ..event import Event
from ..voxelise import merge_voxels
from .common import PARTICLE_CLASSES, Format, Hdf5EventFile, OnBad, equal_length, label_classes, one_hot, particle_class, read_format, to_classes
from .pilarnet_m import MOTIF_CLASSES

_DATA, _GROUP, _PARTICLES = "Data/sparse3d_data_group", "Data/sparse3d_group_group", "Data/particle_mcst_group"


def read_pilarnet_larcv(
    source: str | Path | Sequence[str | Path], detector: str | Path | DetectorSpec = "pilarnet", on_bad: OnBad | None = None
) -> Iterator[Event]:
    """Images of the original PILArNet from a larcv3 `.h5` file, a folder of them, or a list of these.

    Voxel ids count x slowest, z fastest. A voxel's `group` value is the row of its particle in the particle table, which gives
    its `particle` class (from the PDG code), `motif` class (the particle's shape) and `particle` instance. The particle table has the
    row as id, PDG code, class and momentum (stored in MeV, given in GeV). For single-particle images use
    `nufm_hub.events.crops.particle_crops`, which applies the benchmark's minimum of 5 voxels.

    Args:
        source: where the files are.
        detector: the 768 x 768 x 768 grid of 3 mm.
        on_bad: called with the error of an unreadable file or event, which is then skipped; None raises it.

    Raises:
        ValueError: names file, event, dataset and what is wrong.
    """
    return read_format(PILARNET_LARCV, source, load_detector(detector), on_bad)


class _LarcvFile(Hdf5EventFile):
    def _count(self) -> int:
        extents = {}
        for group, kind in ((_DATA, "voxel_extents"), (_GROUP, "voxel_extents"), (_PARTICLES, "extents")):
            extents[f"{group}/{kind}"] = len(self._file.dataset(f"{group}/{kind}", ("first", "N")))
        for group in (_DATA, _GROUP):
            self._file.dataset(f"{group}/voxels", ("id", "value"))
        self._particle_fields = self._file.dataset(f"{_PARTICLES}/particles", ("pdg", "shape")).dtype.names
        return equal_length(extents)

    def _slice(self, extents: str, values: str, index: int) -> np.ndarray:
        extent = self._file.rows(extents, index)
        first, count = int(extent["first"]), int(extent["N"])
        available = len(self._file.dataset(values))
        if first < 0 or count < 0 or first + count > available:
            raise ValueError(f"dataset {extents!r} asks for rows {first}..{first + count} of {values!r}, which has {available}")
        return self._file.rows(values, slice(first, first + count))

    def event(self, index: int) -> Event:
        voxels = self._slice(f"{_DATA}/voxel_extents", f"{_DATA}/voxels", index)
        groups = self._slice(f"{_GROUP}/voxel_extents", f"{_GROUP}/voxels", index)
        particles = self._slice(f"{_PARTICLES}/extents", f"{_PARTICLES}/particles", index)
        ids = voxels["id"].astype(np.int64)
        size = int(np.prod(self._branch.shape))
        if len(ids) and not 0 <= ids.min() <= ids.max() < size:
            raise ValueError(f"dataset '{_DATA}/voxels': voxel ids {ids.min()}..{ids.max()} do not fit a grid of {self._branch.shape}")
        if not np.array_equal(ids, groups["id"].astype(np.int64)):
            raise ValueError(f"datasets '{_DATA}/voxels' and '{_GROUP}/voxels' hold different voxels ({len(ids)} and {len(groups)})")
        owner = np.maximum(groups["value"].astype(np.int64), -1)
        if len(owner) and owner.max() >= len(particles):
            raise ValueError(f"dataset '{_GROUP}/voxels': group {owner.max()} is not a row of the {len(particles)} particles")
        shape, pdg = particles["shape"].astype(np.int64), particles["pdg"].astype(np.int64)
        shape = np.where((shape >= 0) & (shape < len(MOTIF_CLASSES)), shape, -1)  # larcv marks an unknown shape by a value beyond the classes
        particle = particle_class(pdg)
        labels = {}
        for label, names, of_particle in (("motif", MOTIF_CLASSES, shape), ("particle", PARTICLE_CLASSES, particle)):
            if classes := label_classes(self._branch, label):
                labels[label] = one_hot(to_classes(np.append(of_particle, -1)[owner], names, classes), len(classes))
        event = Event(self._spec.name, provenance={"generator": "PILArNet larcv3", "index": index})
        event.voxels[self._branch.name] = merge_voxels(
            np.stack(np.unravel_index(ids, self._branch.shape), axis=1),
            voxels["value"],
            self._branch,
            labels,
            {"particle": owner} if "particle" in self._branch.instances else None,
        )
        event.particles = {
            "id": np.arange(len(particles), dtype=np.int32),
            "pdg": pdg.astype(np.int32),
            "label": to_classes(particle, PARTICLE_CLASSES, label_classes(self._branch, "particle")).astype(np.int32),
        }
        if {"px", "py", "pz"} <= set(self._particle_fields):
            event.particles["momentum"] = np.stack([particles[k] for k in ("px", "py", "pz")], axis=1).astype(np.float32) / 1000
        return event


PILARNET_LARCV = Format("pilarnet-larcv", (".h5", ".hdf5"), "pilarnet", _LarcvFile)
