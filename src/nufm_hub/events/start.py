"""Where an event starts: the first of several layers with energy, and a line through the core that follows. No truth, and no training."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nufm_hub.detectors import DetectorSpec, VoxelBranch

from .event import Event

_RUN = 4  # layers that must be on, one after the other
_THRESHOLD = 5.0  # MeV in a layer that is on
_CORE = (40.0, 30.0, 20.0, 20.0)  # mm from the line, one pass of the fit after the other
_LINE_LAYERS = 20


@dataclass(frozen=True)
class Start:
    """The start of an event in its first voxel branch; the beam comes along z.

    Attributes:
        layer: index along z of the first layer.
        position: float64 (3,), mm: the middle of that layer, on the line.
        slope: float64 (2,), dx/dz and dy/dz of the line.
    """

    layer: int
    position: np.ndarray
    slope: np.ndarray


def first_layer(energy: np.ndarray, threshold: float = _THRESHOLD) -> int:
    """The first of four layers in a row that are on; else the first with any energy.

    Args:
        energy: MeV in each layer, (layers,).
        threshold: MeV above which a layer is on.
    """
    on = np.concatenate([energy > threshold, np.zeros(_RUN - 1, dtype=bool)])
    found = np.flatnonzero(np.lib.stride_tricks.sliding_window_view(on, _RUN).all(axis=1))
    return int(found[0] if len(found) else np.argmax(energy > 0))


def find_start(coordinates: np.ndarray, energy: np.ndarray, branch: VoxelBranch, layers: int = _LINE_LAYERS) -> Start:
    """Start of the voxels of a branch.

    The line is fitted, weighted by energy, to the voxels of the `layers` layers from the first one on: first along the beam, through their
    median, then in turn to what is within 40, 30, 20 and 20 mm of it.

    Args:
        coordinates: voxel indices (N, 3), N > 0.
        energy: MeV (N,).
        branch: their geometry.
        layers: length of the line.
    """
    by_layer = np.bincount(coordinates[:, 2], energy, minlength=branch.shape[2])
    layer = first_layer(by_layer)
    near = np.flatnonzero((coordinates[:, 2] >= layer) & (coordinates[:, 2] < layer + layers))
    places, weight = branch.to_mm(coordinates[near]), energy[near] + 1e-9
    z0 = float(branch.to_mm(np.array([[0, 0, layer]]))[0, 2])
    depth = places[:, 2] - z0
    middle = np.array([_weighted_median(places[:, axis], weight) for axis in (0, 1)])
    slope = np.zeros(2)
    for cut in _CORE:
        core = np.flatnonzero((np.abs(places[:, :2] - middle - depth[:, None] * slope) < cut).all(axis=1))
        if len(core) < 3:
            break
        w, z, xy = weight[core] / weight[core].sum(), depth[core], places[core, :2]
        mean_z, mean = w @ z, w @ xy
        spread = w @ (z - mean_z) ** 2
        slope = (w * (z - mean_z)) @ (xy - mean) / spread if spread > 1 else np.zeros(2)
        middle = mean - slope * mean_z
    return Start(layer, np.array([*middle, z0]), slope)


def geometric_vertex(event: Event, spec: DetectorSpec) -> np.ndarray:
    """The primary vertex of an event, float64 (3,), mm; NaN where its first voxel branch is absent or empty."""
    branch = spec.voxel_branches[0]
    voxels = event.voxels.get(branch.name)
    if voxels is None or not len(voxels):
        return np.full(3, np.nan)
    return find_start(voxels.coordinates.astype(np.int64), voxels.energy.astype(np.float64), branch).position


def _weighted_median(values: np.ndarray, weights: np.ndarray) -> float:
    order = np.argsort(values)
    total = weights[order].cumsum()
    return float(values[order][np.searchsorted(total, total[-1] / 2)])
