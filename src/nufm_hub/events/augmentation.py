"""Augmentation of whole events: what is known to leave the physics unchanged, applied to hits and truth alike."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from nufm_hub.detectors import DetectorSpec, ImageBranch, TrackBranch, VoxelBranch

from .crops import CONTEXT_BRANCH, turn_features
from .event import Event, Voxels

_VECTORS = ("neutrino_momentum", "visible_momentum", "jet_momentum", "lepton_momentum", "particle_momentum")
_POSITIONS = ("vertex", "particle_position")
_TRACK_MOMENTUM, _TRACK_POSITION = ("px", "py", "pz"), ("x", "y", "z")


@dataclass(frozen=True)
class Augmentation:
    """Random mirrors, rotations, shifts, energy changes and hit losses; defaults as in arXiv:2604.07037, but for `energy_scale`.

    Mirrors of x and y are allowed although a magnet bends muons along one axis: tracks are momenta and charge as reconstructed in front of it, not
    curvatures, and a mirrored event keeps its charges. Energy loss and showers have no handedness, the calorimeters no field, and the simulated
    neutrinos fly along z from a disc around the axis. What is left is the spectrometer's acceptance, which differs by less than 0.3 % between a muon
    and its mirror image of one charge. A mirror of z turns the beam round, and one of y the cosmic-like muons of `pilarnet`: hits and truth still
    agree, but no such events are measured.

    Attributes:
        mirror_axes: each of these axes is mirrored with probability 1/2.
        rotate_axes: a rotation by 0, 90, 180 or 270 degrees about each of these axes; by 0 or 180 degrees where a quarter turn would not map the
            detector onto itself, or would exchange a component of tracks that models see with one that they do not (`model_features`).
        max_shift: largest shift along x and along y in voxels of the first branch, see `shift`; none along an axis that `shift` refuses.
        energy_scale: width of a lognormal factor common to all calorimeter energies of the event. Off, since it is a calibration uncertainty and not
            a symmetry: the momenta in the truth stay, so that no model can learn them better than to about this width. Set it to make a model
            robust against a calibration that is known no better.
        energy_jitter: width of a lognormal factor of each voxel.
        noise: (a, b) of Gaussian noise of width a sqrt(E) + b, E in MeV, on each voxel; an energy cannot fall below 1 % of its value.
        max_drop: the share of voxels lost is uniform between 0 and this.
    """

    mirror_axes: tuple[int, ...] = (0, 1)
    rotate_axes: tuple[int, ...] = (2,)
    max_shift: int = 4
    energy_scale: float = 0.0
    energy_jitter: float = 0.12
    noise: tuple[float, float] = (0.06, 0.18)
    max_drop: float = 0.05

    def __post_init__(self) -> None:
        for name in ("mirror_axes", "rotate_axes", "noise"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not set(self.mirror_axes) | set(self.rotate_axes) <= {0, 1, 2}:
            raise ValueError(f"augmentation axes are 0, 1, 2; got mirror_axes={self.mirror_axes}, rotate_axes={self.rotate_axes}")
        if len(self.noise) != 2 or min(self.max_shift, self.energy_scale, self.energy_jitter, *self.noise, self.max_drop) < 0 or self.max_drop >= 1:
            raise ValueError(f"augmentation strengths must not be negative and max_drop must stay below 1: {self}")

    def __call__(self, event: Event, spec: DetectorSpec, rng: np.random.Generator) -> Event:
        """A changed copy of the event; the same generator state gives the same copy.

        Raises:
            ValueError: anything but mirrors and rotations for crops with features, which do not follow.
        """
        others = (self.max_shift, self.energy_scale, self.energy_jitter, *self.noise, self.max_drop)
        if any(others) and any(branch.name == CONTEXT_BRANCH for branch in spec.track_branches):
            raise ValueError("the features of crops follow mirrors and rotations only: set the other strengths of the augmentation to 0")
        event = orient(event, spec, self._orientation(spec, rng))
        if not any(others):
            return event
        if self.max_shift:
            steps = rng.integers(-self.max_shift, self.max_shift + 1, 2)
            event = _move(event, spec, [int(step) if _shiftable(spec, axis) else 0 for axis, step in enumerate(steps)], rng)
        scale = rng.lognormal(0.0, self.energy_scale)
        drop = rng.uniform(0.0, self.max_drop)
        voxels = {b.name: self._smear(event.voxels[b.name], b, scale, drop, rng) for b in spec.voxel_branches if b.name in event.voxels}
        images = {name: (image * scale).astype(np.float32) for name, image in event.images.items()}
        return replace(event, voxels=voxels, images=images)

    def _orientation(self, spec: DetectorSpec, rng: np.random.Generator) -> np.ndarray:
        matrix = np.eye(3, dtype=np.int64)
        for axis in self.mirror_axes:
            if rng.random() < 0.5:
                matrix[axis] *= -1
        for axis in self.rotate_axes:
            a, b = (i for i in range(3) if i != axis)
            turns = int(rng.integers(4)) if _exchangeable(spec, a, b) else 2 * int(rng.integers(2))
            quarter = np.eye(3, dtype=np.int64)
            quarter[[a, b]] = quarter[[b, a]] * np.array([[-1], [1]])
            matrix = np.linalg.matrix_power(quarter, turns) @ matrix
        return matrix

    def _smear(self, voxels: Voxels, branch: VoxelBranch, scale: float, drop: float, rng: np.random.Generator) -> Voxels:
        """The voxels inside the grid, less those dropped, with changed energies."""
        inside = _inside(voxels, branch)
        kept = inside & (rng.random(len(voxels)) >= drop)
        voxels = voxels.select(kept if kept.any() else inside)  # a copy
        jitter, noise = rng.standard_normal((2, len(voxels)), dtype=np.float32)
        energy = voxels.energy * scale * np.exp(self.energy_jitter * jitter)
        a, b = self.noise
        voxels.values[:, 0] = np.maximum(energy + (a * np.sqrt(energy) + b) * noise, 0.01 * energy)
        return voxels


def _exchangeable(spec: DetectorSpec, a: int, b: int) -> bool:
    """Whether axes a and b of every branch look the same, so that a quarter turn maps the detector, and what models see of it, onto itself."""
    for branch in spec.voxel_branches:
        if any(x[a] != x[b] for x in (branch.shape, branch.voxel_size, branch.patch, branch.window)):
            return False
        if branch.blocks is not None and branch.blocks.axis in (a, b):
            return False
    for branch in spec.track_branches:
        for columns, names in product((branch.features, branch.model_features), (_TRACK_MOMENTUM, _TRACK_POSITION)):
            if (names[a] in columns) != (names[b] in columns):
                return False
    square = (len(i.shape) == 2 and all(len(set(x)) <= 1 for x in (i.shape, i.pixel_size)) for i in spec.image_branches)
    return all({a, b} == {0, 1} and s for s in square)


def _shiftable(spec: DetectorSpec, axis: int) -> bool:
    """Whether every branch can follow a shift along an axis: it has no gaps there, and an image says how large its pixels are."""
    gaps = any(branch.blocks is not None and branch.blocks.axis == axis for branch in spec.voxel_branches)
    return not gaps and all(len(i.pixel_size) == len(i.shape) for i in spec.image_branches)


def _inside(voxels: Voxels, branch: VoxelBranch) -> np.ndarray:
    """Which voxels lie in the grid of their branch, bool (N,)."""
    inside = np.ones(len(voxels), dtype=bool)
    for along, size in zip(voxels.coordinates.T, branch.shape):  # a column at a time is five times as fast as all three
        inside &= (along >= 0) & (along < size)
    return inside


def orient(event: Event, spec: DetectorSpec, matrix: np.ndarray) -> Event:
    """Mirror and rotate an event about the centre of its detector.

    Args:
        matrix: signed permutation of the axes (3, 3); new = matrix @ old for directions.

    Raises:
        ValueError: the matrix exchanges two axes of which tracks have one component only.
    """
    source = np.abs(matrix).argmax(axis=1)
    sign = matrix.sum(axis=1)
    voxels, images, tracks, truth = dict(event.voxels), dict(event.images), dict(event.tracks), dict(event.truth)
    particles = dict(event.particles)
    centre = spec.voxel_branches[0].bounds.mean(axis=0)
    for branch in spec.voxel_branches:
        if branch.name in voxels:
            old = voxels[branch.name].coordinates[:, source]
            for along, size, s in zip(old.T, np.asarray(branch.shape)[source].tolist(), sign):
                if s < 0:
                    np.subtract(size - 1, along, out=along)
            voxels[branch.name] = replace(voxels[branch.name], coordinates=old)
    for branch in spec.image_branches:
        if branch.name in images:
            image = images[branch.name].transpose([s for s in source if s < len(branch.shape)])
            images[branch.name] = np.flip(image, axis=[a for a in range(len(branch.shape)) if sign[a] < 0])
    for branch in spec.track_branches:
        if branch.name in tracks and branch.name == CONTEXT_BRANCH:
            tracks[branch.name] = turn_features(tracks[branch.name], branch.features, matrix)
        elif branch.name in tracks:
            tracks[branch.name] = _turn_tracks(tracks[branch.name], branch, source, sign, centre)
    for table, vectors, positions in ((truth, _VECTORS, _POSITIONS), (particles, ("momentum",), ("vertex",))):
        for name in vectors:
            if name in table:
                table[name] = np.asarray(table[name]) @ matrix.T
        for name in positions:
            if name in table:
                # Row vectors; the centre is a fixed point of the detector's own symmetries.
                table[name] = (np.asarray(table[name]) - centre) @ matrix.T + centre
    return replace(event, voxels=voxels, images=images, tracks=tracks, truth=truth, particles=particles)


def _turn_tracks(tracks: np.ndarray, branch: TrackBranch, source: np.ndarray, sign: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Tracks (T, F) with their momentum turned, and their position about the centre, as far as they have components of them."""
    tracks = np.asarray(tracks, dtype=np.float32)
    turned, column = tracks.copy(), {name: i for i, name in enumerate(branch.features)}
    for names, fixed in ((_TRACK_MOMENTUM, np.zeros(3)), (_TRACK_POSITION, centre)):
        for axis, old in enumerate(source):
            if names[axis] in column and names[old] not in column:
                raise ValueError(f"branch {branch.name!r}: tracks have {names[axis]!r} but not {names[old]!r}, and cannot exchange these axes")
            if names[axis] in column:
                turned[:, column[names[axis]]] = fixed[axis] + sign[axis] * (tracks[:, column[names[old]]] - fixed[old])
    return turned


