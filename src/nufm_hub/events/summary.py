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

from .event import Event, Voxels
from .start import find_start, first_layer

_QUANTILES = (50, 75, 90, 97, 99.5)  # % of the voxels
_ENERGIES = (3, 10, 30, 100)  # MeV of a voxel
_SLICES = 10  # along z
_STEPS = (0, 2, 4, 8, 12, 20, 30, 45, 65, 100, 200)  # layers from the start
_RADII = (15, 30, 60, 120)  # mm from the axis
_CORE = 15.0  # mm from the axis
_LINES = (10, 20, 40)  # layers
_FIRST = (1, 2, 4, 8)  # layers
_FAR = 30.0  # mm from the start: directions of what is nearer mean nothing
_SLOPE, _CELLS = 0.3, 24  # largest slope of the map of directions, and cells along its sides
_APART = 0.06  # slope between clusters

Numbers = Iterator[tuple[str, float]]


def summary_features(event: Event, spec: DetectorSpec) -> dict[str, float]:
    """All numbers of an event by name; the same names for all events of a detector. NaN where there is nothing to measure."""
    return {f"{branch}.{name}": value for branch, name, value in _numbers(event, spec)}


def summary_sources(spec: DetectorSpec) -> list[str]:
    """Name of the branch that each number of `summary_features` is about, in their order."""
    return [branch for branch, _, _ in _numbers(Event(spec.name), spec)]


def _numbers(event: Event, spec: DetectorSpec) -> Iterator[tuple[str, str, float]]:
    """Name of the branch, name, and value of each number."""
    for branch in spec.voxel_branches:
        yield from ((branch.name, *number) for number in _voxels(event.voxels.get(branch.name), branch))
    first = spec.voxel_branches[0]
    yield from ((first.name, f"start.{name}", value) for name, value in _along(event.voxels.get(first.name), first))
    for branch in spec.image_branches:
        yield from ((branch.name, *number) for number in _image(event.images.get(branch.name), branch))
    for branch in spec.track_branches:
        yield from ((branch.name, *number) for number in _tracks(event.tracks.get(branch.name), branch))


def _voxels(voxels: Voxels | None, branch: VoxelBranch) -> Numbers:
    coordinates, energy = _filled(voxels)
    total = energy.sum()
    yield "energy", np.log1p(total)
    yield "voxels", np.log1p(len(energy) if total > 0 else 0)
    yield "mean", energy.mean()
    yield "largest", np.log1p(energy.max())
    yield from ((f"quantile{q:g}", float(value)) for q, value in zip(_QUANTILES, np.percentile(energy, _QUANTILES)))
    for threshold in _ENERGIES:
        above = energy > threshold
        yield f"voxels>{threshold}", np.log1p(above.sum())
        yield f"share>{threshold}", energy[above].sum() / total if total else np.nan
    sums_by_layer = np.bincount(coordinates[:, 2], energy, minlength=branch.shape[2])
    cuts = np.linspace(0, branch.shape[2], _SLICES + 1)
    sums = np.histogram(np.arange(branch.shape[2]), cuts, weights=sums_by_layer)[0]
    yield from ((f"slice{i}", np.log1p(value)) for i, value in enumerate(sums))
    if total:
        places = branch.to_mm(coordinates)
        middle = energy @ places / total
        width = np.sqrt(energy @ (places - middle) ** 2 / total)
    else:
        middle = width = np.full(3, np.nan)
    for axis, name in enumerate("xyz"):
        yield f"middle_{name}", middle[axis]
        yield f"width_{name}", width[axis]
    layers = np.flatnonzero(sums_by_layer)
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
    close = np.flatnonzero((step >= 0) & (step < _FIRST[-1]))
    for layers in _FIRST:
        near = close[step[close] < layers]
        for axis, name in enumerate("xy"):
            yield f"middle{layers}_{name}", np.average(places[near, axis], weights=energy[near] + 1e-9) if len(near) else np.nan
    x, y, depth = np.ascontiguousarray((places - start.position).T)
    behind = np.flatnonzero(depth > 2 * branch.voxel_size[2])
    slope = np.zeros(2)
    if len(behind):
        weights = (energy[behind] + 1e-9) / depth[behind]
        slope = np.array([weights @ x[behind], weights @ y[behind]]) / (energy[behind] + 1e-9).sum()
    for axis, name in enumerate("xy"):
        yield f"slope_{name}", slope[axis]
        yield f"transverse_{name}", slope[axis] * energy[behind].sum()
    yield "slope", float(np.hypot(*slope))
    yield "transverse", float(np.hypot(*slope) * energy[behind].sum())
    yield "energy_before", np.log1p(energy[step < 0].sum())
    yield "voxels_before", np.log1p((step < 0).sum())
    radius = np.sqrt((x - depth * slope[0]) ** 2 + (y - depth * slope[1]) ** 2)
    yield from _sections(step, energy, radius)
    weights = (energy + 1e-9) / (energy + 1e-9).sum()
    middle = weights @ depth
    beside = depth - middle
    square = beside * beside
    width = np.sqrt(weights @ square)
    yield "depth", middle
    yield "depth_width", width
    yield "depth_skewness", weights @ (square * beside) / max(width, 1.0) ** 3
    yield "radius", weights @ radius
    yield "radius_rms", np.sqrt(weights @ radius**2)
    for limit in _RADII:
        yield f"within{limit}", energy[radius < limit].sum() / total
    voxels_in_layer = np.bincount(coordinates[:, 2], minlength=branch.shape[2])[start.layer :]
    yield "thin_layers", float(((voxels_in_layer > 0) & (voxels_in_layer <= 3)).mean())
    yield "empty_layers", float((voxels_in_layer == 0).mean())
    far = np.flatnonzero(depth > _FAR)
    yield from _directions(x[far] / depth[far], y[far] / depth[far], energy[far])


