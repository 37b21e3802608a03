"""Deep-inelastic neutrino-nucleon interactions from Pythia 8, with tau and charm decays and their displaced vertices.

Charged and neutral currents of all six neutrinos on a nucleon at rest; arXiv:2203.11601 describes the generator. Leading order; no Fermi motion, no
nuclear rescattering, and neither quasi-elastic nor resonance production (Q2 > 1 GeV2). Tau, charm and everything shorter-lived decay in Pythia;
pions, kaons, hyperons and muons are left to Geant4.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

PROTON, NEUTRON = 2212, 2112
LOWEST_ENERGY = 20.0  # GeV; below it Pythia finds hardly any phase space above Q2 = 1 GeV2

NEUTRINOS = (12, 14, 16)
CHARM_HADRONS = frozenset({411, 421, 431, 4122, 4132, 4232, 4332})  # those that decay weakly
CHARGED_CHARM = frozenset({411, 431, 4122, 4232})
_LEFT_TO_GEANT4 = (13, 211, 321, 130, 310, 3122, 3112, 3222, 3312, 3322, 3334)

_SETTINGS = (
    "Print:quiet = on",
    "Beams:frameType = 2",
    "Beams:eB = 0.",
    "PhaseSpace:Q2Min = 1.",
    "PhaseSpace:mHatMin = 2.",  # the default of 4 GeV removes half of the cross section at 50 GeV
    "SpaceShower:dipoleRecoil = on",
    "SpaceShower:pTmaxMatch = 2",
    "PDF:lepton = off",
    "TimeShower:QEDshowerByL = off",
    "BeamRemnants:remnantMode = 0",
    "ParticleDecays:limitTau0 = off",
    *(f"{pdg}:mayDecay = off" for pdg in _LEFT_TO_GEANT4),
)


@dataclass
class Interaction:
    """One neutrino interaction; positions are in mm from its vertex, momenta in GeV, the neutrino flies along +z.

    Attributes:
        neutrino_pdg, target_pdg, is_cc, energy: what was asked for; energy of the neutrino in GeV.
        pdg: (P,) particles to transport, i.e. all final ones except neutrinos.
        momentum: (P, 3).
        kinetic_energy: (P,) GeV.
        position: (P, 3) where each particle is made.
        parent: (P,) row of `decayed` that the particle descends from, -1 for none.
        decayed: tau leptons and weakly decaying charm hadrons, with pdg, momentum (3), start (3), end (3).
        lepton_momentum: (3,) of the outgoing lepton; of the visible part of a tau; zero for neutral currents.
        tau_decay_mode: 1 e, 2 mu, 3 one-prong, 4 rho, 5 three-prong, 6 other; 0 no tau.
        charm_decay: 0 no charm, 1 to e, 2 to mu, 3 hadronic, of the charm hadron of highest momentum.
    """

    neutrino_pdg: int
    target_pdg: int
    is_cc: bool
    energy: float
    pdg: np.ndarray
    momentum: np.ndarray
    kinetic_energy: np.ndarray
    position: np.ndarray
    parent: np.ndarray
    lepton_momentum: np.ndarray
    decayed: list[Decayed] = field(default_factory=list)
    tau_decay_mode: int = 0
    charm_decay: int = 0

    @property
    def visible_momentum(self) -> np.ndarray:
        """Sum over all particles except neutrinos, (3,) GeV."""
        return self.momentum.sum(axis=0)

    @property
    def tau(self) -> Decayed | None:
        return next((d for d in self.decayed if abs(d.pdg) == 15), None)

    @property
    def charm(self) -> Decayed | None:
        """The charm hadron of highest momentum."""
        hadrons = [d for d in self.decayed if abs(d.pdg) in CHARM_HADRONS]
        return max(hadrons, key=lambda d: np.linalg.norm(d.momentum), default=None)


@dataclass
class Decayed:
    """A tau or charm hadron that decayed in the generator: momentum (3,) GeV, start and end (3,) mm from the vertex, row in Pythia's record."""

    pdg: int
    momentum: np.ndarray
    start: np.ndarray
    end: np.ndarray
    row: int

    @property
    def length(self) -> float:
        """Flight length in mm."""
        return float(np.linalg.norm(self.end - self.start))

    @property
    def is_charged(self) -> bool:
        return abs(self.pdg) == 15 or abs(self.pdg) in CHARGED_CHARM


