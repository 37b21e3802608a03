"""Percentile bootstrap over events, shared by all metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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


def bootstrap(statistic: Statistic, num_events: int, num_resamples: int = 1000, seed: int = 0) -> dict[str, Estimate]:
    """Values on all events and central 95 % percentile intervals over resamples of events (Efron, Ann. Stat. 7 (1979) 1).

    Args:
        statistic: maps event indices (R, N), one resample a row, to named arrays (R,) or (R, K), NaN where undefined.
        num_events: N.
        num_resamples: resamples drawn with replacement; 0 leaves the intervals undefined.
        seed: of the resamples; the same seed gives the same intervals.

    Resamples in which a statistic is undefined (a rare class was not drawn) do not enter its interval.
    """
    if num_resamples < 0:
        raise ValueError(f"num_resamples={num_resamples} is negative; 0 gives values without intervals")
    values = {name: np.asarray(v, dtype=np.float64)[0] for name, v in statistic(np.arange(num_events)[None]).items()}
    rng = np.random.default_rng(seed)
    rows = max(1, _CHUNK // num_events)
    drawn: dict[str, list[np.ndarray]] = {name: [] for name in values}
    for start in range(0, num_resamples, rows):
        indices = rng.integers(0, num_events, (min(rows, num_resamples - start), num_events))
        for name, v in statistic(indices).items():
            drawn[name].append(v)
    return {name: Estimate(value, *_interval(drawn[name], value)) for name, value in values.items()}


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
