"""Primary particles for Geant4, the streams of random numbers that make every one of them reproducible on its own, and events made with them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from nufm_hub.events import Event

from .geant4_data import ensure_geant4_data

if TYPE_CHECKING:
    from .runner import SimulationSettings

READOUT_WINDOW = 1e-5  # s; keeps the electrons of muon decays, drops slow neutrons
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

    def truth(self, particle: int) -> dict[str, Any]:
        """Truth of an event of nothing but this particle, of class `particle`: momentum (3,) in GeV, position (3,) in mm."""
        return {
            "particle": particle,
            "particle_pdg": self.pdg,
            "particle_momentum": self.momentum * self.direction / 1e3,
            "particle_position": self.position,
        }


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


class GunSimulation:
    """Shoots particles into the first voxel branch of a detector, a box of one material, and makes events of what they leave.

    One per process, since Geant4 has global state. A subclass draws the particles of events and makes voxels of their deposits.

    Attributes:
        material: of the box, as Geant4 names it.
        tracking: whether Geant4 records the tracks.
        branch: the voxels.
        counts: what happened since it was made: `empty`, events without a voxel.
    """

    material: ClassVar[str]
    tracking: ClassVar[bool]

    def __init__(self, settings: SimulationSettings) -> None:
        self.settings = settings
        self.spec = settings.detector
        self.branch = self.spec.voxel_branches[0]
        size = self.branch.bounds[1] - self.branch.bounds[0]
        self._simulation = box_simulation(self.material, size, cut_mm=0.7, tracking=self.tracking)
        self.counts: Counter[str] = Counter()

    def event(self, run_seed: int, index: int) -> Event:
        """Event number `index` of a run; depends on nothing but the settings and these two numbers."""
        return next(self.events(run_seed, [index]))

    def events(self, run_seed: int, indices: Sequence[int]) -> Iterator[Event]:
        """The events of `indices`, several in one run of Geant4: the same as from `event`, only faster."""
        size = self.settings.batch
        for batch in (indices[i : i + size] for i in range(0, len(indices), size)):
            for index, event in zip(batch, self._batch(run_seed, batch)):
                event.provenance = {"generator": f"nufm-hub {self.settings.name}", "seed": run_seed, "index": index}
                self.counts["empty"] += len(event.voxels[self.branch.name]) == 0
                yield event

    def _batch(self, run_seed: int, batch: Sequence[int]) -> Iterator[Event]:
        """The events of one run of Geant4, without provenance."""
        raise NotImplementedError