@cache
def _template() -> Any:
    """A Pythia whose parsed settings and particle data the instances of the process copy; reading its XML takes as long as half an initialisation."""
    try:
        import pythia8mc
    except ImportError as error:
        raise ImportError('neutrino interactions need Pythia 8: pip install "nufm-hub[simulation]"') from error
    pythia = pythia8mc.Pythia("", False)
    for setting in _SETTINGS:
        if not pythia.readString(setting):
            raise ValueError(f"Pythia refuses the setting {setting!r}: install the pinned version of pythia8mc")
    return pythia


class DISGenerator:
    """Interactions of one neutrino energy on one nucleon.

    Pythia cannot change the energy of a hard process once initialised, so each (neutrino, nucleon, current, energy) takes an instance of its own
    (0.1 s). This also keeps an event independent of the events before it.

    Args:
        neutrino_pdg: +-12, +-14 or +-16.
        target_pdg: 2212 or 2112.
        is_cc: charged or neutral current.
        energy: in GeV, at least 20.
        seed: 1 to 900,000,000.

    Raises:
        ValueError: any of them is out of range.
    """

    def __init__(self, neutrino_pdg: int, target_pdg: int, is_cc: bool, energy: float, seed: int) -> None:
        if abs(neutrino_pdg) not in NEUTRINOS or target_pdg not in (PROTON, NEUTRON):
            raise ValueError(f"no interaction of neutrino {neutrino_pdg} on nucleon {target_pdg}: use +-12, +-14, +-16 on 2212 or 2112")
        if not LOWEST_ENERGY <= energy <= 10_000:
            raise ValueError(f"neutrino energy {energy} GeV is outside {LOWEST_ENERGY} to 10000 GeV")
        if not 1 <= seed <= 900_000_000:
            raise ValueError(f"Pythia seed {seed} is outside 1 to 900000000")
        template = _template()
        self.neutrino_pdg, self.target_pdg, self.is_cc, self.energy = neutrino_pdg, target_pdg, is_cc, energy
        self._pythia = type(template)(template.settings, template.particleData, False)
        for setting in (
            f"Beams:idA = {neutrino_pdg}",
            f"Beams:idB = {target_pdg}",
            f"Beams:eA = {energy!r}",
            f"WeakBosonExchange:ff2ff(t:{'W' if is_cc else 'gmZ'}) = on",
            "Random:setSeed = on",
            f"Random:seed = {seed}",
        ):
            self._pythia.readString(setting)
        if not self._pythia.init():
            raise ValueError(f"Pythia cannot initialise neutrino {neutrino_pdg} of {energy} GeV on nucleon {target_pdg}")

    def next(self) -> Interaction:
        """The next interaction. Raises RuntimeError when Pythia fails a thousand times in a row."""
        for _ in range(1000):
            if self._pythia.next():
                return self._read(self._pythia.event)
        raise RuntimeError(f"Pythia made no event of neutrino {self.neutrino_pdg} at {self.energy} GeV on {self.target_pdg} in 1000 attempts")

    def cross_section(self) -> float:
        """Cross section in 1e-38 cm2 so far estimated from the events made."""
        return self._pythia.infoPython().sigmaGen() * 1e11  # from mb

    def _read(self, event: Any) -> Interaction:
        decayed = [
            Decayed(p.id(), _momentum(p), _point(p.xProd(), p.yProd(), p.zProd()), _point(p.xDec(), p.yDec(), p.zDec()), i)
            for i, p in enumerate(event)
            if not p.isFinal() and _decays_in_flight(p.id(), event, i)
        ]
        by_row = {d.row: k for k, d in enumerate(decayed)}
        rows = [i for i, p in enumerate(event) if p.isFinal() and abs(p.id()) not in NEUTRINOS]
        parent = np.array([_ancestor(event, i, by_row) for i in rows], dtype=np.int32)
        particles = [event[i] for i in rows]
        momentum = np.array([_momentum(p) for p in particles]).reshape(-1, 3)
        out = Interaction(
            neutrino_pdg=self.neutrino_pdg,
            target_pdg=self.target_pdg,
            is_cc=self.is_cc,
            energy=self.energy,
            pdg=np.array([p.id() for p in particles], dtype=np.int32),
            momentum=momentum,
            kinetic_energy=np.array([p.e() - p.m() for p in particles]),
            position=np.array([_point(p.xProd(), p.yProd(), p.zProd()) for p in particles]).reshape(-1, 3),
            parent=parent,
            lepton_momentum=np.zeros(3),
            decayed=decayed,
        )
        if self.is_cc:
            lepton = _outgoing_lepton(event)
            if abs(event[lepton].id()) == 15:
                out.tau_decay_mode = _tau_decay_mode(event, lepton)
                out.lepton_momentum = momentum[parent == by_row[lepton]].sum(axis=0)
            else:
                out.lepton_momentum = _momentum(event[lepton])
        if out.charm is not None:
            out.charm_decay = _charm_decay(event, out.charm.row)
        return out


