"""One FASERCal event from a seed: interaction, transport, response, reconstruction, truth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from nufm_hub.detectors import DetectorSpec, load_detector
from nufm_hub.events import Event, Voxels

from .neutrinos import LOWEST_ENERGY, Interaction
from .reconstruction import reconstruct
from .response import leak, quench, read_out
from .sampling import FLAVOURS, draw_interaction
from .seeds import EventSeeds, event_seeds
from .spectrometer import measure_muons
from .transport import FaserCalTransport, Transported
from .truth import category, energy_shares, event_truth, hierarchy, particle_truth, tau_category
from .voxelise import split_steps

MIN_REAL_VOXELS = 20
MINIMUM_IONISING = 0.1956 * 1.032  # MeV/mm in polyvinyltoluene (PDG)
AHCAL_THRESHOLD = 0.3  # MeV, about half a minimum-ionising particle in a 3 mm tile
CUBE_STEP = 0.05  # MeV, half a photo-electron
CALORIMETER_STEP = 0.01  # MeV
_MAX_ATTEMPTS = 100


@dataclass(frozen=True)
class FaserCalSettings:
    """What to simulate.

    Attributes:
        energy: lowest and highest neutrino energy in GeV, log-uniform between.
        flavours: "balanced" (event i is of flavour class i % 6) or "natural"; see `sampling.draw_interaction`.

    Raises:
        ValueError: energies out of order or below 20 GeV, or an unknown choice of flavours.
    """

    name: ClassVar[str] = "fasercal"
    packages: ClassVar[tuple[str, ...]] = ("calzone", "pythia8mc")
    batch: ClassVar[int] = 1

    energy: tuple[float, float] = (50.0, 1500.0)
    flavours: str = "balanced"

    def __post_init__(self) -> None:
        low, high = (float(e) for e in self.energy)
        object.__setattr__(self, "energy", (low, high))
        if not LOWEST_ENERGY <= low <= high <= 10_000:
            raise ValueError(f"neutrino energies {low} to {high} GeV: give a range in increasing order between {LOWEST_ENERGY} and 10000 GeV")
        if self.flavours not in FLAVOURS:
            raise ValueError(f"flavours {self.flavours!r}: choose one of {FLAVOURS}")

    @property
    def detector(self) -> DetectorSpec:
        return load_detector("fasercal")

    def build(self) -> FaserCalSimulation:
        return FaserCalSimulation(self)


class FaserCalSimulation:
    """Makes events; one per process, since Geant4 has global state.

    Attributes:
        counts: what happened since it was made, e.g. how many events were regenerated for having fewer than 20 real voxels.
    """

    def __init__(self, settings: FaserCalSettings) -> None:
        self.settings = settings
        self.spec = settings.detector
        self.cubes = self.spec.branch("3dcal")
        self.transport = FaserCalTransport(self.spec)
        self.counts: Counter[str] = Counter()

    def event(self, run_seed: int, index: int) -> Event:
        """Event number `index` of a run; depends on nothing but the settings and these two numbers.

        Raises:
            RuntimeError: a hundred attempts gave no event with 20 real voxels.
        """
        for attempt in range(_MAX_ATTEMPTS):
            event = self._attempt(event_seeds(run_seed, index, attempt), index)
            real = int((event.voxels["3dcal"].labels["ghost"] == 0).sum())
            if real >= MIN_REAL_VOXELS:
                event.provenance = {"generator": f"nufm-hub {self.settings.name}", "seed": run_seed, "index": index}
                return event
            self.counts["regenerated"] += 1
        raise RuntimeError(f"event {index} of seed {run_seed}: {_MAX_ATTEMPTS} attempts left fewer than {MIN_REAL_VOXELS} real voxels")

    def events(self, run_seed: int, indices: Sequence[int]) -> Iterator[Event]:
        """Several events; each as `event` makes it."""
        for index in indices:
            yield self.event(run_seed, index)

    def _attempt(self, seeds: EventSeeds, index: int) -> Event:
        s = self.settings
        interaction, vertex = draw_interaction(self.transport.geometry, s.energy, s.flavours, index, seeds.rng, seeds.generator)
        transported = self._transport(interaction, vertex, seeds.transport)
        event = Event(self.spec.name, truth=event_truth(interaction, vertex), particles=particle_truth(interaction, vertex))
        event.voxels["3dcal"] = self._cube_voxels(interaction, vertex, transported, seeds.rng)
        event.voxels["ahcal"] = _ahcal_voxels(transported.ahcal)
        event.images["ecal"] = round_energy(transported.ecal, CALORIMETER_STEP)
        event.tracks["muon"] = measure_muons(transported.muon_charge, transported.muon_position, transported.muon_momentum, seeds.rng)
        return event

    def _transport(self, interaction: Interaction, vertex: np.ndarray, seeds: tuple[int, int]) -> Transported:
        # Below 1 MeV nothing reaches a second voxel.
        moving = interaction.kinetic_energy > 1e-3
        momentum = interaction.momentum[moving]
        return self.transport.run(
            interaction.pdg[moving],
            interaction.kinetic_energy[moving],
            interaction.position[moving] + vertex,
            momentum / np.linalg.norm(momentum, axis=1, keepdims=True),
            seeds,
        )

    def _cube_voxels(self, interaction: Interaction, vertex: np.ndarray, transported: Transported, rng: np.random.Generator) -> Voxels:
        """Reconstructed 3DCal voxels with their truth, from the transported particles and the generator's own short tracks."""
        d = transported.deposits
        voxel, step, share = split_steps(d.start, d.end, d.module, self.cubes)
        light = quench(d.energy, np.linalg.norm(d.end - d.start, axis=1))
        flights = self._flight_deposits(interaction, vertex)
        voxel = np.concatenate([voxel, flights[0]])
        energy = np.concatenate([d.energy[step] * share, flights[1]])
        light = np.concatenate([light[step] * share, quench(flights[1], flights[1] / MINIMUM_IONISING)])
        species = np.concatenate([category(d.pdg)[step], flights[2]])
        order = np.concatenate([hierarchy(d.generation)[step], np.full(len(flights[0]), 1)])

        size = int(np.prod(self.cubes.shape))
        cube_size = self.cubes.voxel_size[0]
        cubes = leak(np.bincount(voxel, light, minlength=size).reshape(self.cubes.shape))
        coordinates, found = reconstruct(read_out(cubes, cube_size, self.cubes.blocks.length, rng), cube_size)
        selected = np.ravel_multi_index(tuple(coordinates.T), self.cubes.shape)
        true = np.bincount(voxel, energy, minlength=size)[selected]
        labels = {
            "ghost": (true <= 0).astype(np.float32),
            "hierarchy": energy_shares(voxel, energy, order, selected, size),
            "category": energy_shares(voxel, energy, species, selected, size),
        }
        return Voxels(coordinates, round_energy(found, CUBE_STEP), labels)

    def _flight_deposits(self, interaction: Interaction, vertex: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Voxel, energy (MeV) and category of minimum-ionising deposits of charged taus and charm hadrons up to where they decay, in 1 mm pieces."""
        places, energies, classes = [np.zeros((0, 3))], [np.zeros(0)], [np.zeros(0, dtype=np.int64)]
        for d in interaction.decayed:
            if d.is_charged and d.length > 0:
                pieces = int(np.ceil(d.length))
                places.append(vertex + d.start + (d.end - d.start) * ((np.arange(pieces)[:, None] + 0.5) / pieces))
                energies.append(np.full(pieces, MINIMUM_IONISING * d.length / pieces))
                classes.append(np.full(pieces, tau_category(interaction.tau_decay_mode) if abs(d.pdg) == 15 else 2))
        index, inside = self.cubes.to_voxel(np.concatenate(places))
        flat = np.ravel_multi_index(tuple(index[inside].T), self.cubes.shape)
        return flat, np.concatenate(energies)[inside], np.concatenate(classes)[inside]


def _ahcal_voxels(tiles: np.ndarray) -> Voxels:
    coordinates = np.argwhere(tiles > AHCAL_THRESHOLD)
    return Voxels(coordinates, round_energy(tiles[tuple(coordinates.T)], CALORIMETER_STEP))


def round_energy(energy: np.ndarray, finest: float) -> np.ndarray:
    """Energies in MeV with three significant digits, in steps of at least `finest` MeV: far below any resolution, and files shrink by half."""
    energy = np.asarray(energy, dtype=np.float64)
    step = np.maximum(10.0 ** (np.floor(np.log10(np.maximum(energy, 1e-3))) - 2), finest)
    return (np.rint(energy / step) * step).astype(np.float32)
