"""Which particle, and which kind of energy deposition, every Geant4 track belongs to, from Geant4's own table of tracks.

The kinds are those of PILArNet (Adams et al., arXiv:2006.01993): electromagnetic showers, tracks, Michel electrons, delta rays.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .gun import particle_mass

SHOWER, TRACK, MICHEL, DELTA = range(4)
DELTA_THRESHOLD = 3.0  # MeV; such electrons go some 15 mm in liquid argon (NIST ESTAR), less energetic ones belong to their track
MICHEL_THRESHOLD = 1.0  # MeV; electrons from nuclear capture of a mu- below it are Auger electrons of the argon atom


def track_key(event: np.ndarray, track: np.ndarray) -> np.ndarray:
    """One int64 for a Geant4 event and track."""
    return event.astype(np.int64) << 32 | track.astype(np.int64)


@dataclass
class Lineage:
    """The tracks of a run, sorted by (event, track).

    Attributes:
        key: (T,) see `track_key`.
        event: (T,) row of the primary.
        pdg: (T,).
        parent: (T,) row of the parent, its own row for a primary.
        particle: (T,) row of the track that stands for the particle a track belongs to: a shower with all its electrons and photons, a charged hadron
            or muon with its soft delta rays and nuclear recoils, a Michel electron, a delta ray.
        motif: (T,) `SHOWER`, `TRACK`, `MICHEL` or `DELTA`.
        is_primary: (T,) bool.
        kinetic_energy: (T,) MeV, at creation.
        direction, position: (T, 3), at creation; mm.
    """

    key: np.ndarray
    event: np.ndarray
    pdg: np.ndarray
    parent: np.ndarray
    particle: np.ndarray
    motif: np.ndarray
    is_primary: np.ndarray
    kinetic_energy: np.ndarray
    direction: np.ndarray
    position: np.ndarray

    def rows(self, event: np.ndarray, track: np.ndarray) -> np.ndarray:
        """Rows of tracks given by Geant4 event and track id."""
        return np.searchsorted(self.key, track_key(event, track))

    def momentum(self, rows: np.ndarray) -> np.ndarray:
        """GeV (R, 3) at creation."""
        mass = np.array([particle_mass(int(p)) for p in self.pdg[rows]])
        kinetic = self.kinetic_energy[rows]
        return (np.sqrt(kinetic * (kinetic + 2 * mass)) / 1e3)[:, None] * self.direction[rows]


def trace(tracks: np.ndarray, vertices: np.ndarray) -> Lineage:
    """Build the lineage from the `tracks` and `vertices` that calzone records with `tracking=True`."""
    key = track_key(tracks["event"], tracks["tid"])
    order = np.argsort(key)
    key, tracks = key[order], tracks[order]
    # calzone writes the vertices of a track one after the other, its creation first
    vertex_key = track_key(vertices["event"], vertices["tid"])
    births = vertices[np.flatnonzero(np.diff(vertex_key, prepend=-1))]
    births = births[np.argsort(track_key(births["event"], births["tid"]))]
    if not np.array_equal(track_key(births["event"], births["tid"]), key):
        raise RuntimeError("Geant4's tables of tracks and of vertices do not list the same tracks; use calzone==1.2.2")
    row = np.arange(len(key))
    is_primary = tracks["parent"] == 0
    parent = np.where(is_primary, row, np.searchsorted(key, track_key(tracks["event"], tracks["parent"])))
    pdg, energy, creator = tracks["pid"], births["energy"], tracks["creator"]

    electromagnetic = np.isin(np.abs(pdg), (11, 22))
    electron = np.abs(pdg) == 11
    from_other = ~electromagnetic[parent] & ~is_primary
    capture = (creator == b"Capture") | (creator == b"hBertiniCapture")
    muon_parent = np.abs(pdg[parent]) == 13
    michel = electron & from_other & muon_parent & ((creator == b"Decay") | (capture & (energy > MICHEL_THRESHOLD)))
    ionisation = electron & from_other & (creator == b"Ionisation")
    delta = ionisation & (energy > DELTA_THRESHOLD)
    # Part of the parent: showers' daughters, soft delta rays, Auger electrons, nuclei
    joins = electromagnetic & electromagnetic[parent] | ionisation & ~delta | electron & from_other & capture & ~michel | (pdg > 1_000_000_000)
    particle = np.where(joins & ~is_primary, parent, row)
    while not np.array_equal(particle, further := particle[particle]):
        particle = further
    motif = np.select([michel, delta, electromagnetic], [MICHEL, DELTA, SHOWER], TRACK)[particle]
    position = births["position"] * 10
    return Lineage(key, tracks["event"].astype(np.int64), pdg, parent, particle, motif, is_primary, energy, births["direction"], position)
