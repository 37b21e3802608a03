"""Long simulation runs: events on several processes, shards on disk, interruption and resumption, provenance.

Any simulation can be run: its settings are a frozen dataclass with `name`, `packages`, `detector` and `build()`, see `SimulationSettings`.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Protocol

from tqdm import tqdm

from nufm_hub.detectors import DetectorSpec
from nufm_hub.events import Event, write_events
from nufm_hub.files import new_file, sha256_of
from nufm_hub.provenance import git_revision, package_versions

from .geant4_data import ensure_geant4_data

PROVENANCE = "provenance.json"
_AHEAD = 16  # batches a worker
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class EventMaker(Protocol):
    """Makes events in one process; `counts` adds up whatever is worth reporting."""

    counts: Counter[str]

    def events(self, run_seed: int, indices: Sequence[int]) -> Iterator[Event]:
        """These events of run `run_seed`, in order; each the same whatever events are made with it or were made before."""
        ...


class SimulationSettings(Protocol):
    """A frozen, picklable dataclass of JSON-able fields that says what to simulate.

    Attributes:
        name: of the simulation.
        packages: distributions whose versions decide about the bytes of an event, beside nufm-hub and numpy.
        batch: events that a worker makes at a time.
    """

    name: ClassVar[str]
    packages: ClassVar[tuple[str, ...]]
    batch: ClassVar[int]

    @property
    def detector(self) -> DetectorSpec: ...

    def build(self) -> EventMaker: ...


def run_simulation(settings: SimulationSettings, events: int, seed: int, out: str | Path, workers: int = 1, shard_size: int = 100) -> dict[str, Any]:
    """Simulate events into `out/<name>-00000.parquet` and so on, and describe the run in `out/provenance.json`.

    Events depend on the seed, their index, the settings and the versions of the packages, and not on `workers`. A shard appears under its name only
    when it is complete; running the same command again goes on after the last complete shard.

    Args:
        settings: `SimulationSettings` of the simulation.
        events: number of events.
        seed: non-negative seed of the run.
        out: folder, new or of an interrupted run of the same command.
        workers: processes.
        shard_size: events per file.

    Returns:
        The provenance, as stored.

    Raises:
        ValueError: numbers out of range, `out` holds something else or a run with other settings, or a kept shard was changed.
        RuntimeError: an event failed, or a worker died.
    """
    for name, value, lowest in (("events", events, 1), ("seed", seed, 0), ("workers", workers, 1), ("shard_size", shard_size, 1)):
        if value < lowest:
            raise ValueError(f"{name} = {value}: must be at least {lowest}")
    out = Path(out)
    provenance = _open_run(out, _identity(settings, events, seed, shard_size))
    shards = provenance["shards"]
    names = [f"{settings.name}-{i:05d}.parquet" for i in range(-(-events // shard_size))]
    for name, record in shards.items():
        _verify(out / name, record)
    missing = [(i, name) for i, name in enumerate(names) if name not in shards]
    indices = [k for i, _ in missing for k in range(i * shard_size, min(events, (i + 1) * shard_size))]
    kept = events - len(indices)
    bar = tqdm(total=events, initial=kept, desc=f"simulate {settings.name}", unit="event")
    with bar, _EventStream(settings, seed, indices, workers) as stream:
        for i, name in missing:
            started = time.monotonic()
            (out / name).unlink(missing_ok=True)  # written but not recorded before an interruption
            size = min(events, (i + 1) * shard_size) - i * shard_size
            counts: Counter[str] = Counter()
            count = write_events(_with_progress(islice(stream, size), counts, bar, name), out / name, settings.detector)
            shards[name] = {
                "events": count,
                "bytes": (out / name).stat().st_size,
                "sha256": sha256_of([out / name]),
                "seconds": round(time.monotonic() - started, 2),
                "counts": dict(sorted(counts.items())),
            }
            _summarise(provenance, workers)
            _write_json(out / PROVENANCE, provenance)
    return provenance


def simulate_events(settings: SimulationSettings, seed: int, indices: Sequence[int], workers: int = 1) -> Iterator[Event]:
    """Events of a run by their numbers, in that order: the same as in the shards of the run; with changed settings, the same events otherwise.

    Args:
        settings: `SimulationSettings` of the simulation.
        seed: of the run.
        indices: numbers of the events in the run.
        workers: processes.
    """
    if "calzone" in settings.packages:
        ensure_geant4_data()
    with _EventStream(settings, seed, list(indices), workers) as stream:
        for event, _ in stream:
            yield event


def _identity(settings: SimulationSettings, events: int, seed: int, shard_size: int) -> dict[str, Any]:
    """All that the bytes of a run depend on."""
    packages = ("nufm-hub", "numpy", "pyarrow", *settings.packages)
    return {
        "simulation": settings.name,
        "settings": json.loads(json.dumps(asdict(settings))),
        "seed": seed,
        "events": events,
        "shard_size": shard_size,
        "detector": settings.detector.name,
        "detector_hash": settings.detector.hash,
        "versions": package_versions(packages),
        # "geant4-<n>" is version n of the stand-in tables.
        "geant4_data": ensure_geant4_data().name if "calzone" in settings.packages else "not used",
    }


def _open_run(out: Path, identity: dict[str, Any]) -> dict[str, Any]:
    """Provenance of a new run, or of the interrupted run that `out` holds."""
    path = out / PROVENANCE
    if path.exists():
        try:
            provenance = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not readable: {error}. Give another folder") from error
        held = {key: provenance.get(key) for key in identity}
        if different := [key for key in identity if held[key] != identity[key]]:
            changes = "; ".join(f"{key} was {held[key]}, now {identity[key]}" for key in different)
            raise ValueError(f"{out} holds a run with other settings ({changes}): repeat the old command to resume it, or give another folder")
        for leftover in out.glob(".*.tmp"):
            leftover.unlink()
        revision = git_revision()
        if revision not in provenance["git_revisions"]:
            provenance["git_revisions"].append(revision)
        return provenance
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty and holds no {PROVENANCE}: give a new folder")
    out.mkdir(parents=True, exist_ok=True)
    provenance = {**identity, "git_revisions": [git_revision()], "shards": {}}
    _write_json(path, provenance)
    return provenance


def _verify(path: Path, record: dict[str, Any]) -> None:
    if not path.exists() or sha256_of([path]) != record["sha256"]:
        raise ValueError(f"{path} is missing or is not the file that this run wrote: restore it, or start again in a new folder")


def _summarise(provenance: dict[str, Any], workers: int) -> None:
    shards = provenance["shards"].values()
    made, seconds = sum(s["events"] for s in shards), sum(s["seconds"] for s in shards)
    counts = sum((Counter(s["counts"]) for s in shards), Counter())
    provenance["summary"] = {
        "complete": made == provenance["events"],
        "events": made,
        "counts": dict(sorted(counts.items())),
        "wall_seconds": round(seconds, 1),
        "events_per_hour": round(3600 * made / max(seconds, 1e-9)),
        "kilobytes_per_event": round(sum(s["bytes"] for s in shards) / 1000 / made, 1),
        "workers": workers,
    }


def _with_progress(stream: Iterator[tuple[Event, Counter[str]]], counts: Counter[str], bar: tqdm, file: str) -> Iterator[Event]:
    for event, extra in stream:
        counts.update(extra)
        event.provenance["file"] = file
        bar.update()
        yield event


class _EventStream:
    """(event, what was counted since the event before) of many indices in order, made by processes that stay a little ahead of the reader."""

    def __init__(self, settings: SimulationSettings, seed: int, indices: list[int], workers: int) -> None:
        self._settings, self._seed = settings, seed
        self._batches = [indices[i : i + settings.batch] for i in range(0, len(indices), settings.batch)]
        self._workers = min(workers, len(self._batches))
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Iterator[tuple[Event, Counter[str]]]:
        # Geant4 keeps global tables: another simulation that ran in this process before would change the events.
        if not self._batches or (self._workers == 1 and "calzone" not in self._settings.packages):
            return self._in_process()
        for variable in _THREAD_VARIABLES:
            os.environ.setdefault(variable, "1")
        # Forked processes would share the state of Geant4 and of thread pools.
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(self._workers, mp_context=context, initializer=_start_worker, initargs=(self._settings, self._seed))
        return self._from_pool(self._pool)

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def _in_process(self) -> Iterator[tuple[Event, Counter[str]]]:
        worker = _Worker(self._settings, self._seed) if self._batches else None
        for batch in self._batches:
            yield from worker.make(batch)

    def _from_pool(self, pool: ProcessPoolExecutor) -> Iterator[tuple[Event, Counter[str]]]:
        waiting: deque[Future] = deque()
        batches = iter(self._batches)
        while True:
            waiting.extend(pool.submit(_make_events, batch) for batch in islice(batches, _AHEAD * self._workers - len(waiting)))
            if not waiting:
                return
            try:
                yield from waiting.popleft().result()
            except BrokenProcessPool as error:
                raise RuntimeError("a worker process died (out of memory?): run the same command again to resume, with fewer workers") from error


class _Worker:
    def __init__(self, settings: SimulationSettings, seed: int) -> None:
        self._maker = settings.build()
        self._seed = seed

    def make(self, indices: list[int]) -> list[tuple[Event, Counter[str]]]:
        out = []
        before = Counter(self._maker.counts)
        try:
            for event in self._maker.events(self._seed, indices):
                out.append((event, self._maker.counts - before))
                before = Counter(self._maker.counts)
        except Exception as error:
            raise RuntimeError(f"simulating events {indices[0]} to {indices[-1]} of seed {self._seed} failed: {error}") from error
        return out


_worker: _Worker | None = None


def _start_worker(settings: SimulationSettings, seed: int) -> None:
    global _worker
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker = _Worker(settings, seed)


def _end_with_parent() -> None:
    """A killed parent cannot stop its workers, which would wait for work forever."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _make_events(indices: list[int]) -> list[tuple[Event, Counter[str]]]:
    return _worker.make(indices)


def _write_json(path: Path, data: dict[str, Any]) -> None:
    with new_file(path, overwrite=True) as temporary:
        temporary.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
