"""Augmentation of whole events: what is known to leave the physics unchanged, applied to hits and truth alike."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from nufm_hub.detectors import DetectorSpec

from .crops import CONTEXT_BRANCH, turn_features
from .event import Event, Voxels

_VECTORS = ("neutrino_momentum", "visible_momentum", "jet_momentum", "lepton_momentum", "particle_momentum")
_POSITIONS = ("vertex", "particle_position")


@dataclass(frozen=True)
class Augmentation:
    """Random mirrors, rotations, shifts, energy changes and hit losses; defaults as in arXiv:2604.07037.

    Attributes:
        mirror_axes: each of these axes is mirrored with probability 1/2.
        rotate_axes: a rotation by 0, 90, 180 or 270 degrees about each of these axes, where the grids of the detector allow it.
        max_shift: largest shift along x and along y in voxels of the first branch; other voxel branches move by the nearest whole
            number of their own voxels, images do not move. Voxels pushed out of the grid are lost.
        energy_scale: width of a lognormal factor common to all calorimeter energies of the event.
        energy_jitter: width of a lognormal factor of each voxel.
        noise: (a, b) of Gaussian noise of width a sqrt(E) + b, E in MeV, on each voxel; an energy cannot fall below 1 % of its value.
        max_drop: the share of voxels lost is uniform between 0 and this.
    """

    mirror_axes: tuple[int, ...] = (0, 1)
    rotate_axes: tuple[int, ...] = (2,)
    max_shift: int = 4
    energy_scale: float = 0.1
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
            event = shift(event, spec, rng.integers(-self.max_shift, self.max_shift + 1, 2))
        scale = rng.lognormal(0.0, self.energy_scale)
        drop = rng.uniform(0.0, self.max_drop)
        voxels = {name: self._smear(v, scale, drop, rng) for name, v in event.voxels.items()}
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

    def _smear(self, voxels: Voxels, scale: float, drop: float, rng: np.random.Generator) -> Voxels:
        if not len(voxels):
            return voxels
        energy = voxels.energy * scale * rng.lognormal(0.0, self.energy_jitter, len(voxels))
        a, b = self.noise
        energy = np.maximum(energy + (a * np.sqrt(energy) + b) * rng.standard_normal(len(voxels)), 0.01 * energy)
        values = voxels.values.copy()
        values[:, 0] = energy
        kept = rng.random(len(voxels)) >= drop
        return replace(voxels, values=values).select(kept if kept.any() else slice(None))


def _exchangeable(spec: DetectorSpec, a: int, b: int) -> bool:
    """Whether axes a and b of every branch look the same, so that a quarter turn maps the detector onto itself."""
    for branch in spec.voxel_branches:
        if any(x[a] != x[b] for x in (branch.shape, branch.voxel_size, branch.patch, branch.window)):
            return False
        if branch.blocks is not None and branch.blocks.axis in (a, b):
            return False
    return all({a, b} == {0, 1} and len(i.shape) == 2 and i.shape[0] == i.shape[1] for i in spec.image_branches)


def orient(event: Event, spec: DetectorSpec, matrix: np.ndarray) -> Event:
    """Mirror and rotate an event about the centre of its detector.

    Args:
        matrix: signed permutation of the axes (3, 3); new = matrix @ old for directions.
    """
    source = np.abs(matrix).argmax(axis=1)
    sign = matrix.sum(axis=1)
    voxels, images, tracks, truth = dict(event.voxels), dict(event.images), dict(event.tracks), dict(event.truth)
    particles = dict(event.particles)
    for branch in spec.voxel_branches:
        if branch.name in voxels:
            old = voxels[branch.name].coordinates[:, source]
            new = np.where(sign > 0, old, np.asarray(branch.shape)[source] - 1 - old)
            voxels[branch.name] = replace(voxels[branch.name], coordinates=new)
    for branch in spec.image_branches:
        if branch.name in images:
            image = images[branch.name].transpose([s for s in source if s < len(branch.shape)])
            images[branch.name] = np.flip(image, axis=[a for a in range(len(branch.shape)) if sign[a] < 0])
    for branch in spec.track_branches:
        if branch.name in tracks and {"px", "py", "pz"} <= set(branch.features):
            columns = [branch.features.index(c) for c in ("px", "py", "pz")]
            turned = np.array(tracks[branch.name], dtype=np.float32)
            turned[:, columns] = turned[:, columns] @ matrix.T
            tracks[branch.name] = turned
        elif branch.name in tracks and branch.name == CONTEXT_BRANCH:
            tracks[branch.name] = turn_features(tracks[branch.name], branch.features, matrix)
    centre = spec.voxel_branches[0].bounds.mean(axis=0)
    for table, vectors, positions in ((truth, _VECTORS, _POSITIONS), (particles, ("momentum",), ("vertex",))):
        for name in vectors:
            if name in table:
                table[name] = np.asarray(table[name]) @ matrix.T
        for name in positions:
            if name in table:
                # Row vectors; the centre is a fixed point of the detector's own symmetries.
                table[name] = (np.asarray(table[name]) - centre) @ matrix.T + centre
    return replace(event, voxels=voxels, images=images, tracks=tracks, truth=truth, particles=particles)


def shift(event: Event, spec: DetectorSpec, steps: Iterable[int]) -> Event:
    """Move an event along x and y by whole voxels of the first branch; momenta and images stay."""
    millimetres = np.array([*steps, 0]) * np.asarray(spec.voxel_branches[0].voxel_size)
    voxels, truth, particles = dict(event.voxels), dict(event.truth), dict(event.particles)
    for branch in spec.voxel_branches:
        if branch.name in voxels:
            own = np.rint(millimetres / np.asarray(branch.voxel_size)).astype(np.int64)
            moved = voxels[branch.name].coordinates + own
            inside = ((moved >= 0) & (moved < np.asarray(branch.shape))).all(axis=1)
            voxels[branch.name] = replace(voxels[branch.name], coordinates=moved).select(inside)
    for table, names in ((truth, _POSITIONS), (particles, ("vertex",))):
        for name in names:
            if name in table:
                table[name] = np.asarray(table[name]) + millimetres
    return replace(event, voxels=voxels, truth=truth, particles=particles)