def shift(event: Event, spec: DetectorSpec, steps: Iterable[int], rng: np.random.Generator) -> Event:
    """Move an event along x and y by whole voxels of the first branch; what leaves the grid or the image is lost, momenta stay.

    Other voxel branches move by whole voxels of their own, rounded up or down at random so that the mean over many draws is the shift. Images share
    the energy of each pixel between the two that it then overlaps along each axis, in proportion to the overlap.

    Args:
        steps: voxels of the first branch along x and y.
        rng: rounds the steps of the other voxel branches.

    Raises:
        ValueError: a shift along an axis where a voxel branch has `blocks`, whose gaps do not move, or where an image has no `pixel_size`.
    """
    event = _move(event, spec, steps, rng)
    voxels = {b.name: event.voxels[b.name].select(_inside(event.voxels[b.name], b)) for b in spec.voxel_branches if b.name in event.voxels}
    return replace(event, voxels=voxels)


def _move(event: Event, spec: DetectorSpec, steps: Iterable[int], rng: np.random.Generator) -> Event:
    """`shift` that leaves voxels outside the grid, so that one selection drops them and others."""
    steps = np.array([*steps, 0])
    for axis in np.flatnonzero(steps):
        if not _shiftable(spec, axis):
            raise ValueError(
                f"detector {spec.name!r} cannot be shifted by {steps[axis]} voxels along {'xyz'[axis]}: a voxel branch has blocks along it, or an "
                "image has no pixel_size; give the latter, or shift by 0"
            )
    millimetres = steps * np.asarray(spec.voxel_branches[0].voxel_size)
    voxels, images, tracks = dict(event.voxels), dict(event.images), dict(event.tracks)
    truth, particles = dict(event.truth), dict(event.particles)
    for branch in spec.voxel_branches:
        if branch.name in voxels:
            own = np.floor(millimetres / np.asarray(branch.voxel_size) + rng.random(3))
            moved = voxels[branch.name].coordinates.copy()
            for axis in np.flatnonzero(own):
                moved[:, axis] += int(own[axis])
            voxels[branch.name] = replace(voxels[branch.name], coordinates=moved)
    for branch in spec.image_branches:
        if branch.name in images and steps.any():
            images[branch.name] = _move_image(images[branch.name], branch, millimetres)
    for branch in spec.track_branches:
        if branch.name in tracks:
            tracks[branch.name] = _move_tracks(tracks[branch.name], branch, millimetres)
    for table, names in ((truth, _POSITIONS), (particles, ("vertex",))):
        for name in names:
            if name in table:
                table[name] = np.asarray(table[name]) + millimetres
    return replace(event, voxels=voxels, images=images, tracks=tracks, truth=truth, particles=particles)


def _move_image(image: np.ndarray, branch: ImageBranch, millimetres: np.ndarray) -> np.ndarray:
    from scipy.ndimage import shift as interpolate  # here, since importing it takes longer than everything else in this file

    # "grid-constant" has zeros around the image; "constant" would also lose what lies between an edge and the middle of its pixels.
    pixels = millimetres[: len(branch.shape)] / np.asarray(branch.pixel_size)
    return interpolate(np.asarray(image, dtype=np.float32), pixels, order=1, mode="grid-constant")


def _move_tracks(tracks: np.ndarray, branch: TrackBranch, millimetres: np.ndarray) -> np.ndarray:
    moved = np.array(tracks, dtype=np.float32)
    for name, distance in zip(_TRACK_POSITION, millimetres):
        if name in branch.features:
            moved[:, branch.features.index(name)] += distance
    return moved
