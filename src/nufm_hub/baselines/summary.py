"""An event in some two hundred numbers, the way one makes them by hand for a tree. They come of the geometry alone, for any detector.

Of every voxel branch: energy, voxels, quantiles and shares above thresholds, energy along z, middle and widths. Of the first one, which has
the vertex, also the start (see `start`), lines of several lengths, energy, width and core along the way from it, slopes and their clusters.
Of images: sum, hottest pixels, middle and width. Of tracks: their number, and the columns of the two with the largest momentum. The one row
of a branch of at most one track, such as the 31 features of a crop, is taken as it is.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from nufm_hub.detectors import DetectorSpec, ImageBranch, TrackBranch, VoxelBranch
from nufm_hub.events import Event, Voxels

from .start import find_start, first_layer

_QUANTILES = (50, 75, 90, 97, 99.5)  # % of the voxels
_ENERGIES = (3, 10, 30, 100)  # MeV of a voxel
_SLICES = 10  # along z
_STEPS = (0, 2, 4, 8, 12, 20, 30, 45, 65, 100, 200)  # layers from the start
_RADII = (15, 30, 60, 120)  # mm from the axis
_CORE = 15.0  # mm from the axis
_LINES = (10, 20, 40)  # layers
_FAR = 30.0  # mm from the start: directions of what is nearer mean nothing
_SLOPE, _CELLS = 0.3, 24  # largest slope of the map of directions, and cells along its sides
_APART = 0.06  # slope between clusters

Numbers = Iterator[tuple[str, float]]


def summary_features(event: Event, spec: DetectorSpec) -> dict[str, float]:
    """All numbers of an event by name; the same names for all events of a detector. NaN where there is nothing to measure."""
    features: dict[str, float] = {}
    for branch in spec.voxel_branches:
        features |= {f"{branch.name}.{name}": value for name, value in _voxels(event.voxels.get(branch.name), branch)}
    first = spec.voxel_branches[0]
    features |= {f"start.{name}": value for name, value in _along(event.voxels.get(first.name), first)}
    for branch in spec.image_branches:
        features |= {f"{branch.name}.{name}": value for name, value in _image(event.images.get(branch.name), branch)}
    for branch in spec.track_branches:
        features |= {f"{branch.name}.{name}": value for name, value in _tracks(event.tracks.get(branch.name), branch)}
    return features


def _voxels(voxels: Voxels | None, branch: VoxelBranch) -> Numbers:
    coordinates, energy = _filled(voxels)
    total = energy.sum()
    yield "energy", np.log1p(total)
    yield "voxels", np.log1p(len(energy) if total > 0 else 0)
    yield "mean", energy.mean()
    yield "largest", np.log1p(energy.max())
    for q in _QUANTILES:
        yield f"quantile{q:g}", float(np.percentile(energy, q))
    for threshold in _ENERGIES:
        above = energy > threshold
        yield f"voxels>{threshold}", np.log1p(above.sum())
        yield f"share>{threshold}", energy[above].sum() / total if total else np.nan
    cuts = np.linspace(0, branch.shape[2], _SLICES + 1)
    sums = np.histogram(coordinates[:, 2], cuts, weights=energy)[0]
    yield from ((f"slice{i}", np.log1p(value)) for i, value in enumerate(sums))
    if total:
        places = branch.to_mm(coordinates)
        middle = np.average(places, axis=0, weights=energy)
        width = np.sqrt(np.average((places - middle) ** 2, axis=0, weights=energy))
    else:
        middle = width = np.full(3, np.nan)
    for axis, name in enumerate("xyz"):
        yield f"middle_{name}", middle[axis]
        yield f"width_{name}", width[axis]
    layers = np.flatnonzero(sums_by_layer := np.bincount(coordinates[:, 2], energy, minlength=branch.shape[2]))
    yield "last", float(layers[-1]) if len(layers) else np.nan
    yield "layers", float((sums_by_layer > 0).mean())


def _along(voxels: Voxels | None, branch: VoxelBranch) -> Numbers:
    """What follows the start of the event."""
    coordinates, energy = _filled(voxels)
    by_layer = np.bincount(coordinates[:, 2], energy, minlength=branch.shape[2])
    start = find_start(coordinates, energy, branch)
    total, places = max(energy.sum(), 1e-9), branch.to_mm(coordinates)
    length = branch.blocks.length if branch.blocks is not None and branch.blocks.axis == 2 else branch.shape[2]
    yield "block", float(start.layer // length)
    yield "layer_in_block", float(start.layer % length)
    for threshold in (2.0, 5.0, 10.0):
        layer = first_layer(by_layer, threshold)
        yield f"z>{threshold:g}", float(branch.to_mm(np.array([[0, 0, layer]]))[0, 2])
    for layers in _LINES:
        line = find_start(coordinates, energy, branch, layers)
        for axis, name in enumerate("xy"):
            yield f"line{layers}_{name}", line.position[axis]
            yield f"line{layers}_slope_{name}", line.slope[axis]
    step = coordinates[:, 2] - start.layer
    for layers in (1, 2, 4, 8):
        near = (step >= 0) & (step < layers)
        for axis, name in enumerate("xy"):
            yield f"middle{layers}_{name}", np.average(places[near, axis], weights=energy[near] + 1e-9) if near.any() else np.nan
    depth = places[:, 2] - start.position[2]
    behind = depth > 2 * branch.voxel_size[2]
    slope = np.zeros(2)
    if behind.any():
        slope = np.average((places[behind, :2] - start.position[:2]) / depth[behind, None], axis=0, weights=energy[behind] + 1e-9)
    for axis, name in enumerate("xy"):
        yield f"slope_{name}", slope[axis]
        yield f"transverse_{name}", slope[axis] * energy[behind].sum()
    yield "slope", float(np.hypot(*slope))
    yield "transverse", float(np.hypot(*slope) * energy[behind].sum())
    yield "energy_before", np.log1p(energy[step < 0].sum())
    yield "voxels_before", np.log1p((step < 0).sum())
    radius = np.linalg.norm(places[:, :2] - start.position[:2] - depth[:, None] * slope, axis=1)
    for low, high in itertools.pairwise(_STEPS):
        inside = (step >= low) & (step < high)
        energies = energy[inside]
        total_inside = energies.sum()
        yield f"energy_from{low}", np.log1p(total_inside / (high - low))
        yield f"voxels_from{low}", np.log1p(inside.sum() / (high - low))
        yield f"width_from{low}", np.average(radius[inside], weights=energies) if total_inside else np.nan
        yield f"core_from{low}", energies[radius[inside] < _CORE].sum() / total_inside if total_inside else np.nan
        yield f"largest_from{low}", np.log1p(energies.max()) if total_inside else np.nan
    weights = energy + 1e-9
    middle = np.average(depth, weights=weights)
    width = np.sqrt(np.average((depth - middle) ** 2, weights=weights))
    yield "depth", middle
    yield "depth_width", width
    yield "depth_skewness", np.average(((depth - middle) / max(width, 1.0)) ** 3, weights=weights)
    yield "radius", np.average(radius, weights=weights)
    yield "radius_rms", np.sqrt(np.average(radius**2, weights=weights))
    for limit in _RADII:
        yield f"within{limit}", energy[radius < limit].sum() / total
    voxels_in_layer = np.bincount(coordinates[:, 2], minlength=branch.shape[2])[start.layer :]
    yield "thin_layers", float(((voxels_in_layer > 0) & (voxels_in_layer <= 3)).mean())
    yield "empty_layers", float((voxels_in_layer == 0).mean())
    yield from _directions((places[:, :2] - start.position[:2])[depth > _FAR] / depth[depth > _FAR, None], energy[depth > _FAR])


def _directions(slopes: np.ndarray, energy: np.ndarray) -> Numbers:
    """How energy spreads over directions from the start: clusters, entropy, how planar it is."""
    names = ("opening", "opening_rms", "first", "second", "first_slope", "entropy", "apart", "apart_slope", "planar")
    if len(energy) < 6 or energy.sum() <= 0:
        yield from ((f"directions_{name}", np.nan) for name in names)
        return
    size = np.hypot(*slopes.T)
    edges = np.linspace(-_SLOPE, _SLOPE, _CELLS + 1)
    clipped = np.clip(slopes, -_SLOPE, _SLOPE * (1 - 1e-9))
    cells = np.histogram2d(*clipped.T, bins=[edges, edges], weights=energy)[0].ravel() / energy.sum()
    middles = (edges[1:] + edges[:-1]) / 2
    order = np.argsort(cells)[::-1]
    at = np.stack([middles[order // _CELLS], middles[order % _CELLS]], axis=1)
    far = np.hypot(*(at - at[0]).T) > _APART
    filled = cells[cells > 0]
    covariance = np.average(slopes[:, :, None] * slopes[:, None, :], axis=0, weights=energy)
    small, large = np.linalg.eigvalsh(covariance)
    values = (
        np.average(size, weights=energy), np.sqrt(np.average(size**2, weights=energy)), cells[order[0]], cells[order[1]], np.hypot(*at[0]),
        -(filled * np.log(filled)).sum(), cells[order][far][0], np.hypot(*(at[far][0] - at[0])), small / max(large, 1e-12),
    )  # fmt: skip
    yield from ((f"directions_{name}", float(value)) for name, value in zip(names, values, strict=True))


def _image(image: np.ndarray | None, branch: ImageBranch) -> Numbers:
    values = np.zeros(branch.shape) if image is None else np.asarray(image, dtype=np.float64)
    total, hottest = values.sum(), np.sort(values.ravel())[::-1]
    yield "energy", np.log1p(total)
    yield "largest", np.log1p(hottest[0])
    for count in (1, 2, 4):
        yield f"hottest{count}", hottest[:count].sum() / total if total > 0 else np.nan
    indices = np.indices(values.shape).reshape(values.ndim, -1)
    for axis, along in enumerate(indices):
        middle = (values.ravel() * along).sum() / total if total > 0 else np.nan
        yield f"middle_{axis}", middle
        yield f"width_{axis}", np.sqrt((values.ravel() * (along - middle) ** 2).sum() / total) if total > 0 else np.nan


def _tracks(tracks: np.ndarray | None, branch: TrackBranch) -> Numbers:
    columns = {name: i for i, name in enumerate(branch.features)}
    rows = np.zeros((0, len(columns))) if tracks is None else np.asarray(tracks, dtype=np.float64)
    if branch.max_count > 1:
        yield "count", float(len(rows))
    if "p" in columns:
        rows = rows[np.argsort(-rows[:, columns["p"]], kind="stable")]
    for i in range(min(2, branch.max_count)):
        row = rows[i] if len(rows) > i else np.full(len(columns), np.nan)
        yield from ((f"{name}_{i}", value) for name, value in zip(columns, row))
        if {"px", "py", "pz"} <= columns.keys():
            px, py, pz = (row[columns[name]] for name in ("px", "py", "pz"))
            yield f"slope_{i}", np.hypot(px, py) / max(pz, 1e-3) if np.isfinite(pz) else np.nan


def _filled(voxels: Voxels | None) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates and energies; of nothing, one voxel without energy."""
    if voxels is None or not len(voxels):
        return np.zeros((1, 3), dtype=np.int64), np.zeros(1)
    return voxels.coordinates.astype(np.int64), voxels.energy.astype(np.float64)
