"""Truth: what each reconstructed voxel and each event really was.

A primary is a particle that Geant4 was given: a final-state particle of the generator, daughters of taus and charm hadrons included, or the tau or
charm hadron itself.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .neutrinos import Interaction

HIERARCHY = ("other", "primary", "secondary")
CATEGORY = ("electromagnetic", "muon", "hadron")
_GENERATION_TO_HIERARCHY = np.array([-1, 1, 2, 0])
_ELECTROMAGNETIC = (11, 22, 111, 221, 331)


def category(pdg: np.ndarray) -> np.ndarray:
    """Index into `CATEGORY` of each species: electron, photon, pi0, eta and eta' are electromagnetic, nuclei are hadrons."""
    pdg = np.abs(pdg)
    return np.where(np.isin(pdg, _ELECTROMAGNETIC), 0, np.where(pdg == 13, 1, 2))


def tau_category(decay_mode: int) -> int:
    """A tau counts as what it decays to."""
    return {1: 0, 2: 1}.get(decay_mode, 2)


def hierarchy(generation: np.ndarray) -> np.ndarray:
    """Index into `HIERARCHY` of each generation (1 primary, 2 its daughter, 3 later)."""
    return _GENERATION_TO_HIERARCHY[generation]


def energy_shares(voxel: np.ndarray, energy: np.ndarray, classes: np.ndarray, selected: np.ndarray, size: int) -> np.ndarray:
    """Share of each of three classes in the true energy of selected voxels, in steps of 0.01 that add up to 1.

    Args:
        voxel, energy, classes: (K,) flat voxel index, energy and class of each contribution.
        selected: (N,) flat indices of the wanted voxels.
        size: number of voxels in all.

    Returns:
        float32 (N, 3); zeros (unlabelled) where nothing was deposited.
    """
    table = np.bincount(voxel * 3 + classes, energy, minlength=3 * size).reshape(size, 3)[selected]
    total = table.sum(axis=1, keepdims=True)
    percent = np.rint(100 * table / np.where(total > 0, total, 1.0))
    rows = np.arange(len(percent))
    percent[rows, percent.argmax(axis=1)] += np.where(total[:, 0] > 0, 100 - percent.sum(axis=1), 0)
    return (percent / 100).astype(np.float32)


def flavour(interaction: Interaction) -> int:
    """Class of (nue_cc, numu_cc, nutau_cc_e, nutau_cc_mu, nutau_cc_had, nc)."""
    if not interaction.is_cc:
        return 5
    if abs(interaction.neutrino_pdg) == 16:
        return {1: 2, 2: 3}.get(interaction.tau_decay_mode, 4)
    return {12: 0, 14: 1}[abs(interaction.neutrino_pdg)]


def event_truth(interaction: Interaction, vertex: np.ndarray) -> dict[str, Any]:
    """Truth of an event with its vertex (3,) in mm; momenta in GeV, jet = visible - lepton."""
    visible, tau, charm = interaction.visible_momentum, interaction.tau, interaction.charm
    return {
        "flavour": flavour(interaction),
        "charm": interaction.charm_decay,
        "is_cc": interaction.is_cc,
        "neutrino_pdg": interaction.neutrino_pdg,
        "target_pdg": interaction.target_pdg,
        "neutrino_momentum": np.array([0.0, 0.0, interaction.energy]),
        "visible_momentum": visible,
        "jet_momentum": visible - interaction.lepton_momentum,
        "lepton_momentum": interaction.lepton_momentum,
        "vertex": vertex,
        "tau_decay_mode": interaction.tau_decay_mode,
        "tau_decay_length": tau.length if tau else 0.0,
        "charm_pdg": charm.pdg if charm else 0,
        "charm_decay_length": charm.length if charm else 0.0,
    }


def particle_truth(interaction: Interaction, vertex: np.ndarray) -> dict[str, np.ndarray]:
    """Particles of an event: the P final ones by row, then the taus and charm hadrons they descend from."""
    decayed = interaction.decayed
    final = len(interaction.pdg)
    start = [d.start for d in decayed]
    return {
        "id": np.arange(final + len(decayed)),
        "parent": np.concatenate([np.where(interaction.parent >= 0, interaction.parent + final, -1), np.full(len(decayed), -1)]),
        "interaction": np.zeros(final + len(decayed)),
        "pdg": np.concatenate([interaction.pdg, [d.pdg for d in decayed]]),
        "momentum": np.concatenate([interaction.momentum, np.reshape([d.momentum for d in decayed], (-1, 3))]),
        "vertex": np.concatenate([interaction.position, np.reshape(start, (-1, 3))]) + vertex,
    }
