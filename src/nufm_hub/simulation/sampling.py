"""What to simulate: flavour class, neutrino, energy, vertex and nucleon of each event."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .geometry import SCINTILLATOR_DENSITY, SCINTILLATOR_DEPTH, TUNGSTEN_DENSITY, TUNGSTEN_THICKNESS, FaserCalGeometry
from .neutrinos import NEUTRINOS, NEUTRON, PROTON, DISGenerator, Interaction
from .truth import flavour

FLAVOURS = ("balanced", "natural")
VERTEX_MODULES = 5
VERTEX_RADIUS = 50.0  # mm
NUMBER_OF_FLAVOURS = 6
_NUTAU_CLASSES, _NC_CLASS = (2, 3, 4), 5

# Protons and neutrons of the target materials: tungsten, and polyvinyltoluene C9H10.
_TUNGSTEN, _SCINTILLATOR = (74.0, 109.84), (64.0, 54.0)

_TABLE_ENERGY = np.array([20, 50, 100, 200, 500, 1000, 2000, 4000], dtype=float)
# Cross section / energy in 1e-38 cm2/GeV of (is_cc, sign of the neutrino, nucleon), from 20,000 events each of `DISGenerator` (Pythia 8.317).
# Pythia's matrix element neglects the mass of the tau, so that one table serves all flavours.
_TABLE = {
    (True, 1, PROTON): (0.2546, 0.3457, 0.3832, 0.4006, 0.4091, 0.4044, 0.3940, 0.3667),
    (True, 1, NEUTRON): (0.5766, 0.7227, 0.7632, 0.7798, 0.7616, 0.7443, 0.7016, 0.6317),
    (True, -1, PROTON): (0.1997, 0.2805, 0.3156, 0.3341, 0.3489, 0.3511, 0.3464, 0.3331),
    (True, -1, NEUTRON): (0.0926, 0.1433, 0.1712, 0.1917, 0.2106, 0.2160, 0.2192, 0.2178),
    (False, 1, PROTON): (0.1217, 0.1585, 0.1723, 0.1776, 0.1785, 0.1760, 0.1685, 0.1594),
    (False, 1, NEUTRON): (0.1398, 0.1790, 0.1917, 0.1983, 0.1983, 0.1942, 0.1874, 0.1753),
    (False, -1, PROTON): (0.0575, 0.0803, 0.0907, 0.0978, 0.1027, 0.1027, 0.1041, 0.1012),
    (False, -1, NEUTRON): (0.0567, 0.0806, 0.0914, 0.0971, 0.1018, 0.1045, 0.1036, 0.1020),
}


class Draw(NamedTuple):
    """An interaction and where it happens: vertex (3,) in mm."""

    interaction: Interaction
    vertex: np.ndarray


def cross_section(is_cc: bool, sign: int, nucleon: int, energy: float) -> float:
    """Cross section in 1e-38 cm2 of a neutrino (sign 1) or antineutrino (-1) of `energy` GeV, interpolated in a table."""
    return energy * float(np.interp(np.log(energy), np.log(_TABLE_ENERGY), _TABLE[is_cc, sign, nucleon]))


def draw_vertex(geometry: FaserCalGeometry, rng: np.random.Generator) -> tuple[np.ndarray, tuple[float, float]]:
    """A vertex (3,) mm, by mass between the tungsten plate and the scintillator of the first five modules, uniform in a disc of 50 mm radius; and the
    numbers of protons and neutrons of the material there."""
    masses = np.array([TUNGSTEN_DENSITY * TUNGSTEN_THICKNESS, SCINTILLATOR_DENSITY * SCINTILLATOR_DEPTH])
    start = geometry.module_starts[rng.integers(VERTEX_MODULES)]
    in_tungsten = rng.random() < masses[0] / masses.sum()
    z = start - rng.random() * TUNGSTEN_THICKNESS if in_tungsten else start + rng.random() * SCINTILLATOR_DEPTH
    radius, angle = VERTEX_RADIUS * np.sqrt(rng.random()), 2 * np.pi * rng.random()
    return np.array([radius * np.cos(angle), radius * np.sin(angle), z]), _TUNGSTEN if in_tungsten else _SCINTILLATOR


def draw_interaction(
    geometry: FaserCalGeometry, energy_range: tuple[float, float], flavours: str, index: int, rng: np.random.Generator, generator_seed: int
) -> Draw:
    """An interaction for event number `index`.

    The energy is log-uniform in `energy_range` (GeV). Fluxes of neutrinos and antineutrinos are equal; which of them, and which nucleon, follows the
    cross sections and the material at the vertex.

    `flavours="balanced"` makes event `index` one of flavour class `index % 6`, so that all classes have the same number of events and the same
    energies; for tau neutrinos Pythia events are drawn until one has the wanted decay, neutral currents are shared evenly by the three flavours.
    `flavours="natural"` takes equal fluxes of the three flavours and leaves CC or NC and the tau decay to their probabilities.
    """
    vertex, (protons, neutrons) = draw_vertex(geometry, rng)
    energy = float(np.exp(rng.uniform(*np.log(energy_range))))
    wanted = index % NUMBER_OF_FLAVOURS if flavours == "balanced" else None
    any_species = wanted is None or wanted == _NC_CLASS
    species = int(rng.choice(NEUTRINOS)) if any_species else NEUTRINOS[min(wanted, 2)]
    currents = (True, False) if wanted is None else (wanted != _NC_CLASS,)
    options = [(is_cc, sign, nucleon) for is_cc in currents for sign in (1, -1) for nucleon in (PROTON, NEUTRON)]
    weights = np.array([cross_section(*o, energy) * (protons if o[2] == PROTON else neutrons) for o in options])
    is_cc, sign, nucleon = options[rng.choice(len(options), p=weights / weights.sum())]
    generator = DISGenerator(sign * species, nucleon, is_cc, energy, generator_seed)
    interaction = generator.next()
    while wanted in _NUTAU_CLASSES and flavour(interaction) != wanted:
        interaction = generator.next()
    return Draw(interaction, vertex)
