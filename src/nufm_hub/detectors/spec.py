"""What a detector is: a name, and the branches (sub-detectors) that read it out, as data.

Everything downstream (events, processor, model configuration, displays, simulation) derives from a `DetectorSpec`.
A new detector is a new JSON file; see `fasercal.json` for one with every kind of branch.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

SPEC_VERSION = 1


@dataclass(frozen=True)
class VoxelLabel:
    """A per-voxel truth label that the branch's events may carry.

    Attributes:
        name: label name, e.g. `"hierarchy"`.
        classes: class names. One class makes a binary label (the value is the probability of that class); several make a
            soft label whose row holds the share of each class. A row of zeros (NaN for a binary label) is unlabelled.
    """

    name: str
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", tuple(self.classes))
        if not self.name or not self.classes:
            raise ValueError(f"voxel label {self.name!r} needs a name and at least one class")

    @property
    def is_binary(self) -> bool:
        return len(self.classes) == 1


@dataclass(frozen=True)
class Blocks:
    """Equal blocks of layers along one axis with free space between them (modules of a calorimeter).

    Attributes:
        axis: 0, 1 or 2.
        length: layers in a block.
        starts: coordinate of the low edge of each block, in mm, increasing and not overlapping.
    """

    axis: int
    length: int
    starts: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "starts", tuple(float(s) for s in self.starts))


@dataclass(frozen=True)
class VoxelBranch:
    """A sparse 3-D read-out.

    Attributes:
        name: branch name, unique in the detector.
        shape: number of voxels along x, y, z.
        voxel_size: edge lengths in mm.
        origin: position in mm of the low corner of voxel (0, 0, 0); along `blocks.axis` the block starts rule instead.
        patch: voxels per patch along x, y, z. Patches are counted from voxel 0; the last one may reach beyond the grid.
        window: patches per window along x, y, z, counted likewise. One window is one attention sequence.
        channels: names of the values of a voxel; the first is an energy in MeV.
        blocks: gaps along one axis, or None for a contiguous grid.
        labels: per-voxel truth labels its events may carry.
        instances: names of per-voxel integer instance ids its events may carry (-1: none).
    """

    kind: ClassVar[str] = "voxels"
    name: str
    shape: tuple[int, int, int]
    voxel_size: tuple[float, float, float]
    origin: tuple[float, float, float]
    patch: tuple[int, int, int]
    window: tuple[int, int, int]
    channels: tuple[str, ...] = ("energy",)
    blocks: Blocks | None = None
    labels: tuple[VoxelLabel, ...] = ()
    instances: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for key, cast in (("shape", int), ("voxel_size", float), ("origin", float), ("patch", int), ("window", int)):
            value = tuple(getattr(self, key))
            if len(value) != 3:
                raise ValueError(f"branch {self.name!r}: {key} needs three numbers (x, y, z), got {value}")
            if any(v != cast(v) or not math.isfinite(v) for v in value):
                raise ValueError(f"branch {self.name!r}: {key} must be three finite {cast.__name__} values, got {value}")
            object.__setattr__(self, key, tuple(cast(v) for v in value))
        for key in ("channels", "instances"):
            object.__setattr__(self, key, tuple(getattr(self, key)))
        labels = tuple(v if isinstance(v, VoxelLabel) else _build(VoxelLabel, v, f"branch {self.name!r} label") for v in self.labels)
        object.__setattr__(self, "labels", labels)
        if isinstance(self.blocks, Mapping):
            object.__setattr__(self, "blocks", _build(Blocks, self.blocks, f"branch {self.name!r} blocks"))
        if not self.channels:
            raise ValueError(f"branch {self.name!r}: channels is empty; name at least the energy")
        for axis, (n, size, patch, window) in enumerate(zip(self.shape, self.voxel_size, self.patch, self.window)):
            if min(n, patch, window) < 1 or size <= 0:
                raise ValueError(f"branch {self.name!r}, axis {axis}: shape, voxel_size, patch and window must be positive")
        if (b := self.blocks) is not None:
            edges = np.asarray(b.starts)
            if b.axis not in (0, 1, 2) or b.length < 1 or len(b.starts) * b.length != self.shape[b.axis]:
                raise ValueError(f"branch {self.name!r}: {len(b.starts)} blocks of {b.length} layers do not fill axis {b.axis} of {self.shape}")
            if (np.diff(edges) < b.length * self.voxel_size[b.axis] - 1e-6).any():
                raise ValueError(f"branch {self.name!r}: block starts {b.starts} overlap or do not increase")

    @property
    def patch_grid(self) -> tuple[int, int, int]:
        """Patches along x, y, z."""
        return tuple(-(-n // p) for n, p in zip(self.shape, self.patch))  # type: ignore[return-value]

    @property
    def window_grid(self) -> tuple[int, int, int]:
        """Windows along x, y, z."""
        return tuple(-(-n // w) for n, w in zip(self.patch_grid, self.window))  # type: ignore[return-value]

    @property
    def positions_per_window(self) -> int:
        return math.prod(self.window)

    @property
    def num_windows(self) -> int:
        return math.prod(self.window_grid)

    def _edges(self, axis: int) -> np.ndarray:
        """Low edge in mm of every layer along an axis, shape (shape[axis],)."""
        size = self.voxel_size[axis]
        if self.blocks is not None and self.blocks.axis == axis:
            return (np.asarray(self.blocks.starts)[:, None] + size * np.arange(self.blocks.length)).ravel()
        return self.origin[axis] + size * np.arange(self.shape[axis])

    @cached_property
    def _low_edges(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self._edges(0), self._edges(1), self._edges(2)

    def to_mm(self, coordinates: np.ndarray) -> np.ndarray:
        """Centres in mm, float64 (N, 3), of voxel indices (N, 3). Raises ValueError outside the grid."""
        index = np.asarray(coordinates)
        bad = (index < 0) | (index >= np.asarray(self.shape))
        if bad.any():
            row = int(np.flatnonzero(bad.any(axis=-1))[0])
            raise ValueError(f"branch {self.name!r}: voxel {index[row].tolist()} (row {row}) lies outside the grid {self.shape}")
        index = index.astype(np.int64)
        return np.stack([self._low_edges[a][index[..., a]] + self.voxel_size[a] / 2 for a in range(3)], axis=-1)

    def to_voxel(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Voxel indices int64 (N, 3) of positions in mm (N, 3), and a bool (N,) that is False outside every voxel.

        A voxel holds its low faces and not its high ones. Indices of rows outside are meaningless.
        """
        positions = np.asarray(positions, dtype=np.float64)
        index = np.empty(positions.shape, dtype=np.int64)
        inside = np.ones(positions.shape[:-1], dtype=bool)
        for a in range(3):
            low, x = self._low_edges[a], positions[..., a]
            i = np.searchsorted(low, x, side="right") - 1
            index[..., a] = i
            inside &= (i >= 0) & (x < low[np.clip(i, 0, None)] + self.voxel_size[a])
        return index, inside

    @property
    def bounds(self) -> np.ndarray:
        """Low and high corner of the branch in mm, shape (2, 3)."""
        low = np.array([e[0] for e in self._low_edges])
        return np.stack([low, np.array([e[-1] for e in self._low_edges]) + self.voxel_size])


