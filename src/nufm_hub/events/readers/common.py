"""What the readers of foreign formats share: files of a source, ranges of events, errors that say where."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from nufm_hub.detectors import DetectorSpec, VoxelBranch

from ..event import Event

OnBad = Callable[[ValueError], None]


class EventFile(Protocol):
    """An open file of a foreign format."""

    def __len__(self) -> int: ...

    def event(self, index: int) -> Event:
        """The event at a position. Raises ValueError for one that cannot be read; the caller adds file and index."""

    def close(self) -> None: ...


@dataclass(frozen=True)
class Format:
    """A foreign format.

    Attributes:
        name: as on the command line.
        suffixes: of its files.
        detector: packaged detector that its events belong to; None when the user has to say.
        open: `(path, name, spec, **options) -> EventFile`; `name` is the path to put into messages and provenance.
        options: names of the options that `open` takes.
        check: raises ValueError for options that make no sense, whatever the file.
    """

    name: str
    suffixes: tuple[str, ...]
    detector: str | None
    open: Callable[..., EventFile]
    options: tuple[str, ...] = ()
    check: Callable[..., None] = lambda: None


class SourceFile(NamedTuple):
    """A file, and its name relative to the source it was found in (absolute paths stay out of data sets)."""

    path: Path
    name: str


def source_files(source: str | Path | Sequence[str | Path], suffixes: tuple[str, ...]) -> list[SourceFile]:
    """The files of a source in order: a file, a folder (searched recursively), or a list of these.

    Raises:
        ValueError: nothing there has one of the suffixes.
    """
    files: list[SourceFile] = []
    for path in [source] if isinstance(source, (str, Path)) else source:
        path = Path(path)
        if path.is_file():
            found = [SourceFile(path, path.name)]
        else:
            held = sorted(p for p in path.rglob("*") if p.suffix in suffixes and not p.name.startswith("."))
            found = [SourceFile(p, p.relative_to(path).as_posix()) for p in held]
        if not found:
            raise ValueError(f"{path} holds no file that ends in {' or '.join(suffixes)}")
        files += found
    return files


def read_format(
    fmt: Format, source: str | Path | Sequence[str | Path], spec: DetectorSpec, on_bad: OnBad | None = None, **options: Any
) -> Iterator[Event]:
    """All events of a source, one in memory at a time. Options and source are checked at once; see `read_range` for later errors."""
    fmt.check(**options)
    files = source_files(source, fmt.suffixes)
    return (event for file in files for event in read_range(fmt, file, spec, 0, None, on_bad, **options))


def read_range(
    fmt: Format, file: SourceFile, spec: DetectorSpec, start: int, stop: int | None, on_bad: OnBad | None = None, **options: Any
) -> Iterator[Event]:
    """Events `start` to `stop` of a file.

    Args:
        on_bad: called with the error of a file or event that cannot be read, which is then skipped; None raises the error.

    Raises:
        ValueError: names the file, the event and what is wrong.
    """
    try:
        opened = fmt.open(file.path, file.name, spec, **options)
    except ValueError as error:
        _bad(ValueError(f"{file.name}: {error}"), error, on_bad)
        return
    try:
        for index in range(start, len(opened) if stop is None else min(stop, len(opened))):
            try:
                event = opened.event(index)
                event.provenance.update(file=file.name)
                event.validate(spec)
            except ValueError as error:
                _bad(ValueError(f"{file.name}, event {index}: {error}"), error, on_bad)
                continue
            yield event
    finally:
        opened.close()


def _bad(error: ValueError, cause: ValueError, on_bad: OnBad | None) -> None:
    if on_bad is None:
        raise error from cause
    on_bad(error)


class Hdf5File:
    """An HDF5 file whose missing or damaged parts are reported by name.

    Raises:
        ImportError: h5py is not installed.
        ValueError: the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        try:
            import h5py
        except ImportError as error:
            raise ImportError('reading HDF5 files needs h5py: pip install "nufm-hub[readers]"') from error
        try:
            self._file = h5py.File(path, "r")
        except OSError as error:
            raise ValueError(f"is not a readable HDF5 file (truncated, or of another format): {error}") from error

    def close(self) -> None:
        self._file.close()

    def has(self, name: str) -> bool:
        return name in self._file

    def dataset(self, name: str, fields: Sequence[str] = ()) -> Any:
        """The h5py dataset of a name. Raises ValueError when it, or one of the fields it must have, is missing."""
        if name not in self._file:
            raise ValueError(f"dataset {name!r} is missing; the file holds {sorted(self._file)}")
        held = self._file[name].dtype.names or ()
        if missing := [f for f in fields if f not in held]:
            raise ValueError(f"dataset {name!r} lacks the fields {missing}; it has {list(held)}")
        return self._file[name]

    def rows(self, name: str, key: int | slice) -> np.ndarray:
        """Rows of a dataset. Raises ValueError when the file is damaged there."""
        try:
            return self._file[name][key]
        except (OSError, RuntimeError) as error:
            raise ValueError(f"dataset {name!r} cannot be read at {key} (damaged file): {error}") from error


