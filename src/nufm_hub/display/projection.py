"""Voxels as pictures: projections along an axis on a grid in mm that keeps the gaps between blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from nufm_hub.detectors import VoxelBranch
from nufm_hub.events import Voxels
from nufm_hub.events.voxelise import layer_edges

from .colouring import Colouring


@dataclass(frozen=True)
class Cells:
    """Cells along one axis: `edges` in mm (M + 1,), gaps being cells too, and the cell of every layer of voxels (n,)."""

    edges: np.ndarray
    of_layer: np.ndarray


@dataclass(frozen=True)
class Projection:
    """A picture of voxels: edges in mm and `image` (horizontal, vertical), masked where no voxel is."""

    horizontal: np.ndarray
    vertical: np.ndarray
    image: np.ma.MaskedArray


def block_bounds(branch: VoxelBranch) -> np.ndarray:
    """Low and high corners in mm of the sensitive blocks, (blocks, 2, 3); of the whole branch where it is not in blocks."""
    if branch.blocks is None:
        return branch.bounds[None]
    axis = branch.blocks.axis
    low, high = (edge.reshape(-1, branch.blocks.length) for edge in layer_edges(branch, axis))
    boxes = np.repeat(branch.bounds[None], len(low), axis=0)
    boxes[:, 0, axis], boxes[:, 1, axis] = low[:, 0], high[:, -1]
    return boxes


def flat_image(image: np.ndarray) -> np.ndarray:
    """Energies of an image branch in the plane of its first two axes, float64; a single axis is the first."""
    image = np.asarray(image, dtype=np.float64)
    return image[:, None] if image.ndim == 1 else image.sum(axis=tuple(range(2, image.ndim)))


def cells(branch: VoxelBranch, axis: int, merge: int) -> Cells:
    """The layers of an axis, `merge` neighbours of a block making one cell."""
    low, high = layer_edges(branch, axis)
    blocks = branch.blocks
    length = blocks.length if blocks is not None and blocks.axis == axis else branch.shape[axis]
    layer = np.arange(len(low))
    cell = layer // length * -(-length // merge) + layer % length // merge
    first = np.flatnonzero(np.diff(cell, prepend=-1))
    starts, stops = low[first], high[np.append(first[1:], len(low)) - 1]
    gap_before = np.append(False, starts[1:] - stops[:-1] > 1e-6 * branch.voxel_size[axis])
    shift = np.cumsum(gap_before)
    edges = np.sort(np.concatenate([starts, stops[:-1][gap_before[1:]], stops[-1:]]))
    return Cells(edges, cell + shift[cell])


def project(branch: VoxelBranch, voxels: Voxels, colouring: Colouring, axes: tuple[int, int], merge: tuple[int, int]) -> Projection:
    """Look along the third axis: energies add up, other numbers are averaged with the energy as weight, and of classes the one
    with the highest energy shows."""
    sides = [cells(branch, axis, m) for axis, m in zip(axes, merge)]
    index = [side.of_layer[voxels.coordinates[:, axis].astype(np.int64)] for axis, side in zip(axes, sides)]
    low = [int(i.min()) for i in index]
    size = [int(i.max()) - first + 1 for i, first in zip(index, low)]
    pixels, inverse = np.unique((index[0] - low[0]) * size[1] + index[1] - low[1], return_inverse=True)
    weights = voxels.energy.astype(np.float64) + 1e-12  # voxels without energy still show
    if colouring.classes:
        by_class = np.bincount(inverse * len(colouring.classes) + colouring.values, weights=weights, minlength=len(pixels) * len(colouring.classes))
        values = by_class.reshape(len(pixels), -1).argmax(1).astype(np.float64)
    else:
        values = np.bincount(inverse, weights=weights if colouring.is_energy else weights * colouring.values)
        if not colouring.is_energy:
            values /= np.bincount(inverse, weights=weights)
    image = np.full(size[0] * size[1], np.nan)
    image[pixels] = values
    edges = [side.edges[first : first + n + 1] for side, first, n in zip(sides, low, size)]
    return Projection(edges[0], edges[1], np.ma.masked_invalid(image.reshape(size)))


def view_limits(branch: VoxelBranch, coordinates: np.ndarray, points: Sequence[np.ndarray]) -> np.ndarray:
    """Low and high limits in mm (2, 3) of a view of voxels (N, 3), N > 0, and of the points (3,) in mm that lie inside the branch.

    Axes of comparable length are zoomed together, so that their panels are to scale. Voxels that span more than 60 % of an axis show all of it.
    """
    bounds = branch.bounds
    extent = bounds[1] - bounds[0]
    positions = np.concatenate([branch.to_mm(coordinates), *(p[None] for p in points if ((p >= bounds[0]) & (p <= bounds[1])).all())])
    low, high = positions.min(0), positions.max(0)
    margin = np.maximum(5 * np.asarray(branch.voxel_size), 0.08 * (high - low))
    limits = bounds + np.outer([-1, 1], 0.03 * extent)
    for axes in ([0, 1], [2]) if is_long(extent) else ([0, 1, 2],):
        if ((high - low)[axes] < 0.6 * extent[axes]).all():
            span = (high - low + 2 * margin)[axes].max()
            # Slid back where it would show more of the outside than the whole view does.
            start = np.clip((low + high)[axes] / 2 - span / 2, limits[0, axes], np.maximum(limits[1, axes] - span, limits[0, axes]))
            limits[:, axes] = start, start + span
    return limits


def checked_zoom(zoom: Sequence[float] | None) -> np.ndarray | None:
    """Low and high limits in mm (2, 3) of the cube (x, y, z, width). Raises ValueError for one that is none."""
    if zoom is None:
        return None
    cube = np.asarray(zoom, dtype=np.float64)
    if cube.shape != (4,) or not np.isfinite(cube).all() or cube[3] <= 0:
        raise ValueError(f"zoom is x, y, z and a positive width in mm, got {zoom}")
    return cube[:3] + np.outer([-0.5, 0.5], cube[[3, 3, 3]])


def within(points: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """Which points (N, 3) lie between the limits (2, 3), bool (N,)."""
    return ((points >= limits[0]) & (points <= limits[1])).all(axis=-1)


def zoomed(branch: VoxelBranch, voxels: Voxels, colouring: Colouring, limits: np.ndarray | None) -> tuple[Voxels, Colouring]:
    """The voxels with their centre between the limits, and their colours."""
    if limits is None:
        return voxels, colouring
    shown = within(branch.to_mm(voxels.coordinates), limits)
    return voxels.select(shown), replace(colouring, values=colouring.values[shown])


def is_long(span: np.ndarray) -> bool:
    """Whether a volume is so much longer along z than across that its views along z deserve the full width."""
    return bool(span[2] > 2 * span[:2].max())


def merge_factor(branch: VoxelBranch, axis: int, limits: np.ndarray, max_cells: int) -> int:
    """How many layers make a cell, so that no more than `max_cells` cells lie between the limits and none gets lost between pixels."""
    low, high = layer_edges(branch, axis)
    visible = int(((high > limits[0, axis]) & (low < limits[1, axis])).sum())
    return max(1, -(-visible // max_cells))