@dataclass(frozen=True)
class ImageBranch:
    """A dense read-out of fixed size, e.g. calorimeter towers; values are energies in MeV. `shape` is (x, y)."""

    kind: ClassVar[str] = "image"
    name: str
    shape: tuple[int, ...]
    pixel_size: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        object.__setattr__(self, "pixel_size", tuple(float(n) for n in self.pixel_size))
        if not self.shape or min(self.shape) < 1:
            raise ValueError(f"branch {self.name!r}: image shape must be positive, got {self.shape}")

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class TrackBranch:
    """A list of fitted tracks.

    Attributes:
        features: names of the columns an event stores.
        max_count: largest number of tracks an event keeps.
        model_features: the columns the model sees, in this order; all when empty.
    """

    kind: ClassVar[str] = "tracks"
    name: str
    features: tuple[str, ...]
    max_count: int
    model_features: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "features", tuple(self.features))
        object.__setattr__(self, "model_features", tuple(self.model_features) or self.features)
        unknown = set(self.model_features) - set(self.features)
        if not self.features or self.max_count < 1 or unknown:
            raise ValueError(f"branch {self.name!r}: needs features and max_count >= 1; unknown model features: {sorted(unknown)}")


Branch = VoxelBranch | ImageBranch | TrackBranch
_KINDS = {cls.kind: cls for cls in (VoxelBranch, ImageBranch, TrackBranch)}


