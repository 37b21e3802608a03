"""Crops around one particle, and numbers that say what a crop leaves out: its shape as a whole, and where in the event it was.

The two ways of cropping, and the 25 + 6 features that go with them as one extra token, follow the transfer studies of the
FASERCal model (arXiv:2604.07037): `clamp` for scintillator cubes, `scale` for liquid argon. Features are computed in double
precision, so that the ratios of a straight track do not depend on rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from nufm_hub.detectors import DetectorSpec, TrackBranch, VoxelBranch

from .event import Event, Voxels
from .voxelise import merge_voxels

MIN_VOXELS = 5  # of a particle worth identifying, arXiv:2302.03787
CONTEXT_BRANCH = "context"

SHAPE_FEATURES = (
    "centroid_x", "centroid_y", "centroid_z",
    "extent_x", "extent_y", "extent_z",
    "log_voxels", "log_energy", "log_mean_energy", "log_std_energy", "log_density",
    "containment",
    "log_spread_1", "log_spread_2", "log_spread_3",
    "start_x", "start_y", "start_z",
    "direction_x", "direction_y", "direction_z",
    "length", "linearity", "planarity", "energy_asymmetry",
)  # fmt: skip
BOUNDARY_FEATURES = ("distance_low_x", "distance_high_x", "distance_low_y", "distance_high_y", "distance_low_z", "distance_high_z")
CONTEXT_FEATURES = ("energy_share", "voxel_share", "energy_rank", "voxel_rank", "nearest_particle", "distance_to_event")

_SMALL = 1e-6


@dataclass
class Crop:
    """A crop.

    Attributes:
        voxels: with indices inside the crop.
        rows: for each voxel that was kept, its row in the source, (K,); the others lay outside the crop.
        crop_of_row: for each of `rows` the row of its voxel in the crop, (K,): takes a prediction per crop voxel back to the source.
        origin: voxel of the detector that is voxel 0 of the crop, (3,) int64; None for a scaled crop.
        scale: factor on distances, 1 unless the particle was larger than the crop.
    """

    voxels: Voxels
    rows: np.ndarray
    crop_of_row: np.ndarray
    origin: np.ndarray | None
    scale: float


def crop_clamped(voxels: Voxels, grid: Sequence[int], shape: Sequence[int]) -> Crop:
    """The crop centred on the bounding box of the voxels, moved as little as needed to lie inside the detector.

    Voxels of particles larger than the crop are cut off.

    Args:
        voxels: of one particle, N >= 1.
        grid: voxels of the detector along x, y, z.
        shape: voxels of the crop; not larger than `grid`.

    Raises:
        ValueError: no voxel, or a crop larger than the detector.
    """
    grid, shape = np.asarray(grid, dtype=np.int64), np.asarray(shape, dtype=np.int64)
    if len(voxels) == 0:
        raise ValueError("cannot crop around a particle without voxels")
    if (shape > grid).any():
        raise ValueError(f"a crop of {shape.tolist()} voxels does not fit the detector of {grid.tolist()}")
    low, high = voxels.coordinates.min(axis=0).astype(np.int64), voxels.coordinates.max(axis=0).astype(np.int64)
    # floor((low + high) / 2 - (shape - 1) / 2)
    origin = np.clip((low + high - shape + 1) // 2, 0, grid - shape)
    local = voxels.coordinates.astype(np.int64) - origin
    rows = np.flatnonzero(((local >= 0) & (local < shape)).all(axis=1))
    kept = voxels.select(rows)
    return Crop(replace(kept, coordinates=local[rows], voxel_of_hit=None), rows, np.arange(len(rows)), origin, 1.0)


def crop_scaled(voxels: Voxels, branch: VoxelBranch) -> Crop:
    """The whole particle centred in the crop, shrunk when it is larger than the crop; voxels that fall together are merged.

    Args:
        voxels: of one particle, N >= 1.
        branch: the crop; its shape counts.

    Raises:
        ValueError: no voxel.
    """
    if len(voxels) == 0:
        raise ValueError("cannot crop around a particle without voxels")
    half = (np.asarray(branch.shape) - 1) / 2
    coordinates = voxels.coordinates.astype(np.float64)
    relative = coordinates - (coordinates.min(axis=0) + coordinates.max(axis=0)) / 2
    scale = float(min(1.0, (half / np.maximum(np.abs(relative).max(axis=0), _SMALL)).min()))
    local = np.clip(np.rint(relative * scale + half), 0, 2 * half).astype(np.int64)
    merged = merge_voxels(local, voxels.values, branch, voxels.labels, voxels.instances)
    of_row = merged.voxel_of_hit
    merged.voxel_of_hit = None
    return Crop(merged, np.arange(len(voxels)), of_row, None, scale)


def shape_features(coordinates: np.ndarray, energy: np.ndarray, grid: Sequence[int], containment: float, start_at: str) -> np.ndarray:
    """The 25 `SHAPE_FEATURES` of a particle, float64 (25,).

    With n voxels at c (voxel indices), L = max(grid - 1, 1) and s1 >= s2 >= s3 the standard deviations of c along its principal axes:

    - centroid = mean(c) / L; extent = (max(c) - min(c) + 1) / grid;
    - log_x = log(1 + x) of n, of the sum, mean and population standard deviation of the energies (MeV), of density = n / voxels of
      the bounding box, and of s1, s2, s3;
    - containment as given; start and end = the voxels with the lowest and highest projection on the first axis, which is the
      start being set by `start_at`; start = c_start / L; direction = unit vector from start to end; length = |end - start| / |L|;
    - linearity = log(1 + s1 / s2), planarity = log(1 + s2 / s3), denominators not below 1e-6;
    - energy_asymmetry = (energy on the end's side of the middle of the projections - that on the start's side) / sum; voxels in the
      very middle count half on each side.

    One voxel has start = centroid and zeros from log_spread on.

    Args:
        coordinates: (N, 3), N >= 1.
        energy: (N,) MeV.
        grid: voxels along x, y, z that positions and lengths are normalised to.
        containment: feature 12; the crop functions say what it is.
        start_at: `"low_z"`: the end with the smaller (z, x, y). `"low_energy"`: the end on the side with less energy; equal: the end
            whose voxel has less. A stopping particle deposits most at its end.

    Raises:
        ValueError: no voxel, or an unknown `start_at`.
    """
    if start_at not in ("low_z", "low_energy"):
        raise ValueError(f"start_at={start_at!r} is neither 'low_z' nor 'low_energy'")
    c, energy, grid = np.asarray(coordinates, dtype=np.float64), np.asarray(energy, dtype=np.float64), np.asarray(grid, dtype=np.float64)
    if len(c) == 0:
        raise ValueError("a particle without voxels has no shape")
    last = np.maximum(grid - 1, 1)
    box = c.max(axis=0) - c.min(axis=0) + 1
    total = energy.sum()
    start, direction = c.mean(axis=0), np.zeros(3)
    spread, length, linearity, planarity, asymmetry = np.zeros(3), 0.0, 0.0, 0.0, 0.0
    if len(c) > 1:
        relative = c - start
        values, axes = np.linalg.eigh(relative.T @ relative / (len(c) - 1))
        spread = np.sqrt(np.maximum(values[::-1], 0))
        projection = relative @ axes[:, -1]
        ends = [int(projection.argmin()), int(projection.argmax())]
        past = projection - (projection.min() + projection.max()) / 2
        middle = energy[np.abs(past) <= _SMALL].sum() / 2  # half to each side, or the arbitrary sign of the axis would matter
        sides = [energy[past < -_SMALL].sum() + middle, energy[past > _SMALL].sum() + middle]
        if _starts_at_second(c[ends], energy[ends], sides, start_at):
            ends, sides = ends[::-1], sides[::-1]
        step = c[ends[1]] - c[ends[0]]
        start, size = c[ends[0]], np.linalg.norm(step)
        direction = step / size if size > _SMALL else direction
        length = size / np.linalg.norm(last)
        linearity = np.log1p(spread[0] / max(spread[1], _SMALL))
        planarity = np.log1p(spread[1] / max(spread[2], _SMALL))
        asymmetry = (sides[1] - sides[0]) / max(total, _SMALL)
    logs = np.log1p([len(c), total, energy.mean(), energy.std(), len(c) / box.prod()])
    place = (c.mean(axis=0) / last, box / grid, logs, [containment])
    return np.concatenate([*place, np.log1p(spread), start / last, direction, [length, linearity, planarity, asymmetry]])


def _starts_at_second(ends: np.ndarray, energy: np.ndarray, sides: list[float], start_at: str) -> bool:
    if start_at == "low_z":
        return tuple(ends[0][[2, 0, 1]]) > tuple(ends[1][[2, 0, 1]])
    if abs(sides[1] - sides[0]) > _SMALL:
        return sides[1] < sides[0]
    return energy[1] < energy[0]


def boundary_features(origin: Sequence[int], grid: Sequence[int], shape: Sequence[int]) -> np.ndarray:
    """`BOUNDARY_FEATURES`, (6,): voxels between crop and detector on the low and the high side of x, y, z, as shares of the room
    along that axis (0 and 0 where there is none).
    """
    origin, grid, shape = (np.asarray(a, dtype=np.float64) for a in (origin, grid, shape))
    room = np.maximum(grid - shape, 1)
    return np.stack([origin / room, (grid - shape - origin) / room], axis=1).ravel()


def context_features(centroids: np.ndarray, voxels: np.ndarray, energies: np.ndarray) -> np.ndarray:
    """`CONTEXT_FEATURES` of the P particles of an event, (P, 6).

    Share of the energy and of the voxels of all particles; rank by energy and by voxels, 0 (most) to 1 (least), earlier
    particles first on a tie; distance to the nearest other centroid (1 / sqrt 3 when alone) and to the mean centroid.

    Args:
        centroids: (P, 3), in units of the detector's size; distances are divided by sqrt 3, the diagonal.
        voxels: (P,) numbers of voxels.
        energies: (P,) MeV.
    """
    centroids, voxels, energies = (np.asarray(a, dtype=np.float64) for a in (centroids, voxels, energies))
    between = np.linalg.norm(centroids[:, None] - centroids[None], axis=-1)
    np.fill_diagonal(between, np.inf)
    nearest = between.min(axis=1) if len(centroids) > 1 else np.ones(len(centroids))
    columns = [
        energies / max(energies.sum(), _SMALL),
        voxels / max(voxels.sum(), 1),
        _ranks(energies),
        _ranks(voxels),
        nearest / np.sqrt(3),
        np.linalg.norm(centroids - centroids.mean(axis=0), axis=1) / np.sqrt(3),
    ]
    return np.stack(columns, axis=1)


def _ranks(values: np.ndarray) -> np.ndarray:
    ranks = np.empty(len(values))
    ranks[np.argsort(-values, kind="stable")] = np.linspace(0, 1, len(values)) if len(values) > 1 else 0.0
    return ranks


@lru_cache
def _columns_of_axes(names: tuple[str, ...], name: str) -> list[int]:
    return [names.index(f"{name}_{axis}") for axis in "xyz"]


def turn_features(features: np.ndarray, names: Sequence[str], matrix: np.ndarray) -> np.ndarray:
    """The features (T, 31) of crops that are mirrored or rotated: those that `shape_features` and the others give for the turned particle.

    Args:
        features: rows of `names`.
        names: `SHAPE_FEATURES`, then `BOUNDARY_FEATURES` or `CONTEXT_FEATURES`; of axes that are exchanged, the detector has the same length.
        matrix: signed permutation of the axes (3, 3); new = matrix @ old for directions.

    Raises:
        ValueError: scaled crops (`CONTEXT_FEATURES`) and a matrix that changes z, by which the start of their particles is chosen.
    """
    source, sign = np.abs(matrix).argmax(axis=1), matrix.sum(axis=1)
    if CONTEXT_FEATURES[0] in names and matrix[2, 2] != 1:
        raise ValueError("in scaled crops the start of a particle is its end with the smaller z: mirror x and y, and rotate about z, only")
    turned = np.array(features)

    def columns(name: str) -> list[int]:
        return _columns_of_axes(tuple(names), name)

    for name in ("centroid", "start"):
        turned[:, columns(name)] = np.where(sign > 0, features[:, columns(name)][:, source], 1 - features[:, columns(name)][:, source])
    turned[:, columns("extent")] = features[:, columns("extent")][:, source]
    turned[:, columns("direction")] = features[:, columns("direction")] @ matrix.T
    if BOUNDARY_FEATURES[0] in names:
        low, high = (features[:, columns(f"distance_{side}")][:, source] for side in ("low", "high"))
        turned[:, columns("distance_low")] = np.where(sign > 0, low, high)
        turned[:, columns("distance_high")] = np.where(sign > 0, high, low)
    return turned


def crop_detector(
    spec: DetectorSpec, shape: Sequence[int], patch: Sequence[int], window: Sequence[int], fit: str, features: bool = True
) -> DetectorSpec:
    """The detector that crops of another belong to: one small grid, and the 31 features as a track branch with one track.

    Published: shape (120, 120, 120), patch (12, 12, 10), window (2, 2, 2), `"clamp"` for `superfgd`; (168, 168, 180), (12, 12, 10),
    (2, 2, 3), `"scale"` for `pilarnet`.

    Args:
        fit: `"clamp"` or `"scale"`.
        features: False leaves the track branch out, and crops have voxels only.
    """
    branch = spec.voxel_branches[0]
    small = VoxelBranch(branch.name, tuple(shape), branch.voxel_size, (0, 0, 0), tuple(patch), tuple(window), branch.channels, None, branch.labels)
    context = TrackBranch(CONTEXT_BRANCH, _feature_names(fit), 1)
    text = f"Crops of {'x'.join(map(str, shape))} voxels around single particles of {spec.name!r} ({fit})."
    return DetectorSpec(f"{spec.name}-crop", (small, context) if features else (small,), {"particle": spec.classes("particle")}, text)


def _feature_names(fit: str) -> tuple[str, ...]:
    if fit not in ("clamp", "scale"):
        raise ValueError(f"fit={fit!r} is neither 'clamp' nor 'scale'")
    return SHAPE_FEATURES + (BOUNDARY_FEATURES if fit == "clamp" else CONTEXT_FEATURES)


def crop_particle(event: Event, spec: DetectorSpec, crop_spec: DetectorSpec) -> Event:
    """The clamped crop of an event with one particle; truth and provenance stay (positions and momenta in the detector's frame).

    Features: shape inside the crop (`containment` is the share of voxels on a face of the crop; the start is the end with less
    energy) and `BOUNDARY_FEATURES`.

    Raises:
        ValueError: the event is empty, or the crop is: all voxels are far from the middle of their bounding box.
    """
    source, small = spec.voxel_branches[0], crop_spec.voxel_branches[0]
    try:
        crop = crop_clamped(event.voxels[source.name], source.shape, small.shape)
    except (KeyError, ValueError) as error:
        raise ValueError(f"{event}: {error}") from error
    if not len(crop.rows):
        raise ValueError(f"{event}: no voxel lies in the crop around the middle of its bounding box")
    coordinates = crop.voxels.coordinates
    on_face = float(((coordinates == 0) | (coordinates == np.asarray(small.shape) - 1)).any(axis=1).mean())
    shape = shape_features(coordinates, crop.voxels.energy, small.shape, on_face, "low_energy")
    features = np.concatenate([shape, boundary_features(crop.origin, source.shape, small.shape)])
    kept = {k: v for k, v in event.truth.items() if k not in spec.event_labels or k in crop_spec.event_labels}
    return _crop_event(crop, crop_spec, features, kept, event)


def particle_crops(event: Event, spec: DetectorSpec, crop_spec: DetectorSpec, min_voxels: int = MIN_VOXELS) -> Iterator[Event]:
    """Scaled crops of the particles of an image, in the order of their ids.

    A particle is the voxels of one `particle` instance; those with fewer than `min_voxels` voxels, or without a class in the event's
    particle table, are left out. Features: shape in the detector (`containment` is the scale of the crop; the start is the end with the
    smaller z) and `CONTEXT_FEATURES` among the particles that are kept. `truth["particle"]` is the class; `provenance` is the image's, so
    that grouping a split by it keeps an image together; `particles` has the one row of the particle. An image that knows no classes, as
    real data, gives crops of all its instances without them.

    Raises:
        ValueError: the image has no `particle` instances.
    """
    source, small = spec.voxel_branches[0], crop_spec.voxel_branches[0]
    voxels = event.voxels.get(source.name)
    if voxels is None or "particle" not in voxels.instances:
        raise ValueError(f"{event} has no particle instances to crop around")
    instances = voxels.instances["particle"]
    table = event.particles if "id" in event.particles else {"id": np.unique(instances[instances >= 0])}
    labels = table.get("label")
    kept = []
    for row in np.argsort(table["id"], kind="stable"):
        rows = np.flatnonzero(instances == table["id"][row])
        if len(rows) >= max(min_voxels, 1) and (labels is None or labels[row] >= 0):
            kept.append((int(row), voxels.select(rows)))
    if not kept:
        return
    crops = [crop_scaled(v, small) for _, v in kept]
    shapes = np.stack([shape_features(v.coordinates, v.energy, source.shape, c.scale, "low_z") for (_, v), c in zip(kept, crops)])
    context = context_features(shapes[:, :3], np.array([len(v) for _, v in kept]), np.array([v.energy.sum() for _, v in kept]))
    for (row, _), crop, features in zip(kept, crops, np.concatenate([shapes, context], axis=1)):
        truth = {} if labels is None else {"particle": int(labels[row])}
        if "pdg" in table:
            truth["particle_pdg"] = int(table["pdg"][row])
        out = _crop_event(crop, crop_spec, features, truth, event)
        out.particles = {k: v[[row]] for k, v in table.items()}
        yield out


def _crop_event(crop: Crop, crop_spec: DetectorSpec, features: np.ndarray, truth: dict, event: Event) -> Event:
    branch = crop_spec.voxel_branches[0]
    return Event(
        crop_spec.name,
        {branch.name: replace(crop.voxels, instances={})},
        tracks={} if crop_spec.track_branch is None else {CONTEXT_BRANCH: features[None].astype(np.float32)},
        truth=truth,
        provenance=dict(event.provenance),
    )
