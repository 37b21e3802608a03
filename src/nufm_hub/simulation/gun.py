"""Primary particles for Geant4 and the streams of random numbers that make every one of them reproducible on its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from .geant4_data import ensure_geant4_data

_MASSES = {11: 0.51099895, 13: 105.6583755, 22: 0.0, 111: 134.9768, 211: 139.57039, 2112: 939.56542052, 2212: 938.27208816}  # MeV, PDG 2024


@cache
def particle_mass(pdg: int) -> float:
    """Mass in MeV of a particle or antiparticle."""
    if abs(pdg) in _MASSES:
        return _MASSES[abs(pdg)]
    from particle import Particle

    return float(Particle.from_pdgid(pdg).mass)


@dataclass(frozen=True)
class Primary:
    """A particle to shoot: kinetic energy in MeV, position (3,) in mm, unit direction (3,)."""

    pdg: int
    kinetic_energy: float
    position: np.ndarray
    direction: np.ndarray

    @property
    def momentum(self) -> float:
        """MeV."""
        return float(np.sqrt(self.kinetic_energy * (self.kinetic_energy + 2 * particle_mass(self.pdg))))


def kinetic_energy(momentum_mev: float, pdg: int) -> float:
    """MeV."""
    mass = particle_mass(pdg)
    return float(np.hypot(momentum_mev, mass) - mass)


def isotropic_direction(rng: np.random.Generator) -> np.ndarray:
    """Unit vector (3,), uniform on the sphere."""
    cosine, angle = rng.uniform(-1, 1), rng.uniform(0, 2 * np.pi)
    sine = np.sqrt(1 - cosine**2)
    return np.array([sine * np.cos(angle), sine * np.sin(angle), cosine])


def load_calzone() -> Any:
    """The calzone module, with the data sets it needs in place."""
    ensure_geant4_data()
    try:
        import calzone
    except ImportError as error:
        raise ImportError('simulating needs calzone: pip install "nufm-hub[simulation]"') from error
    return calzone


def box_simulation(material: str, size_mm: Sequence[float], cut_mm: float, tracking: bool) -> Any:
    """A `calzone.Simulation` of one sensitive box centred on 0, with vacuum around; its deposits are those of the volume `World`."""
    calzone = load_calzone()
    geometry = {"World": {"box": [s / 10 for s in size_mm], "material": material, "role": "record_deposits"}}
    physics = calzone.Physics("standard", had_model="FTFP_BERT", default_cut=cut_mm / 10)
    return calzone.Simulation(geometry, physics=physics, sample_deposits="detailed", tracking=tracking)


def shoot(simulation: Any, seed: int, primaries: Sequence[Primary], streams: Sequence[tuple[int, int]]) -> Any:
    """Run Geant4 over primaries, each a Geant4 event of its own whose number is its row.

    Args:
        seed: of the random sequence.
        streams: for every primary two numbers, below 2^64 and 2^24, that name its own part of the sequence. With them a primary's result depends
            on nothing else, in particular not on what else is in the run.
    """
    calzone = load_calzone()
    particles = calzone.particles(len(primaries))
    particles["pid"] = [p.pdg for p in primaries]
    particles["energy"] = [p.kinetic_energy for p in primaries]
    particles["position"] = np.array([p.position for p in primaries]) / 10
    particles["direction"] = [p.direction for p in primaries]
    index = np.array(streams, dtype=np.uint64)
    index[:, 1] <<= np.uint64(40)  # a primary uses far fewer than 2^40 numbers
    simulation.random = calzone.Random(seed)
    return simulation.run(particles, random_indices=index)
