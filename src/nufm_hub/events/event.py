"""What an event is: numpy arrays for every branch of a detector, truth, and where it came from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from nufm_hub.detectors import DetectorSpec, VoxelBranch


class Field(NamedTuple):
    """Type of a truth quantity: numpy dtype, shape of one entry (() for a scalar), unit."""

    dtype: str
    shape: tuple[int, ...] = ()
    unit: str = ""


# Momenta are 3-vectors (x, y, z) in the detector frame; the beam runs along +z.
TRUTH_FIELDS: dict[str, Field] = {
    "is_cc": Field("bool"),
    "neutrino_pdg": Field("int32"),
    "target_pdg": Field("int32"),
    "neutrino_momentum": Field("float64", (3,), "GeV"),
    "visible_momentum": Field("float64", (3,), "GeV"),
    "jet_momentum": Field("float64", (3,), "GeV"),
    "lepton_momentum": Field("float64", (3,), "GeV"),
    "vertex": Field("float64", (3,), "mm"),
    "tau_decay_mode": Field("int32"),  # 0 no tau, 1 e, 2 mu, 3 one-prong, 4 rho, 5 three-prong, 6 other
    "tau_decay_length": Field("float64", (), "mm"),
    "charm_pdg": Field("int32"),  # 0 no charm
    "charm_decay_length": Field("float64", (), "mm"),
    "particle_pdg": Field("int32"),
    "particle_momentum": Field("float64", (3,), "GeV"),
    "particle_position": Field("float64", (3,), "mm"),
}
PARTICLE_FIELDS: dict[str, Field] = {
    "id": Field("int32"),
    "parent": Field("int32"),
    "interaction": Field("int32"),
    "pdg": Field("int32"),
    "label": Field("int32"),
    "momentum": Field("float32", (3,), "GeV"),
    "vertex": Field("float32", (3,), "mm"),
}
PROVENANCE_FIELDS: dict[str, type] = {"generator": str, "seed": int, "file": str, "index": int}


@dataclass(eq=False)
class Voxels:
    """The voxels of one branch.

    Attributes:
        coordinates: voxel indices (N, 3) int16.
        values: (N, C) float32; channel 0 is the energy in MeV.
        labels: label name -> shares (N, K) float32. A binary label has K = 1 and NaN where unlabelled; a row of zeros of a
            soft label is unlabelled.
        instances: name -> instance ids (N,) int32, -1 for none.
        voxel_of_hit: for each of R raw hits the row of its voxel, (R,) int32; None when the voxels are the raw hits.
    """

    coordinates: np.ndarray
    values: np.ndarray
    labels: dict[str, np.ndarray] = field(default_factory=dict)
    instances: dict[str, np.ndarray] = field(default_factory=dict)
    voxel_of_hit: np.ndarray | None = None

    def __post_init__(self) -> None:
        self.coordinates = np.asarray(self.coordinates).reshape(-1, 3)
        if self.coordinates.dtype != np.int16:
            if len(self.coordinates) and np.abs(self.coordinates).max() > np.iinfo(np.int16).max:
                raise ValueError(f"voxel coordinates up to {np.abs(self.coordinates).max()} do not fit 16 bits: check units (voxel indices, not mm)")
            self.coordinates = self.coordinates.astype(np.int16)
        values = np.asarray(self.values, dtype=np.float32)
        self.values = values[:, None] if values.ndim == 1 else values
        self.labels = {k: _columns(v, np.float32) for k, v in self.labels.items()}
        self.instances = {k: np.asarray(v, dtype=np.int32) for k, v in self.instances.items()}
        if self.voxel_of_hit is not None:
            self.voxel_of_hit = np.asarray(self.voxel_of_hit, dtype=np.int32)

    def __len__(self) -> int:
        return len(self.coordinates)

    @property
    def energy(self) -> np.ndarray:
        """Energy in MeV, (N,)."""
        return self.values[:, 0]

    def select(self, rows: np.ndarray) -> Voxels:
        """The voxels of a boolean mask or an index array; raw hits of dropped voxels are dropped with them."""
        rows = np.arange(len(self))[rows]
        hits = None
        if self.voxel_of_hit is not None:
            new_row = np.full(len(self), -1, dtype=np.int32)
            new_row[rows] = np.arange(len(rows))
            hits = new_row[self.voxel_of_hit]
            hits = hits[hits >= 0]
        # take is three times as fast as an index for rows of several numbers
        return Voxels(
            self.coordinates.take(rows, axis=0),
            self.values.take(rows, axis=0),
            {k: v.take(rows, axis=0) for k, v in self.labels.items()},
            {k: v.take(rows) for k, v in self.instances.items()},
            hits,
        )


def _columns(values: Any, dtype: type) -> np.ndarray:
    values = np.asarray(values, dtype=dtype)
    return values[:, None] if values.ndim == 1 else values


@dataclass(eq=False)
class Event:
    """One event of one detector; every reader and simulation makes these, everything downstream takes them.

    Attributes:
        detector: `DetectorSpec.name`.
        voxels: by branch name. A missing key means that the sub-detector was absent; no voxels means present and empty.
        images: by branch name, float32, MeV.
        tracks: by branch name, (T, F) float32, columns as `TrackBranch.features`.
        truth: class indices for the spec's `event_labels`, and quantities of `TRUTH_FIELDS`; missing means unknown.
        particles: per-particle truth, columns of `PARTICLE_FIELDS`, first axis P.
        provenance: `PROVENANCE_FIELDS`.
    """

    detector: str
    voxels: dict[str, Voxels] = field(default_factory=dict)
    images: dict[str, np.ndarray] = field(default_factory=dict)
    tracks: dict[str, np.ndarray] = field(default_factory=dict)
    truth: dict[str, Any] = field(default_factory=dict)
    particles: dict[str, np.ndarray] = field(default_factory=dict)
    provenance: dict[str, int | str] = field(default_factory=dict)

    def __str__(self) -> str:
        p = self.provenance
        where = f"{p['file']} " if p.get("file") else ""
        return f"{self.detector} event {where}seed {p.get('seed', '?')} index {p.get('index', '?')}"

    def validate(self, spec: DetectorSpec) -> None:
        """Check the event against a detector.

        Raises:
            ValueError: names the event, the branch and the first offending value.
        """
        if self.detector != spec.name:
            raise ValueError(f"{self} belongs to detector {self.detector!r}, not to {spec.name!r}: load the processor of its own detector")
        for kind, held, branches in (
            ("voxel", self.voxels, spec.voxel_branches),
            ("image", self.images, spec.image_branches),
            ("track", self.tracks, spec.track_branches),
        ):
            if unknown := set(held) - {b.name for b in branches}:
                raise ValueError(f"{self}: unknown {kind} branches {sorted(unknown)}; {spec.name!r} has {[b.name for b in branches]}")
        for branch in spec.voxel_branches:
            if branch.name in self.voxels:
                self._validate_voxels(branch, self.voxels[branch.name])
        for branch in spec.image_branches:
            if branch.name in self.images:
                image = np.asarray(self.images[branch.name])
                if image.shape != branch.shape:
                    raise ValueError(f"{self}, branch {branch.name!r}: image shape {image.shape} is not {branch.shape}")
                self._require_finite(branch.name, image.reshape(-1, 1))
        for branch in spec.track_branches:
            if branch.name in self.tracks:
                tracks = np.asarray(self.tracks[branch.name])
                if tracks.ndim != 2 or tracks.shape[1] != len(branch.features):
                    raise ValueError(f"{self}, branch {branch.name!r}: tracks have shape {tracks.shape}, not (T, {len(branch.features)})")
                self._require_finite(branch.name, tracks)
        for name, value in self.truth.items():
            if name in spec.event_labels:
                if not 0 <= int(value) < len(spec.event_labels[name]):
                    raise ValueError(f"{self}: label {name}={value} is not one of {len(spec.event_labels[name])} classes {spec.event_labels[name]}")
            elif name not in TRUTH_FIELDS:
                raise ValueError(f"{self}: unknown truth quantity {name!r}; known are {[*spec.event_labels, *TRUTH_FIELDS]}")
            elif np.shape(value) != TRUTH_FIELDS[name].shape:
                raise ValueError(f"{self}: truth {name} has shape {np.shape(value)}, not {TRUTH_FIELDS[name].shape}")
        if len({len(v) for v in self.particles.values()}) > 1 or set(self.particles) - set(PARTICLE_FIELDS):
            raise ValueError(f"{self}: particle columns { {k: len(v) for k, v in self.particles.items()} } differ in length or are unknown")

    def _validate_voxels(self, branch: VoxelBranch, voxels: Voxels) -> None:
        where = f"{self}, branch {branch.name!r}"
        n = len(voxels)
        if voxels.values.shape != (n, len(branch.channels)):
            raise ValueError(f"{where}: values have shape {voxels.values.shape}, not ({n}, {len(branch.channels)}) for channels {branch.channels}")
        outside = ((voxels.coordinates < 0) | (voxels.coordinates >= np.asarray(branch.shape))).any(axis=1)
        if outside.any():
            row = int(np.flatnonzero(outside)[0])
            raise ValueError(
                f"{where}: voxel {voxels.coordinates[row].tolist()} (row {row}, {outside.sum()} in all) lies outside the grid {branch.shape}; "
                "check the axis order and that coordinates are voxel indices"
            )
        self._require_finite(branch.name, voxels.values)
        if n and voxels.energy.min() < 0:
            row = int(voxels.energy.argmin())
            raise ValueError(f"{where}: energy {voxels.energy[row]} MeV (row {row}) is negative; subtract pedestals and drop noise first")
        classes = {label.name: len(label.classes) for label in branch.labels}
        for name, values in voxels.labels.items():
            if values.shape != (n, classes.get(name, -1)):
                raise ValueError(f"{where}: label {name!r} of shape {values.shape} does not fit {n} voxels and the classes {classes}")
        for name, values in voxels.instances.items():
            if name not in branch.instances or values.shape != (n,):
                raise ValueError(f"{where}: instances {name!r} of shape {values.shape} do not fit {n} voxels and the names {branch.instances}")
        hits = voxels.voxel_of_hit
        if hits is not None and len(hits) and (hits.min() < 0 or hits.max() >= n):
            raise ValueError(f"{where}: voxel_of_hit points to rows {hits.min()}..{hits.max()} of {n} voxels")

    def _require_finite(self, branch: str, values: np.ndarray) -> None:
        if not np.isfinite(values).all():
            row, column = (int(i) for i in np.argwhere(~np.isfinite(values))[0])
            raise ValueError(f"{self}, branch {branch!r}: {values[row, column]} at row {row}, column {column} is not finite; drop the event")
