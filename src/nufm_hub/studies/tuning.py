"""Learning rate and epochs of each initialisation, chosen on validation events."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .plan import Setting, Tuning
from .tables import Row, better, flatten

_OBJECTIVES = {
    "reconstruction": ("vertex.vertex_error_mean", "flavour.macro_auroc"),
    "flavour": ("flavour.macro_auroc",),
    "charm": ("charm.macro_auroc",),
    "vertex": ("vertex.vertex_error_mean",),
    "momentum": ("visible_momentum.resolution68",),
    "particle": ("particle.macro_auroc",),
    "event-particles": ("particle.macro_auroc",),
}
# Keeps the logarithm finite for a perfect AUROC; far below what any number of events resolves.
_LEAST = 1e-6


def objective(task: str, metrics: Mapping[str, Any]) -> float:
    """What the tuning makes small: the sum of log(error) and log(1 - AUROC) of the task's metrics.

    For `reconstruction` log(mean vertex error) + log(1 - flavour macro-AUROC); for other tasks their one metric; for `voxels` the macro-AUROC
    of every voxel label.

    Args:
        task: of the training.
        metrics: of `nufm_hub.evaluation.evaluate`.

    Raises:
        ValueError: the events do not define a metric of the task.
    """
    flat = flatten(metrics)
    names = _OBJECTIVES.get(task) or [name for name in flat if name.endswith(".macro_auroc")]
    if missing := [name for name in names if flat.get(name) is None]:
        raise ValueError(f"the validation events do not define {missing}, by which {task!r} is tuned: give more events, with labels of every kind")
    return sum(math.log(max(_LEAST, 1 - flat[name] if better(name) == "higher" else flat[name])) for name in names)


def choose(rows: Sequence[Row], tuning: Tuning) -> list[dict[str, Any]]:
    """The best setting of each initialisation at each tuned number of labels.

    Args:
        rows: with `initialisation`, `labels`, `seed`, `base_learning_rate`, `epoch_factor` and `objective` (None where training diverged).
        tuning: the grid. Of equally good settings the first one wins.

    Returns:
        `{"initialisation", "labels", "base_learning_rate", "epoch_factor", "objective", "edge"}` each; `objective` is the mean over the seeds
        of the tuning; `edge` names what is at an end of the grid, such as `"highest base_learning_rate, lowest epoch_factor"`, else None: beyond
        it might be better.

    Raises:
        ValueError: with no setting did all trainings of an initialisation stay finite.
    """
    chosen = []
    for initialisation, labels in dict.fromkeys((row["initialisation"], row["labels"]) for row in rows):
        means: dict[Setting, float] = {}
        for setting in tuning.grid:
            key = (initialisation, labels, *setting)
            found = [r["objective"] for r in rows if (r["initialisation"], r["labels"], r["base_learning_rate"], r["epoch_factor"]) == key]
            if found and None not in found:
                means[setting] = float(np.mean(found))
        if not means:
            raise ValueError(f"all trainings of {initialisation!r} with {labels} labels diverged: tune with smaller learning rates")
        best = min(means, key=means.__getitem__)
        chosen.append({"initialisation": initialisation, "labels": labels, **best._asdict(), "objective": means[best], "edge": _edge(best, tuning)})
    return chosen


def _edge(setting: Setting, tuning: Tuning) -> str | None:
    found = []
    for name, tried in (("base_learning_rate", tuning.base_learning_rates), ("epoch_factor", tuning.epoch_factors)):
        value = getattr(setting, name)
        if len(tried) > 1 and value in (min(tried), max(tried)):
            found.append(f"{'lowest' if value == min(tried) else 'highest'} {name}")
    return ", ".join(found) or None
