"""Do two data sets share events? By truth, and by what the detector saw."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .event import Event
from .parquet import read_events
from .splits import group_key
from .streaming import list_shards

_EXAMPLES = 5
# Significant digits of energies that are compared: enough to tell events apart, few enough to survive a change of unit and back.
_ENERGY_DIGITS = 4


@dataclass
class LeakReport:
    """What a training and a test set share.

    Attributes:
        train_events, test_events: events looked at.
        shared: for each kind (`"event"`: same generator, seed and index; `"interaction"` and `"initial_condition"`: see
            `splits.group_key`; `"voxels"`: same voxels with the same energies) the number of test events that the training set has too.
        examples: for each kind, a few pairs (training event, test event).
    """

    train_events: int = 0
    test_events: int = 0
    shared: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[tuple[str, str]]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        """True when anything is shared."""
        return any(self.shared.values())

    def __str__(self) -> str:
        lines = [f"{self.train_events} training and {self.test_events} test events"]
        for kind, count in self.shared.items():
            lines.append(f"  {kind}: {count} test events ({100 * count / max(self.test_events, 1):.2f} %) are in the training set too")
            lines += [f"    {test}  =  {train}" for train, test in self.examples.get(kind, [])]
        return "\n".join(lines)


def check_leaks(train: Iterable[Event] | str | Path | Sequence[str | Path], test: Iterable[Event] | str | Path | Sequence[str | Path]) -> LeakReport:
    """Compare two data sets event by event; memory is a few hundred bytes a training event.

    Args:
        train, test: events, or parquet shards (file, folder, glob pattern, list of these).
    """
    report = LeakReport()
    seen: dict[str, dict[bytes, str]] = {}
    for event in _events(train):
        report.train_events += 1
        for kind, fingerprint in _fingerprints(event):
            seen.setdefault(kind, {}).setdefault(fingerprint, str(event))
    for event in _events(test):
        report.test_events += 1
        for kind, fingerprint in _fingerprints(event):
            report.shared.setdefault(kind, 0)
            if (origin := seen.get(kind, {}).get(fingerprint)) is not None:
                report.shared[kind] += 1
                if len(examples := report.examples.setdefault(kind, [])) < _EXAMPLES:
                    examples.append((origin, str(event)))
    return report


def _events(source: Iterable[Event] | str | Path | Sequence[str | Path]) -> Iterator[Event]:
    if isinstance(source, (str, Path)):
        source = [source]
    for item in source:
        if isinstance(item, Event):
            yield item
        else:
            for shard in list_shards(item):
                yield from read_events(shard)


def _fingerprints(event: Event) -> Iterator[tuple[str, bytes]]:
    p = event.provenance
    if {"generator", "seed", "index"} <= p.keys():
        yield "event", _digest(f"{p['generator']}|{p['seed']}|{p['index']}".encode())
    for group in ("interaction", "initial_condition"):
        try:
            key = group_key(event, group)
        except ValueError:
            continue  # this event has no such truth
        yield group, _digest(key.encode())
    if (content := voxel_fingerprint(event)) is not None:
        yield "voxels", content


def voxel_fingerprint(event: Event) -> bytes | None:
    """A hash of the voxels and their energies (to four digits) in every branch, whatever their order; None for an event without voxels."""
    parts = []
    for name in sorted(event.voxels):
        voxels = event.voxels[name]
        if len(voxels):
            energy = voxels.energy.astype(np.float64)
            digits = _ENERGY_DIGITS - 1 - np.floor(np.log10(np.maximum(energy, 1e-12)))
            table = np.column_stack([voxels.coordinates.astype(np.float64), np.rint(energy * 10.0**digits), digits])
            parts.append(name.encode() + table[np.lexsort(table.T)].tobytes())
    return _digest(b"".join(parts)) if parts else None


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()[:16]
