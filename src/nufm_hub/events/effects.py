"""Imperfections of a detector, applied to finished events: how much does a model lose when the real detector is not the simulated one?"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from nufm_hub.detectors import DetectorSpec, ImageBranch, VoxelBranch

from .event import Event, Voxels
from .voxelise import merge_voxels

CROSSTALK_LABEL = "crosstalk"
_NEIGHBOURS = np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]])
_SMALLEST_SHARE = 1e-4  # of a voxel's charge that is worth moving to another one


@dataclass(frozen=True)
class DetectorEffects:
    """Detector effects, all off unless set; they act in the order given here, on every voxel branch.

    Labels and instances follow the energy: where energies meet in a voxel, label shares mix by energy and the largest contribution gives the
    instance. Noise is unlabelled. Raw hits keep pointing to the voxel they were in, and go with it when it is lost. Truth is not touched.

    Attributes:
        lifetime: of drifting electrons in microseconds; energies fall by exp(-t / lifetime), t = distance to the anode / drift velocity.
        diffusion: coefficients (along, across the drift) in mm^2 per microsecond; the charge of a voxel, taken as a point in its centre, is shared
            out to the voxels around by a Gaussian of width sqrt(2 D t) (Einstein). Charge that would leave the grid stays.
        drift_velocity: mm per microsecond.
        drift_axis: 0, 1 or 2.
        anode: at the `"low"` or `"high"` face of the branch along that axis.
        crosstalk: what leaks into each of the six neighbours as a share of what stays in the voxel; what would leave the grid, or a block of layers,
            stays. Energy that leaked carries the label `crosstalk` where voxels have it.
        noise_rate: mean number of noise hits a voxel of the grid (Poisson), uniform in the grid.
        noise_energy: mean energy of a noise hit in MeV (exponential).
        dead: share of dead voxels, and of dead towers of an image. Which ones are dead depends on `dead_seed` only: the same in every event.
        dead_seed: chooses the dead channels.
        energy_scale: factor on every energy, images too.
        energy_smearing: relative width of a lognormal factor of mean 1 on each energy, images too.
        threshold: MeV below which a voxel is dropped in the end.

    Raises:
        ValueError: a strength out of range.
    """

    lifetime: float = math.inf
    diffusion: tuple[float, float] = (0.0, 0.0)
    drift_velocity: float = 1.6
    drift_axis: int = 0
    anode: str = "low"
    crosstalk: float = 0.0
    noise_rate: float = 0.0
    noise_energy: float = 1.0
    dead: float = 0.0
    dead_seed: int = 0
    energy_scale: float = 1.0
    energy_smearing: float = 0.0
    threshold: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "diffusion", tuple(float(d) for d in self.diffusion))
        for name in ("lifetime", "drift_velocity", "noise_energy", "energy_scale"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} = {getattr(self, name)}: must be positive")
        for name, highest in (("crosstalk", 0.3), ("noise_rate", 1), ("dead", 1), ("energy_smearing", 2), ("threshold", math.inf)):
            if not 0 <= getattr(self, name) <= highest:
                raise ValueError(f"{name} = {getattr(self, name)}: must be from 0 to {highest}")
        if len(self.diffusion) != 2 or not 0 <= min(self.diffusion) <= max(self.diffusion) < math.inf:
            raise ValueError(f"diffusion = {self.diffusion}: give two coefficients, along and across the drift, that are not negative")
        if self.drift_axis not in (0, 1, 2) or self.anode not in ("low", "high"):
            raise ValueError(f"drift_axis = {self.drift_axis}, anode = {self.anode!r}: give an axis from 0 to 2, and 'low' or 'high'")

    @classmethod
    def of(cls, detector: str, **changes: Any) -> DetectorEffects:
        """Plausible strengths for a packaged detector (`effects.json` says where they come from), with `changes`.

        Raises:
            ValueError: no strengths for this detector, or unknown names in `changes`.
        """
        held = json.loads(Path(__file__).with_name("effects.json").read_text(encoding="utf-8"))
        if detector not in held:
            raise ValueError(f"no default effects for detector {detector!r}; there are some for {sorted(held)}")
        if unknown := set(changes) - {f.name for f in fields(cls)}:
            raise ValueError(f"unknown effects {sorted(unknown)}; there are {[f.name for f in fields(cls)]}")
        return cls(**{**held[detector]["strengths"], **changes})

    def __call__(self, event: Event, spec: DetectorSpec, rng: np.random.Generator) -> Event:
        """A changed copy of the event; the same generator state gives the same copy."""
        voxels = {b.name: self._voxels(event.voxels[b.name], b, rng) for b in spec.voxel_branches if b.name in event.voxels}
        images = {b.name: self._image(event.images[b.name], b, rng) for b in spec.image_branches if b.name in event.images}
        return replace(event, voxels=voxels, images=images)

    def dead_channels(self, branch: VoxelBranch | ImageBranch, coordinates: np.ndarray) -> np.ndarray:
        """Which voxels or towers (N, dimensions) of a branch are dead, bool (N,)."""
        flat = np.ravel_multi_index(tuple(np.asarray(coordinates, dtype=np.int64).T), branch.shape).astype(np.uint64)
        key = hashlib.sha256(f"{self.dead_seed}|{branch.name}".encode()).digest()
        return _uniform(flat, np.uint64(int.from_bytes(key[:8], "big"))) < self.dead

    def _voxels(self, voxels: Voxels, branch: VoxelBranch, rng: np.random.Generator) -> Voxels:
        if math.isfinite(self.lifetime):
            voxels = _scaled(voxels, np.exp(-self._drift_time(voxels, branch) / self.lifetime))
        if any(self.diffusion) and len(voxels):
            voxels = self._diffuse(voxels, branch)
        if self.crosstalk and len(voxels):
            share = np.full(len(_NEIGHBOURS) * len(voxels), self.crosstalk / (1 + len(_NEIGHBOURS) * self.crosstalk))
            target = (voxels.coordinates.astype(np.int64) + _NEIGHBOURS[:, None]).reshape(-1, 3)
            voxels = _share_out(voxels, branch, np.tile(np.arange(len(voxels)), len(_NEIGHBOURS)), target, share, leaks=True)
        if self.noise_rate:
            voxels = self._add_noise(voxels, branch, rng)
        if self.dead:
            voxels = voxels.select(~self.dead_channels(branch, voxels.coordinates))
        if (factor := self._factor(len(voxels), rng)) is not None:
            voxels = _scaled(voxels, factor)
        return voxels.select(voxels.energy >= self.threshold) if self.threshold else voxels

    def _image(self, image: np.ndarray, branch: ImageBranch, rng: np.random.Generator) -> np.ndarray:
        image = np.asarray(image, dtype=np.float32)
        if self.dead:
            towers = np.indices(branch.shape).reshape(len(branch.shape), -1).T
            image = np.where(self.dead_channels(branch, towers).reshape(branch.shape), np.float32(0), image)
        if (factor := self._factor(image.size, rng)) is not None:
            image = (image * np.reshape(factor, image.shape)).astype(np.float32)
        return image

    def _factor(self, size: int, rng: np.random.Generator) -> np.ndarray | None:
        if self.energy_scale == 1 and not self.energy_smearing:
            return None
        width = self.energy_smearing
        return self.energy_scale * np.exp(width * rng.standard_normal(size) - width**2 / 2)

    def _drift_time(self, voxels: Voxels, branch: VoxelBranch) -> np.ndarray:
        """Microseconds (N,)."""
        position = branch.to_mm(voxels.coordinates)[:, self.drift_axis]
        face = branch.bounds[int(self.anode == "high"), self.drift_axis]
        return np.abs(position - face) / self.drift_velocity

    def _diffuse(self, voxels: Voxels, branch: VoxelBranch) -> Voxels:
        from scipy.special import erf

        time = self._drift_time(voxels, branch)
        share, steps = np.ones((len(voxels), 1)), np.zeros((1, 3), dtype=np.int64)
        for axis, size in enumerate(branch.voxel_size):
            width = np.sqrt(2 * self.diffusion[int(axis != self.drift_axis)] * time)
            reach = math.ceil(4 * width.max(initial=0) / size)
            number = np.arange(-reach, reach + 1)
            edges = np.append(number, reach + 1) - 0.5
            own = np.diff(0.5 * erf(edges * size / (np.sqrt(2) * np.maximum(width, 1e-9)[:, None])), axis=1)
            share = (share[:, :, None] * own[:, None, :]).reshape(len(voxels), -1)
            axis_steps = np.zeros((len(number), 3), dtype=np.int64)
            axis_steps[:, axis] = number
            steps = (steps[:, None] + axis_steps).reshape(-1, 3)
        row, step = np.nonzero((share >= _SMALLEST_SHARE) & steps.any(axis=1))
        return _share_out(voxels, branch, row, voxels.coordinates[row] + steps[step], share[row, step])

    def _add_noise(self, voxels: Voxels, branch: VoxelBranch, rng: np.random.Generator) -> Voxels:
        cells = math.prod(branch.shape)
        count = rng.poisson(self.noise_rate * cells)
        place = np.stack(np.unravel_index(rng.integers(0, cells, count), branch.shape), axis=1)
        values = np.zeros((count, voxels.values.shape[1]))
        values[:, 0] = rng.exponential(self.noise_energy, count)
        labels = {k: np.concatenate([v, np.full((count, v.shape[1]), np.nan if v.shape[1] == 1 else 0.0)]) for k, v in voxels.labels.items()}
        instances = {k: np.concatenate([v, np.full(count, -1)]) for k, v in voxels.instances.items()}
        merged = merge_voxels(np.concatenate([voxels.coordinates, place]), np.concatenate([voxels.values, values]), branch, labels, instances)
        return _with_hits(merged, voxels)


def distort(events: Iterable[Event], spec: DetectorSpec, effects: DetectorEffects, seed: int = 0) -> Iterator[Event]:
    """Events with effects; each depends on the seed and its position in the stream only."""
    for position, event in enumerate(events):
        yield effects(event, spec, np.random.default_rng([seed, position]))


def _scaled(voxels: Voxels, factor: np.ndarray) -> Voxels:
    values = voxels.values.copy()
    values[:, 0] *= factor
    return replace(voxels, values=values)


def _share_out(voxels: Voxels, branch: VoxelBranch, row: np.ndarray, target: np.ndarray, share: np.ndarray, leaks: bool = False) -> Voxels:
    """Move the share (M,) of the energy of each voxel `row` (M,) to `target` (M, 3), unless that lies outside its grid or block."""
    n = len(voxels)
    inside = ((target >= 0) & (target < np.asarray(branch.shape))).all(axis=1)
    if branch.blocks is not None:
        axis, length = branch.blocks.axis, branch.blocks.length
        inside &= target[:, axis] // length == voxels.coordinates[row, axis] // length
    row, target, share = row[inside], target[inside], share[inside]
    source = np.concatenate([np.arange(n), row])
    part = np.concatenate([1 - np.bincount(row, share, n), share])
    values = voxels.values[source].astype(np.float64)
    energy = values[:, 0] * part
    # Channels other than the energy do not add up: their mean is weighted with the energy.
    columns = np.column_stack([energy, values[:, 1:] * energy[:, None]])
    labels = {k: v[source] for k, v in voxels.labels.items()}
    if leaks and CROSSTALK_LABEL in labels:
        labels[CROSSTALK_LABEL][n:] = 1
    merged = merge_voxels(np.concatenate([voxels.coordinates, target]), columns, branch, labels, {k: v[source] for k, v in voxels.instances.items()})
    merged.values[:, 1:] /= np.where(merged.energy > 0, merged.energy, 1)[:, None]
    return _with_hits(merged, voxels)


def _with_hits(merged: Voxels, voxels: Voxels) -> Voxels:
    """Raw hits of `voxels`, whose rows were the first ones to be merged, in `merged`."""
    hits = None if voxels.voxel_of_hit is None else merged.voxel_of_hit[: len(voxels)][voxels.voxel_of_hit]
    return replace(merged, voxel_of_hit=hits)


def _uniform(number: np.ndarray, key: np.uint64) -> np.ndarray:
    """Numbers in [0, 1) that look random, one for each uint64: the finaliser of SplitMix64 (Steele et al., OOPSLA 2014)."""
    with np.errstate(over="ignore"):
        z = number * np.uint64(0x9E3779B97F4A7C15) + key
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return (z >> np.uint64(11)) * 2.0**-53
