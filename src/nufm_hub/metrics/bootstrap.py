"""Percentile bootstrap over events, shared by all metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

CONFIDENCE = 0.95
# Events of a chunk of resamples: its arrays stay in the processor's cache.
_CHUNK = 2**18

Statistic = Callable[[np.ndarray], Mapping[str, np.ndarray]]


class Estimate(NamedTuple):
    """A value and the ends of its interval, floats or arrays (K,); NaN where undefined."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


def bootstrap(
    statistic: Statistic, num_events: int, num_resamples: int = 1000, seed: int = 0, groups: Sequence[Any] | np.ndarray | None = None
) -> dict[str, Estimate]:
    """Values on all events and central 95 % percentile intervals over resamples of events (Efron, Ann. Stat. 7 (1979) 1).

    Args:
        statistic: maps event indices (R, M), one resample a row, to named arrays (R,) or (R, K), NaN where undefined.
        num_events: N.
        num_resamples: resamples drawn with replacement; 0 leaves the intervals undefined.
        seed: of the resamples; the same seed gives the same intervals.
        groups: (N,), what each event belongs to, such as the image of a particle: groups are drawn instead of events, since those of a group
            are not independent. The number M of events then differs from resample to resample.

    Resamples in which a statistic is undefined (a rare class was not drawn) do not enter its interval.

    Raises:
        ValueError: a negative `num_resamples`, or `groups` of another length.
    """
    if num_resamples < 0:
        raise ValueError(f"num_resamples={num_resamples} is negative; 0 gives values without intervals")
    values = {name: np.asarray(v, dtype=np.float64)[0] for name, v in statistic(np.arange(num_events)[None]).items()}
    rng = np.random.default_rng(seed)
    drawn: dict[str, list[np.ndarray]] = {name: [] for name in values}
    for indices in _resamples(num_events, num_resamples, rng) if groups is None else _resamples_of_groups(groups, num_events, num_resamples, rng):
        for name, v in statistic(indices).items():
            drawn[name].append(v)
    return {name: Estimate(value, *_interval(drawn[name], value)) for name, value in values.items()}


def _resamples(num_events: int, num_resamples: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    rows = max(1, _CHUNK // num_events)
    for start in range(0, num_resamples, rows):
        yield rng.integers(0, num_events, (min(rows, num_resamples - start), num_events))


def _resamples_of_groups(groups: Sequence[Any] | np.ndarray, num_events: int, num_resamples: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    if len(groups) != num_events:
        raise ValueError(f"groups are given for {len(groups)} events, but there are {num_events}")
    _, number, sizes = np.unique(np.asarray(groups), return_inverse=True, return_counts=True)
    members = np.split(np.argsort(number, kind="stable"), sizes.cumsum()[:-1])
    for _ in range(num_resamples):
        yield np.concatenate([members[g] for g in rng.integers(0, len(members), len(members))])[None]


def _interval(chunks: Sequence[np.ndarray], value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    ends = np.full((2, value.size), np.nan)
    if chunks:
        for column, resampled in enumerate(np.concatenate(chunks).reshape(-1, value.size).T):
            # An undefined value has no interval, even where some resample happens to have one.
            if np.isfinite(value.flat[column]) and len(defined := resampled[np.isfinite(resampled)]):
                ends[:, column] = np.quantile(defined, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return ends[0].reshape(value.shape), ends[1].reshape(value.shape)


def report(estimates: Mapping[str, Estimate], num_events: int, class_names: Sequence[str] = ()) -> dict[str, Any]:
    """A JSON-able result: `name`, `name_low`, `name_high` (95 %) for each estimate, arrays as `{class name: value}`; `num_events`."""
    result: dict[str, Any] = {}
    for name, estimate in estimates.items():
        for suffix, numbers in zip(("", "_low", "_high"), estimate):
            result[name + suffix] = dict(zip(class_names, map(_number, numbers), strict=True)) if np.ndim(numbers) else _number(numbers)
    return {**result, "num_events": num_events}


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