class Hdf5EventFile:
    """An `EventFile` in HDF5, closed again where it is not what it should be. A subclass counts the events, and reads one."""

    def __init__(self, path: Path, name: str, spec: DetectorSpec) -> None:
        self._spec, self._branch = spec, spec.voxel_branches[0]
        self._file = Hdf5File(path)
        try:
            self._length = self._count()
        except ValueError:
            self._file.close()
            raise

    def __len__(self) -> int:
        return self._length

    def close(self) -> None:
        self._file.close()

    def _count(self) -> int:
        """The number of events. Raises ValueError when something that they need is missing."""
        raise NotImplementedError


class SingleEventFile:
    """An `EventFile` of one event, which is opened when the event is read."""

    def __init__(self, path: Path, name: str, spec: DetectorSpec) -> None:
        self._path, self._spec = path, spec

    def __len__(self) -> int:
        return 1

    def close(self) -> None:
        """Nothing stays open between events."""


def equal_length(lengths: Mapping[str, int]) -> int:
    """The number of events that all datasets have. Raises ValueError when it differs."""
    if len(set(lengths.values())) > 1:
        raise ValueError(f"datasets differ in their number of events: {lengths}")
    return next(iter(lengths.values()))


def reshape_rows(flat: np.ndarray, columns: int, dataset: str) -> np.ndarray:
    """A flat array as rows of `columns` values. Raises ValueError when it does not divide."""
    flat = np.asarray(flat)
    if flat.size % columns:
        raise ValueError(f"dataset {dataset!r}: {flat.size} values do not divide into rows of {columns}")
    return flat.reshape(-1, columns)


def one_hot(index: np.ndarray, classes: int) -> np.ndarray:
    """Shares (N, classes) float32 of class indices; a row of zeros where the index is -1."""
    return (np.asarray(index)[:, None] == np.arange(classes)).astype(np.float32)


# Class names mean the same under any of these spellings; detectors may use either.
_ALIASES = {"photon": "gamma", "electron": "e", "muon": "mu", "pion": "pi", "proton": "p", "led": "low_energy"}


def to_classes(index: np.ndarray, names: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    """Indices into a format's class `names` as indices into a detector's `classes`; -1, and classes the detector lacks, become -1."""
    positions = {_ALIASES.get(c, c): i for i, c in enumerate(classes)}
    return np.array([*(positions.get(_ALIASES.get(n, n), -1) for n in names), -1])[index]


def label_classes(branch: VoxelBranch, label: str) -> tuple[str, ...]:
    """Classes of a branch's voxel label; empty when it has no such label."""
    return next((x.classes for x in branch.labels if x.name == label), ())


# Particle classes of the single-particle benchmarks (arXiv:2302.03787), and the PDG codes they stand for.
PARTICLE_CLASSES = ("gamma", "e", "mu", "pi", "p")
PARTICLE_CLASS_PDG = np.array([22, 11, 13, 211, 2212])


def particle_class(pdg: np.ndarray) -> np.ndarray:
    """Index into `PARTICLE_CLASSES` of PDG codes (N,); antiparticles count, an antiproton does not; -1 for anything else."""
    pdg = np.asarray(pdg)
    absolute = np.where(pdg == -2212, 0, np.abs(pdg))
    match = absolute[:, None] == PARTICLE_CLASS_PDG
    return np.where(match.any(axis=1), match.argmax(axis=1), -1)
