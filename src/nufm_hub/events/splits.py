"""Splits that do not leak: groups of related events stay together, and new data never moves an old event."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from .event import PROVENANCE_FIELDS, TRUTH_FIELDS, Event
from .parquet import EventBatch, _open, event_features
from .streaming import list_shards

SPLITS = ("train", "validation", "test")
GROUPS = ("event", "seed", "interaction", "initial_condition")

# Numbers that pass through single precision, other units or text differ in the last digits; these steps are far below any resolution.
_STEP = {"mm": 1e-2, "GeV": 1e-5}
_DIRECTION_STEP = 1e-4
_INTERACTION = ("is_cc", "neutrino_pdg", "target_pdg", "neutrino_momentum", "lepton_momentum")


def read_truth(paths: str | Path | Sequence[str | Path]) -> Iterator[Event]:
    """Events of parquet shards with truth and provenance only: no voxel, image, track or particle is read."""
    for path in list_shards(paths):
        file, spec = _open(path)
        wanted = ["detector", *[f"truth.{n}" for n in (*spec.event_labels, *TRUTH_FIELDS)], *[f"provenance.{n}" for n in PROVENANCE_FIELDS]]
        features = event_features(spec)
        with file:
            for group in range(file.num_row_groups):
                for batch in file.read_row_group(group, columns=wanted, use_threads=False).to_batches():
                    yield from EventBatch(batch, spec, {name: features[name] for name in wanted})


def group_key(event: Event, group_by: str) -> str:
    """The group of an event, as text.

    - `"event"`: generator, file, seed and index: keeps together what was made of one event, such as crops of its particles.
    - `"seed"`: generator and seed of the simulation.
    - `"interaction"`: what happened at the vertex (current, neutrino, target, lepton): events of one generated interaction that was
      simulated several times share it.
    - `"initial_condition"`: position (to 0.01 mm), direction (to 1e-4) and momentum (to 0.01 MeV) of the single particle. The public
      scintillator set repeats these across its training and testing halves.

    Raises:
        ValueError: the event lacks the quantity.
    """
    if group_by == "event":
        if "index" not in event.provenance:
            raise ValueError(f"{event} does not say which one it is: group by 'interaction' or 'initial_condition' instead")
        return "|".join(f"{name}={event.provenance[name]}" for name in PROVENANCE_FIELDS if name in event.provenance)
    if group_by == "seed":
        if "seed" not in event.provenance:
            raise ValueError(f"{event} has no seed: group by 'interaction' or 'initial_condition' instead")
        return f"{event.provenance.get('generator', '')}|{event.provenance['seed']}"
    if group_by == "interaction":
        if "neutrino_momentum" not in event.truth:
            raise ValueError(f"{event} has no neutrino: group by 'seed' or 'initial_condition' instead")
        return "|".join(f"{name}={_rounded(name, event.truth[name])}" for name in _INTERACTION if name in event.truth)
    if group_by == "initial_condition":
        if not {"particle_position", "particle_momentum"} <= event.truth.keys():
            raise ValueError(f"{event} has no position and momentum of a single particle: group by 'seed' or 'interaction' instead")
        momentum = _single(event.truth["particle_momentum"])
        size = float(np.linalg.norm(momentum))
        direction = np.rint(momentum / (size or 1.0) / _DIRECTION_STEP).astype(np.int64).tolist()
        return f"{_rounded('particle_position', event.truth['particle_position'])}|{direction}|{round(size / _STEP['GeV'])}"
    raise ValueError(f"group_by={group_by!r} is not one of {GROUPS}")


def _rounded(name: str, value: object) -> list[int]:
    step = _STEP.get(TRUTH_FIELDS[name].unit, 1)
    return np.rint(np.atleast_1d(_single(value)) / step).astype(np.int64).tolist()


def _single(value: object) -> np.ndarray:
    # Through float32 first: otherwise a copy stored in single precision may fall on the other side of a rounding edge.
    return np.asarray(value, dtype=np.float32).astype(np.float64)


def split_events(
    events: Iterable[Event] | str | Path | Sequence[str | Path],
    fractions: tuple[float, float, float] = (0.85, 0.05, 0.10),
    seed: int = 7,
    group_by: str = "seed",
) -> dict[str, np.ndarray]:
    """Share events out to `train`, `validation` and `test` (85 %, 5 %, 10 % and seed 7 as in arXiv:2604.07037).

    The split of an event depends only on its group, `seed` and `fractions`: groups are never divided, and adding or removing
    events never moves another one. Sizes follow the fractions on average over groups.

    Args:
        events: events (those of `read_truth` are enough), or parquet shards.
        fractions: of train, validation and test; they add up to 1.
        seed: choose another split.
        group_by: see `group_key`.

    Returns:
        For each split the positions (int64) of its events in the order given.

    Raises:
        ValueError: fractions that do not add up, an event without the quantity to group by, or fewer groups than splits.
    """
    if min(fractions) < 0 or len(fractions) != 3 or abs(sum(fractions) - 1) > 1e-9:
        raise ValueError(f"fractions must be three numbers from 0 to 1 that add up to 1, got {fractions}")
    if isinstance(events, (str, Path)) or (isinstance(events, Sequence) and events and isinstance(events[0], (str, Path))):
        events = read_truth(events)
    keys = [group_key(event, group_by) for event in events]
    if keys and (groups := len(set(keys))) < np.count_nonzero(fractions):
        raise ValueError(f"{len(keys)} events make only {groups} groups by {group_by!r}, too few to split: group by another of {GROUPS}")
    places = np.searchsorted(np.cumsum(fractions)[:2], [_uniform(key, seed) for key in keys], side="right")
    return {name: np.flatnonzero(places == i) for i, name in enumerate(SPLITS)}


def _uniform(key: str, seed: int) -> float:
    """A number in [0, 1) that looks random and depends on its arguments only."""
    digest = hashlib.sha256(f"{seed}|{key}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48
