"""What a pre-training is worth: the same metric compared with training from random weights, and counted in labels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from .tables import Row, better, metrics_of, spread

REFERENCE = "scratch"


def label_factor(curve: Mapping[int, float], labels: int, value: float, direction: str) -> dict[str, Any]:
    """How many times as many labels the reference needs for the same value.

    The reference's curve is interpolated linearly in the logarithm of the number of labels; where it is not monotonic, the first
    crossing counts.

    Args:
        curve: number of labels -> value of the reference.
        labels: with so many,
        value: this value was reached.
        direction: `"higher"` or `"lower"` is better.

    Returns:
        `{"value": factor}`; or `{"value": None, "reason": text}` when the curve does not reach the value or is always beyond it, with
        `"at_least"` or `"at_most"` for the bound that its end gives.
    """
    sign = 1.0 if direction == "higher" else -1.0
    points = sorted(curve.items())
    (first, first_value), (last, _) = points[0], points[-1]
    if sign * first_value > sign * value:
        reason = f"the reference is better already with its smallest number of labels, {first}"
        return {"value": None, "at_most": first / labels, "reason": reason}
    if first_value == value:
        return {"value": first / labels}
    for (n_low, low), (n_high, high) in pairwise(points):
        if sign * high >= sign * value:
            share = (value - low) / (high - low)
            return {"value": math.exp((1 - share) * math.log(n_low) + share * math.log(n_high)) / labels}
    return {"value": None, "at_least": last / labels, "reason": f"the reference does not reach the value with its largest number of labels, {last}"}


def compare_with_reference(rows: Sequence[Row], reference: str = REFERENCE) -> list[dict[str, Any]]:
    """Every metric with a better direction, of every initialisation and number of labels, against the reference.

    Args:
        rows: with the columns `initialisation`, `labels`, `seed` and the metrics.
        reference: the initialisation to compare with.

    Returns:
        `{"initialisation", "labels", "metric", "better", "mean", "reference_mean", "ratio", "difference", "label_factor"}` each: ratio and
        difference (this over, this minus the reference) have `"of_means"` and the `spread` over the seeds that both were trained with;
        the label factor is that of the means over seeds, with `"by_seed"` for each seed against the reference's curve of the same seed.
    """
    means: dict[tuple[str, str], dict[int, dict[int, float]]] = {}
    compared = [name for name in metrics_of(rows) if better(name)]
    for row in rows:
        for name in compared:
            if row.get(name) is not None:
                means.setdefault((name, row["initialisation"]), {}).setdefault(row["labels"], {})[row["seed"]] = row[name]
    entries = []
    for (name, initialisation), budgets in means.items():
        against = means.get((name, reference))
        if initialisation == reference or against is None:
            continue
        curve = {n: float(np.mean(list(values.values()))) for n, values in against.items()}
        for labels, values in sorted(budgets.items()):
            if labels not in against:
                continue
            mean, base = float(np.mean(list(values.values()))), curve[labels]
            pairs = [(value, against[labels][seed]) for seed, value in values.items() if seed in against[labels]]
            direction = better(name)
            by_seed = {}
            for seed, value in values.items():
                own = {n: by[seed] for n, by in against.items() if seed in by}
                by_seed[str(seed)] = label_factor(own, labels, value, direction)["value"] if own else None
            entries.append(
                {
                    "initialisation": initialisation,
                    "labels": labels,
                    "metric": name,
                    "better": direction,
                    "mean": mean,
                    "reference_mean": base,
                    "ratio": {"of_means": _ratio(mean, base), **spread([_ratio(a, b) for a, b in pairs])},
                    "difference": {"of_means": mean - base, **spread([a - b for a, b in pairs])},
                    "label_factor": {**label_factor(curve, labels, mean, direction), "by_seed": by_seed},
                }
            )
    return entries


def _ratio(value: float, base: float) -> float | None:
    return value / base if base else None