def _momentum(p: Any) -> np.ndarray:
    return np.array([p.px(), p.py(), p.pz()])


def _point(x: float, y: float, z: float) -> np.ndarray:
    return np.array([x, y, z])


def _decays_in_flight(pdg: int, event: Any, row: int) -> bool:
    """Whether this entry is a tau or charm hadron that decays (and not a copy of itself)."""
    return (abs(pdg) == 15 or abs(pdg) in CHARM_HADRONS) and all(event[d].id() != pdg for d in event[row].daughterList())


def _ancestor(event: Any, row: int, by_row: dict[int, int]) -> int:
    """The first tau or charm hadron of the decay chain that made a particle."""
    found = -1
    row = event[row].mother1()
    while row > 0:
        found = by_row.get(row, found)
        row = event[row].mother1()
    return found


def _outgoing_lepton(event: Any) -> int:
    """Row of the last copy of the lepton that leaves the hard process."""
    for p in event:
        if p.statusAbs() == 23 and 11 <= abs(p.id()) <= 16:
            return p.iBotCopyId()
    raise RuntimeError("Pythia's event record holds no outgoing lepton")


def _direct_products(event: Any, row: int, keep: frozenset[int]) -> list[int]:
    """PDG codes of decay products, going through whatever decays further except the species in `keep`."""
    out: list[int] = []
    for i in event[row].daughterList():
        p = event[i]
        out += [p.id()] if p.isFinal() or abs(p.id()) in keep else _direct_products(event, i, keep)
    return out


_NEUTRAL_MESONS = frozenset({111, 221, 331, 310, 130})


def _tau_decay_mode(event: Any, row: int) -> int:
    products = [abs(i) for i in _direct_products(event, row, _NEUTRAL_MESONS)]
    if 11 in products:
        return 1
    if 13 in products:
        return 2
    prongs = sum(i in (211, 321) for i in products)
    neutral = [i for i in products if i not in (12, 14, 16, 211, 321)]
    if prongs == 1:
        return 4 if neutral == [111] and 211 in products else 3
    return 5 if prongs == 3 else 6


def _charm_decay(event: Any, row: int) -> int:
    products = {abs(event[i].id()) for i in event[row].daughterList()}
    if 15 in products:
        tau = next(i for i in event[row].daughterList() if abs(event[i].id()) == 15)
        products |= {abs(event[i].id()) for i in event[tau].daughterList()}
    return 1 if 11 in products else 2 if 13 in products else 3