def _sections(step: np.ndarray, energy: np.ndarray, radius: np.ndarray) -> Numbers:
    """Sections along the way from the start: `step` are layers from it, `radius` mm from the axis."""
    section = np.searchsorted(_STEPS, step, side="right") - 1
    inside = (section >= 0) & (section < len(_STEPS) - 1)
    section, energy, radius = section[inside], energy[inside], radius[inside]
    weights = (np.ones_like(energy), energy, energy * radius, np.where(radius < _CORE, energy, 0.0))
    number, total, width, core = (np.bincount(section, w, minlength=len(_STEPS) - 1) for w in weights)
    largest = np.zeros(len(_STEPS) - 1)
    np.maximum.at(largest, section, energy)
    for i, (low, high) in enumerate(itertools.pairwise(_STEPS)):
        yield f"energy_from{low}", np.log1p(total[i] / (high - low))
        yield f"voxels_from{low}", np.log1p(number[i] / (high - low))
        yield f"width_from{low}", width[i] / total[i] if total[i] else np.nan
        yield f"core_from{low}", core[i] / total[i] if total[i] else np.nan
        yield f"largest_from{low}", np.log1p(largest[i]) if total[i] else np.nan


def _directions(x: np.ndarray, y: np.ndarray, energy: np.ndarray) -> Numbers:
    """How energy spreads over directions from the start, with slopes x and y: clusters, entropy, how planar it is."""
    names = ("opening", "opening_rms", "first", "second", "first_slope", "entropy", "apart", "apart_slope", "planar")
    if len(energy) < 6 or (total := energy.sum()) <= 0:
        yield from ((f"directions_{name}", np.nan) for name in names)
        return
    edges = np.linspace(-_SLOPE, _SLOPE, _CELLS + 1)
    row, column = (np.searchsorted(edges[1:-1], slope, side="right") for slope in (x, y))
    cells = np.bincount(row * _CELLS + column, energy, minlength=_CELLS**2) / total
    middles = (edges[1:] + edges[:-1]) / 2
    order = np.argsort(cells)[::-1]
    at = np.stack([middles[order // _CELLS], middles[order % _CELLS]], axis=1)
    far = np.hypot(*(at - at[0]).T) > _APART
    filled = cells[cells > 0]
    xx, yy, xy = (energy @ product / total for product in (x * x, y * y, x * y))
    small, large = np.linalg.eigvalsh(np.array([[xx, xy], [xy, yy]]))
    values = (
        energy @ np.sqrt(x * x + y * y) / total, np.sqrt(xx + yy), cells[order[0]], cells[order[1]], np.hypot(*at[0]),
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
