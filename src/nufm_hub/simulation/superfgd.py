"""Single particles in a SuperFGD-like tracker: Geant4 in a block of scintillator, light shared between cubes, photons counted.

There is no magnetic field, so the sign of a charge cannot be seen, and no readout along fibres: a voxel is a cube and its value the light of its
three fibres. Numbers after the SuperFGD prototype: Blondel et al., JINST 15 (2020) P12003, arXiv:2008.08861.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from nufm_hub.detectors import DetectorSpec, load_detector
from nufm_hub.events import Event, Voxels

from .gun import READOUT_WINDOW, GunSimulation, Primary, isotropic_direction, kinetic_energy, shoot
from .seeds import event_seeds
from .segments import Segments, cut_deposits

PDG_CODES = {"proton": (2212,), "pion": (211, -211), "muon": (13, -13), "electron": (11, -11)}
BIRKS = 0.126  # mm/MeV, polystyrene scintillator
LIGHT_YIELD = 80.0  # photo-electrons per MeV in the three fibres of a cube: 50 a fibre from a minimum-ionising particle in 1 cm
_NEIGHBOURS = np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]])


@dataclass(frozen=True)
class SuperFGDSettings:
    """What to simulate.

    Event i is of class i % 4 in the order of the detector's `particle` label, so that classes are balanced; charges are even, vertices uniform in
    the detector, directions isotropic and momenta uniform in a range.

    Attributes:
        momentum: lowest and highest momentum in GeV.
        crosstalk: light that leaks into each of the six neighbours, as a share of what stays in the cube; 0.03 in the prototype.
        threshold: photo-electrons below which a cube is not seen.

    Raises:
        ValueError: values out of range.
    """

    name: ClassVar[str] = "superfgd"
    packages: ClassVar[tuple[str, ...]] = ("calzone",)
    batch: ClassVar[int] = 100

    momentum: tuple[float, float] = (0.2, 1.5)
    crosstalk: float = 0.03
    threshold: int = 4

    def __post_init__(self) -> None:
        low, high = (float(p) for p in self.momentum)
        object.__setattr__(self, "momentum", (low, high))
        if not 0.01 <= low <= high <= 100:
            raise ValueError(f"momenta {low} to {high} GeV: give a range in increasing order between 0.01 and 100 GeV")
        if not 0 <= self.crosstalk <= 0.3:
            raise ValueError(f"crosstalk {self.crosstalk} is not between 0 and 0.3 (share of a cube's light in each of its six neighbours)")
        if self.threshold < 1:
            raise ValueError(f"threshold {self.threshold}: give at least 1 photo-electron")

    @property
    def detector(self) -> DetectorSpec:
        return load_detector("superfgd")

    def build(self) -> SuperFGDSimulation:
        return SuperFGDSimulation(self)


class SuperFGDSimulation(GunSimulation):
    """Makes events of single particles."""

    settings: SuperFGDSettings
    material = "G4_POLYSTYRENE"
    tracking = False

    def _batch(self, run_seed: int, batch: Sequence[int]) -> Iterator[Event]:
        rngs = [event_seeds(run_seed, i).rng for i in batch]
        primaries = [self._draw(i, rng) for i, rng in zip(batch, rngs)]
        deposits = shoot(self._simulation, run_seed, primaries, streams=[(i, 0) for i in batch]).deposits["World"]
        segments = cut_deposits(deposits, self.branch, BIRKS, READOUT_WINDOW)
        for index, rng, shot, rows in zip(batch, rngs, primaries, segments.by_event([1] * len(batch))):
            voxels = {self.branch.name: self._voxels(segments, rows, rng)}
            yield Event(self.spec.name, voxels=voxels, truth=shot.truth(index % len(PDG_CODES)))

    def _draw(self, index: int, rng: np.random.Generator) -> Primary:
        classes = self.spec.classes("particle")
        pdg = int(rng.choice(PDG_CODES[classes[index % len(classes)]]))
        momentum = 1e3 * rng.uniform(*self.settings.momentum)
        return Primary(pdg, kinetic_energy(momentum, pdg), rng.uniform(*self.branch.bounds), isotropic_direction(rng))

    def _voxels(self, segments: Segments, rows: np.ndarray, rng: np.random.Generator) -> Voxels:
        index, inside = self.branch.to_voxel(segments.position[rows])
        flat = np.ravel_multi_index(tuple(index[inside].T), self.branch.shape)
        own, place = np.unique(flat, return_inverse=True)
        light = LIGHT_YIELD * np.bincount(place, segments.energy[rows][inside], minlength=len(own))
        seen, photons, is_own = share_light(own, light, self.settings.crosstalk, self.branch.shape)
        counted = rng.poisson(photons)
        bright = counted >= self.settings.threshold
        coordinates = np.stack(np.unravel_index(seen[bright], self.branch.shape), axis=1)
        return Voxels(coordinates, counted[bright] / LIGHT_YIELD, {"crosstalk": ~is_own[bright]})


def share_light(cube: np.ndarray, light: np.ndarray, crosstalk: float, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Leak light into the six neighbours of every cube.

    What stays and what leaks add up to the light made: a cube keeps 1 / (1 + 6 c) and each neighbour gets c / (1 + 6 c), lost where there is none.

    Args:
        cube: (N,) flat indices, sorted, unique.
        light: (N,) photo-electrons made there.

    Returns:
        Flat indices (M,), expected photo-electrons (M,), and bool (M,), whether the cube made light of its own.
    """
    if not crosstalk:
        return cube, light, np.ones(len(cube), dtype=bool)
    coordinates = np.stack(np.unravel_index(cube, shape), axis=1)
    around = (coordinates + _NEIGHBOURS[:, None]).reshape(-1, 3)
    inside = ((around >= 0) & (around < shape)).all(axis=1)
    neighbours = np.ravel_multi_index(tuple(around[inside].T), shape)
    every, place = np.unique(np.concatenate([cube, neighbours]), return_inverse=True)
    amount = np.concatenate([light, np.tile(crosstalk * light, len(_NEIGHBOURS))[inside]])
    return every, np.bincount(place, amount, minlength=len(every)) / (1 + 6 * crosstalk), np.isin(every, cube, assume_unique=True)
