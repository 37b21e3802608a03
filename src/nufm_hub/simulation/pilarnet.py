"""Liquid-argon images of the PILArNet kind: interaction vertices and cosmic-like muons in a cube of argon, true deposits in voxels.

After Adams et al., arXiv:2006.01993: particles leave common vertices, unrelated ones rain in. As there, voxels hold true energy deposits: no
recombination, diffusion or noise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from nufm_hub.detectors import DetectorSpec, load_detector
from nufm_hub.events import Event, Voxels

from .gun import READOUT_WINDOW, GunSimulation, Primary, isotropic_direction, shoot
from .lineage import Lineage, trace
from .seeds import event_seeds
from .segments import Segments, cut_deposits

PDG_CODES = {"gamma": (22,), "electron": (11, -11), "muon": (13, -13), "pion": (211, -211), "proton": (2212,)}
MAX_ENERGY = {"proton": 400.0}  # MeV; faster protons mostly break up nuclei
LOW_ENERGY_VOXELS = 10  # smaller clusters that stand alone are low-energy deposits
_LOW_ENERGY = 4


@dataclass(frozen=True)
class PILArNetSettings:
    """What to simulate. Ranges are inclusive and uniform.

    Attributes:
        vertices: interaction vertices in an image, uniform in the argon.
        particles: particles of a vertex, each gamma, electron, muon, pion or proton with the same probability, in an isotropic direction. An image of
            one vertex with one particle and no rain carries the event label; event i is then of class i % 5.
        energy: kinetic energies in MeV (protons at most 400 MeV).
        rain: muons from above, zenith angle by cos^2, kinetic energy log-uniform in 0.2 to 10 GeV.
        threshold: MeV below which a voxel is dropped.

    Raises:
        ValueError: values out of range.
    """

    name: ClassVar[str] = "pilarnet"
    packages: ClassVar[tuple[str, ...]] = ("calzone",)
    batch: ClassVar[int] = 20

    vertices: tuple[int, int] = (1, 2)
    particles: tuple[int, int] = (1, 6)
    energy: tuple[float, float] = (50.0, 1000.0)
    rain: tuple[int, int] = (2, 6)
    threshold: float = 0.13

    def __post_init__(self) -> None:
        for key, cast in (("vertices", int), ("particles", int), ("energy", float), ("rain", int)):
            low, high = (cast(v) for v in getattr(self, key))
            object.__setattr__(self, key, (low, high))
            if not 0 <= low <= high:
                raise ValueError(f"{key} {low} to {high}: give a range of non-negative numbers in increasing order")
        if not 1 <= self.energy[0] <= self.energy[1] <= 100_000:
            raise ValueError(f"energies {self.energy[0]} to {self.energy[1]} MeV: give a range between 1 and 100000 MeV")
        if self.particles[0] < 1 or self.vertices[0] + self.rain[0] < 1:
            raise ValueError("every image needs at least one vertex or rain muon, and every vertex one particle")
        if not 0 <= self.threshold < 10:
            raise ValueError(f"threshold {self.threshold} MeV is not between 0 and 10 MeV")

    @property
    def detector(self) -> DetectorSpec:
        return load_detector("pilarnet")

    @property
    def single(self) -> bool:
        """Whether every image holds one particle."""
        return self.vertices == self.particles == (1, 1) and self.rain == (0, 0)

    def build(self) -> PILArNetSimulation:
        return PILArNetSimulation(self)


@dataclass
class _Image:
    """Primaries of an image and the interaction each belongs to."""

    primaries: list[Primary]
    interactions: list[int]


class PILArNetSimulation(GunSimulation):
    """Makes images."""

    settings: PILArNetSettings
    material = "G4_lAr"
    tracking = True

    def _batch(self, run_seed: int, batch: Sequence[int]) -> Iterator[Event]:
        images = [self._draw(i, event_seeds(run_seed, i).rng) for i in batch]
        sizes = [len(image.primaries) for image in images]
        primaries = [p for image in images for p in image.primaries]
        streams = [(i, row) for i, size in zip(batch, sizes) for row in range(size)]
        result = shoot(self._simulation, run_seed, primaries, streams)
        lineage = trace(result.tracks, result.vertices)
        segments = cut_deposits(result.deposits["World"], self.branch, until_s=READOUT_WINDOW)
        tracks = lineage.rows(segments.primary, segments.track)[segments.deposit]
        for index, image, rows, first_row in zip(batch, images, segments.by_event(sizes), np.cumsum([0, *sizes])):
            event = self._event(image, segments, tracks, rows, lineage, first_row)
            if self.settings.single:
                event.truth = image.primaries[0].truth(index % len(PDG_CODES))
            yield event

    def _draw(self, index: int, rng: np.random.Generator) -> _Image:
        s = self.settings
        image = _Image([], [])
        classes = self.spec.classes("particle")
        for interaction in range(rng.integers(*s.vertices, endpoint=True)):
            position = rng.uniform(*self.branch.bounds)
            for _ in range(rng.integers(*s.particles, endpoint=True)):
                name = classes[index % len(classes)] if s.single else str(rng.choice(classes))
                energy = rng.uniform(s.energy[0], max(s.energy[0], min(s.energy[1], MAX_ENERGY.get(name, np.inf))))
                image.primaries.append(Primary(int(rng.choice(PDG_CODES[name])), energy, position, isotropic_direction(rng)))
                image.interactions.append(interaction)
        for _ in range(rng.integers(*s.rain, endpoint=True)):
            image.primaries.append(self._draw_muon(rng))
            image.interactions.append(max(image.interactions, default=-1) + 1)
        return image

    def _draw_muon(self, rng: np.random.Generator) -> Primary:
        """A muon that aims at a point of the argon, from where it enters; y points up."""
        cosine, angle = np.cbrt(rng.uniform(1e-3, 1)), rng.uniform(0, 2 * np.pi)  # density cos^2 in solid angle
        sine = np.sqrt(1 - cosine**2)
        direction = np.array([sine * np.cos(angle), -cosine, sine * np.sin(angle)])
        low, high = self.branch.bounds
        target = rng.uniform(low, high)
        back = np.where(direction > 0, target - low, target - high) / direction
        energy = np.exp(rng.uniform(np.log(200), np.log(10_000)))
        return Primary(int(rng.choice((13, -13))), float(energy), target - direction * (back.min() - 1e-3), direction)

    def _event(self, image: _Image, segments: Segments, tracks: np.ndarray, rows: np.ndarray, lineage: Lineage, first_row: int) -> Event:
        """An image from its pieces of deposits `rows`; `tracks` are the lineage rows of all pieces, `first_row` is that of its first primary."""
        index, inside = self.branch.to_voxel(segments.position[rows])
        rows = rows[inside]
        flat = np.ravel_multi_index(tuple(index[inside].T), self.branch.shape)
        voxel, place = np.unique(flat, return_inverse=True)
        total = np.bincount(place, segments.energy[rows], minlength=len(voxel))
        kept = (total > 0) & (total >= self.settings.threshold)
        new_place = np.cumsum(kept) - 1
        use = kept[place]
        rows, place = rows[use], new_place[place[use]]
        voxel, total = voxel[kept], total[kept]
        size = len(voxel)
        coordinates = np.stack(np.unravel_index(voxel, self.branch.shape), axis=1)

        energy = segments.energy[rows]
        track = tracks[rows]
        particle = lineage.particle[track]
        motif = _shares(place, lineage.motif[track], energy, size, 5)
        kind = class_of(lineage.pdg[particle])
        known = kind >= 0
        species = _shares(place[known], kind[known], energy[known], size, len(PDG_CODES))
        owner = _largest(place, particle, energy, size)

        # Small clusters that stand alone, unless a charged primary goes through
        cluster = clusters(coordinates)
        by_primary = lineage.is_primary[track] & (lineage.pdg[track] != 22)
        keep = (np.bincount(cluster) >= LOW_ENERGY_VOXELS) | (np.bincount(cluster[place[by_primary]], minlength=cluster.max(initial=-1) + 1) > 0)
        low = ~keep[cluster]
        motif[low] = np.eye(5, dtype=np.float32)[_LOW_ENERGY]
        species[low] = 0
        owner[low] = -1

        visible = np.unique(owner[owner >= 0])
        interactions = np.array(image.interactions)
        interaction = interactions[lineage.event[visible] - first_row]
        instance = np.searchsorted(visible, owner)
        seen = owner >= 0
        instances = {
            "particle": np.where(seen, instance, -1),
            "interaction": np.where(seen, interaction[np.where(seen, instance, 0)], -1) if len(visible) else np.full(size, -1),
        }
        particles = {
            "id": np.arange(len(visible)),
            "parent": _visible_parents(lineage, visible),
            "interaction": interaction,
            "pdg": lineage.pdg[visible],
            "label": class_of(lineage.pdg[visible]),
            "momentum": lineage.momentum(visible),
            "vertex": lineage.position[visible],
        }
        voxels = Voxels(coordinates, np.round(total, 3), {"motif": motif, "particle": species}, instances)
        return Event(self.spec.name, voxels={self.branch.name: voxels}, particles=particles)


def class_of(pdg: np.ndarray) -> np.ndarray:
    """Index of the particle class of each PDG code, -1 for none of them (kaons, neutrons, ...)."""
    out = np.full(len(pdg), -1)
    for i, codes in enumerate(PDG_CODES.values()):
        out[np.isin(pdg, codes)] = i
    return out


def _shares(place: np.ndarray, kind: np.ndarray, energy: np.ndarray, size: int, kinds: int) -> np.ndarray:
    """Share of the energy of each kind in each voxel, float32 (size, kinds); zeros where there is none."""
    table = np.bincount(place * kinds + kind, energy, minlength=size * kinds).reshape(size, kinds)
    total = table.sum(axis=1, keepdims=True)
    return (table / np.where(total > 0, total, 1)).astype(np.float32)


def _largest(place: np.ndarray, owner: np.ndarray, energy: np.ndarray, size: int) -> np.ndarray:
    """The owner of most of the energy of each voxel, (size,)."""
    width = int(owner.max(initial=0)) + 1
    pair, inverse = np.unique(place * width + owner, return_inverse=True)
    order = np.lexsort((np.bincount(inverse, energy, minlength=len(pair)), pair // width))
    out = np.full(size, -1)
    out[pair[order] // width] = pair[order] % width  # the last of a voxel has most
    return out


def clusters(coordinates: np.ndarray) -> np.ndarray:
    """Cluster number (N,) of voxels (N, 3) sorted with z fastest; voxels that share a face, an edge or a corner are in one cluster."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    width = int(coordinates.max(initial=0)) + 3
    key = ((coordinates[:, 0] + 1) * width + coordinates[:, 1] + 1) * width + coordinates[:, 2] + 1
    # Towards each of five columns of voxels the three possible neighbours follow one another
    ones, others = [], []
    for column, reach in ((0, (1,)), (1, (-1, 0, 1)), (width - 1, (-1, 0, 1)), (width, (-1, 0, 1)), (width + 1, (-1, 0, 1))):
        wanted = key + column * width
        at = np.searchsorted(key, wanted + reach[0])
        for step in range(len(reach)):
            near = np.minimum(at + step, len(key) - 1)
            found = np.flatnonzero((key[near] >= wanted + reach[0]) & (key[near] <= wanted + reach[-1]) & (at + step < len(key)))
            ones.append(found)
            others.append(near[found])
    one, other = np.concatenate(ones), np.concatenate(others)
    graph = coo_matrix((np.ones(len(one), dtype=bool), (one, other)), shape=(len(key), len(key)))
    return connected_components(graph, directed=False)[1]


def _visible_parents(lineage: Lineage, visible: np.ndarray) -> np.ndarray:
    """For each of the particles (rows, sorted) the index of its nearest ancestor among them, -1 for none."""
    number = np.full(len(lineage.key), -1)
    number[visible] = np.arange(len(visible))
    out = np.full(len(visible), -1)
    now = visible
    searching = np.ones(len(visible), dtype=bool)
    while searching.any():
        up = lineage.particle[lineage.parent[now]]
        searching &= up != now
        out = np.where(searching, number[up], out)
        searching &= number[up] < 0
        now = np.where(searching, up, now)
    return out
