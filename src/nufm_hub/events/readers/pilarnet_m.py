"""PILArNet-M (Hugging Face `DeepLearnPhysics/PILArNet-M`; arXiv:2006.01993, 2502.02558, 2512.01324): HDF5, versions 1, 2 and 3."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from nufm_hub.detectors import DetectorSpec, load_detector

from ..event import Event, Voxels
from ..voxelise import merge_voxels
from .common import (
    PARTICLE_CLASS_PDG,
    PARTICLE_CLASSES,
    Format,
    Hdf5EventFile,
    OnBad,
    equal_length,
    label_classes,
    one_hot,
    read_format,
    reshape_rows,
    to_classes,
)

VERSIONS = ("v1", "v2", "v3")
MOTIF_CLASSES = ("shower", "track", "michel", "delta", "low_energy")
_POINT_COLUMNS = 8  # x, y, z (voxel indices), energy (MeV), and four that no public reader uses
_EXTRA_COLUMNS = {"v2": (5,), "v3": (6, 9, 11)}  # mass, |p|, vertex (3); v3 adds is_primary, then momentum (3), then parent pdg and id


def read_pilarnet_m(
    source: str | Path | Sequence[str | Path],
    version: str | None = None,
    threshold: float = 0.0,
    detector: str | Path | DetectorSpec = "pilarnet",
    on_bad: OnBad | None = None,
) -> Iterator[Event]:
    """Images of PILArNet-M from a `.h5` file, a folder of them, or a list of these.

    Fills the voxel labels `motif` and `particle` (absent in v1) and the instances `particle` (the dataset's group) and
    `interaction`, as far as the detector declares them, and a particle table with one row a group: class and PDG code of its leading
    cluster (the cluster the group is named after, else its largest), and its momentum in GeV where the file has components.
    Production vertices are left out: their frame is not documented. Points that share a voxel are merged.

    Args:
        source: where the files are.
        version: `"v1"`, `"v2"` or `"v3"`; None decides by the columns each file has.
        threshold: drop points of at most this energy in MeV (0.13 in arXiv:2512.01324).
        detector: the 768 x 768 x 768 grid of 3 mm.
        on_bad: called with the error of an unreadable file or event, which is then skipped; None raises it.

    Raises:
        ValueError: names file, event, dataset and what is wrong.
    """
    return read_format(PILARNET_M, source, load_detector(detector), on_bad, version=version, threshold=threshold)


class _PilarnetFile(Hdf5EventFile):
    def __init__(self, path: Path, name: str, spec: DetectorSpec, version: str | None = None, threshold: float = 0.0) -> None:
        self.version, self._threshold = version, threshold
        super().__init__(path, name, spec)

    def _count(self) -> int:
        self.version = self.version or self._detect_version()
        datasets = ["point", "cluster"] + ["cluster_extra"] * (self.version != "v1")
        return equal_length({name: len(self._file.dataset(name)) for name in datasets})

    def _detect_version(self) -> str:
        if not self._file.has("cluster_extra"):
            return "v1"
        extra, cluster = self._file.dataset("cluster_extra"), self._file.dataset("cluster")
        for i in range(min(len(extra), len(cluster))):
            if clusters := cluster[i].size // 6:
                width = extra[i].size / clusters
                for version, widths in _EXTRA_COLUMNS.items():
                    if width in widths:
                        return version
                raise ValueError(f"dataset 'cluster_extra' has {width:g} columns in event {i}; known are {_EXTRA_COLUMNS}. Give the version")
        return "v2"

    def event(self, index: int) -> Event:
        points = reshape_rows(self._file.rows("point", index), _POINT_COLUMNS, "point")
        clusters = reshape_rows(self._file.rows("cluster", index), 5 if self.version == "v1" else 6, "cluster").astype(np.int64)
        size, cluster_id, group, interaction, motif = clusters[:, :5].T
        if (size < 0).any() or size.sum() != len(points):
            raise ValueError(
                f"dataset 'cluster': its {len(clusters)} clusters hold {size.sum()} points, 'point' has {len(points)}: is it {self.version}?"
            )
        _require_range(motif, -1, len(MOTIF_CLASSES) - 1, "motif class")
        if self.version == "v1":
            particle = np.full(len(clusters), -1)
        else:
            _require_range(clusters[:, 5], -1, 6, "particle class")
            particle = np.where(clusters[:, 5] < len(PARTICLE_CLASSES), clusters[:, 5], -1)  # 5 and 6 both mean none
        event = Event(self._spec.name, provenance={"generator": f"PILArNet-M {self.version}", "index": index})
        of_point = np.repeat(np.arange(len(clusters)), size)
        event.voxels[self._branch.name] = self._voxels(points, of_point, motif, particle, group, interaction)
        held = group >= 0
        leading = np.flatnonzero(held)[_leading(cluster_id[held], group[held], size[held])]
        event.particles = {
            "id": group[leading].astype(np.int32),
            "interaction": interaction[leading].astype(np.int32),
            "pdg": np.where(particle[leading] >= 0, PARTICLE_CLASS_PDG[particle[leading]], 0).astype(np.int32),
            "label": to_classes(particle[leading], PARTICLE_CLASSES, label_classes(self._branch, "particle")).astype(np.int32),
        }
        if (momentum := self._momentum(index, len(clusters))) is not None:
            event.particles["momentum"] = momentum[leading].astype(np.float32)
        return event

    def _voxels(self, points, of_point, motif, particle, group, interaction) -> Voxels:
        coordinates = points[:, :3]
        if not np.array_equal(np.rint(coordinates), coordinates):
            row = int(np.flatnonzero((np.rint(coordinates) != coordinates).any(axis=1))[0])
            raise ValueError(f"dataset 'point', row {row}: {coordinates[row].tolist()} are not voxel indices")
        keep = points[:, 3] > self._threshold if self._threshold > 0 else np.ones(len(points), dtype=bool)
        coordinates, energy, of_point = coordinates[keep].astype(np.int64), points[keep, 3], of_point[keep]
        labels, instances = {}, {}
        if classes := label_classes(self._branch, "motif"):
            labels["motif"] = one_hot(to_classes(motif[of_point], MOTIF_CLASSES, classes), len(classes))
        if self.version != "v1" and (classes := label_classes(self._branch, "particle")):
            labels["particle"] = one_hot(to_classes(particle[of_point], PARTICLE_CLASSES, classes), len(classes))
        for name, ids in (("particle", group), ("interaction", interaction)):
            if name in self._branch.instances:
                instances[name] = np.maximum(ids[of_point], -1)
        if len(np.unique(coordinates, axis=0)) < len(coordinates):
            return merge_voxels(coordinates, energy, self._branch, labels, instances)
        return Voxels(coordinates, energy, labels, instances)

    def _momentum(self, index: int, clusters: int) -> np.ndarray | None:
        """Momentum (clusters, 3) in GeV, None where the file has only its magnitude or nothing."""
        if self.version == "v1":
            return None
        extra = self._extra("cluster_extra", index, clusters, _EXTRA_COLUMNS[self.version])
        if extra.shape[1] >= 9:
            return extra[:, 6:9]
        if self.version == "v3" and self._file.has("cluster_extra_2"):
            return self._extra("cluster_extra_2", index, clusters, (5,))[:, :3]
        return None

    def _extra(self, name: str, index: int, clusters: int, widths: tuple[int, ...]) -> np.ndarray:
        flat = np.asarray(self._file.rows(name, index))
        if flat.size not in [clusters * w for w in widths]:
            raise ValueError(f"dataset {name!r}: {flat.size} values do not fit {clusters} clusters and {widths} columns of version {self.version}")
        return flat.reshape(clusters, flat.size // clusters if clusters else widths[0])


def _require_range(values: np.ndarray, low: int, high: int, what: str) -> None:
    bad = (values < low) | (values > high)
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise ValueError(f"dataset 'cluster', row {row}: {what} {values[row]} is not in {low}..{high}")


def _leading(cluster_id: np.ndarray, group: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Row of each group's leading cluster, in order of group id."""
    order = np.lexsort((-size, cluster_id != group, group))
    _, first = np.unique(group[order], return_index=True)
    return order[first]


def _check(version: str | None = None, threshold: float = 0.0) -> None:
    if version not in (None, *VERSIONS):
        raise ValueError(f"PILArNet-M version {version!r} is not one of {VERSIONS}")
    if not threshold >= 0:
        raise ValueError(f"threshold {threshold} MeV is negative")


PILARNET_M = Format("pilarnet-m", (".h5", ".hdf5"), "pilarnet", _PilarnetFile, ("version", "threshold"), _check)