@dataclass(frozen=True)
class DetectorSpec:
    """A detector: name, branches in order, and the classes of its event labels.

    Lengths are in mm, energies in MeV (deposits) and GeV (truth momenta) for every detector.

    Attributes:
        name: detector name.
        branches: voxel branches first, then images, then tracks. The first voxel branch is the reference one.
        event_labels: classes of each categorical event label, e.g. `{"flavour": ("nue_cc", ...)}`.
        description: one sentence.
        version: version of this JSON layout.
    """

    name: str
    branches: tuple[Branch, ...]
    event_labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    description: str = ""
    version: int = SPEC_VERSION

    def __post_init__(self) -> None:
        if self.version != SPEC_VERSION:
            raise ValueError(f"detector {self.name!r}: spec version {self.version} is not {SPEC_VERSION}, the one this package reads")
        branches = tuple(b if isinstance(b, Branch) else _branch_from_dict(b, self.name) for b in self.branches)
        object.__setattr__(self, "branches", branches)
        object.__setattr__(self, "event_labels", {k: tuple(v) for k, v in dict(self.event_labels).items()})
        names = [b.name for b in branches]
        if not self.name or not self.voxel_branches:
            raise ValueError(f"detector {self.name!r} needs a name and at least one voxel branch")
        if len(set(names)) != len(names):
            raise ValueError(f"detector {self.name!r}: branch names {names} are not unique")
        order = [list(_KINDS).index(b.kind) for b in branches]
        if order != sorted(order):
            raise ValueError(f"detector {self.name!r}: branches must come as voxels, then image, then tracks; got {[b.kind for b in branches]}")
        if len(self.image_branches) > 1 or len(self.track_branches) > 1:
            raise ValueError(f"detector {self.name!r}: at most one image and one track branch are supported")

    @property
    def voxel_branches(self) -> tuple[VoxelBranch, ...]:
        return tuple(b for b in self.branches if isinstance(b, VoxelBranch))

    @property
    def image_branches(self) -> tuple[ImageBranch, ...]:
        return tuple(b for b in self.branches if isinstance(b, ImageBranch))

    @property
    def track_branches(self) -> tuple[TrackBranch, ...]:
        return tuple(b for b in self.branches if isinstance(b, TrackBranch))

    @property
    def image_branch(self) -> ImageBranch | None:
        return next(iter(self.image_branches), None)

    @property
    def track_branch(self) -> TrackBranch | None:
        return next(iter(self.track_branches), None)

    def branch(self, name: str) -> Branch:
        for b in self.branches:
            if b.name == name:
                return b
        raise ValueError(f"detector {self.name!r} has no branch {name!r}; it has {[b.name for b in self.branches]}")

    def classes(self, label: str) -> tuple[str, ...]:
        """Class names of a categorical event label."""
        if label not in self.event_labels:
            raise ValueError(f"detector {self.name!r} has no event label {label!r}; it has {sorted(self.event_labels)}")
        return self.event_labels[label]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able dictionary; `DetectorSpec.from_dict` gives an equal spec back."""
        out = asdict(self)
        out["branches"] = [{"kind": b.kind, **asdict(b)} for b in self.branches]
        return json.loads(json.dumps(out))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> DetectorSpec:
        return _build(cls, data, "detector")

    @classmethod
    def from_json(cls, path: str | Path) -> DetectorSpec:
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError) as error:
            raise ValueError(f"cannot read a detector spec from {path}: {error}") from error
        if not isinstance(data, dict):
            raise ValueError(f"cannot read a detector spec from {path}: the file holds no JSON object")
        return cls.from_dict(data)

    @property
    def hash(self) -> str:
        """SHA-256 (first 16 hex digits) of all that changes what numbers mean; the description does not."""
        data = self.to_dict()
        del data["description"]
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]


def _build(cls: type, data: Mapping[str, Any], where: str) -> Any:
    """`cls(**data)` with an error that names what is unknown or missing."""
    known = {f.name for f in fields(cls)}
    if unknown := set(data) - known:
        raise ValueError(f"{where}: unknown keys {sorted(unknown)}; known are {sorted(known)}")
    try:
        return cls(**data)
    except TypeError as error:
        raise ValueError(f"{where}: {error}") from error


def _branch_from_dict(data: Mapping[str, Any], detector: str) -> Branch:
    data = dict(data)
    kind = data.pop("kind", None)
    if kind not in _KINDS:
        raise ValueError(f"detector {detector!r}: branch kind {kind!r} is not one of {sorted(_KINDS)}")
    return _build(_KINDS[kind], data, f"detector {detector!r} branch {data.get('name')!r}")


def list_detectors() -> list[str]:
    """Names of the detectors that come with the package."""
    return sorted(p.name.removesuffix(".json") for p in resources.files(__package__).iterdir() if p.name.endswith(".json"))


def load_detector(detector: str | Path | Mapping[str, Any] | DetectorSpec) -> DetectorSpec:
    """A spec from a packaged name, a JSON file, a dictionary, or a spec (returned as it is).

    Raises:
        ValueError: unknown name, unreadable file, or a layout that does not make sense.
    """
    if isinstance(detector, DetectorSpec):
        return detector
    if isinstance(detector, Mapping):
        return DetectorSpec.from_dict(detector)
    if str(detector) in list_detectors():
        return DetectorSpec.from_json(resources.files(__package__) / f"{detector}.json")
    if Path(detector).suffix == ".json":
        return DetectorSpec.from_json(detector)
    raise ValueError(f"unknown detector {str(detector)!r}: give one of {list_detectors()}, or the path of a JSON file")
