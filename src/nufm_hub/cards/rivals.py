"""What geometry and trees on hand-made numbers give on the events of an evaluation: the table that a model has to stand in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nufm_hub.studies.tables import WON_BY_A_CONSTANT, better

from .facts import Facts
from .markdown import interval, number, revision, table
from .scores import metric_name, quantity_name

# Of each quantity, what a table of rivals shows.
_SHOWN = (
    "macro_auroc", "vertex_error_median", "vertex_error_mean", "vertex_error_q68", "vertex_beyond_100mm", "resolution68", "bias", "detection_auroc",
)  # fmt: skip
_CONSTANT = "mean"  # the rival that always says the same: the table of the evaluation has it for the vertex, elsewhere it is chance


@dataclass(frozen=True)
class Rivals:
    """One study of rivals on a card.

    Attributes:
        text: the table; the model first.
        lost: names of the metrics in which a rival with no more labels is better than the model.
        seeds: number of trainings behind each number of a rival.
        file: with the results, and `revision` of the code that made them.
    """

    text: str
    lost: tuple[str, ...]
    seeds: int
    file: str
    revision: str


def rivals_of(facts: Facts) -> Rivals | None:
    """The rivals on exactly the events of the evaluation; None where the results hold none, or none of what the model predicts."""
    for path in sorted(facts.results.rglob("*.json")):
        data = json.loads(path.read_text(encoding="utf-8"))
        if data.get("study") == "baselines" and data["data"]["test"]["sha256"] == facts.evaluation["data"]["events_sha256"]:
            return _rivals(facts, data, path.relative_to(facts.results).as_posix())
    return None


def _rivals(facts: Facts, data: Mapping[str, Any], file: str) -> Rivals | None:
    metrics = facts.evaluation["metrics"]
    own = {f"{quantity}.{key}": scores[key] for quantity, scores in metrics.items() for key in _SHOWN if key in scores}
    entries = [entry for entry in data["summary"] if entry["rival"] != _CONSTANT]
    left_out = (*WON_BY_A_CONSTANT, *(c for c in own if c.startswith("vertex_baseline.")))
    columns = [c for c in own if c not in left_out and any(_mean(entry, c) is not None for entry in entries)]
    if not columns:
        return None
    labels = facts.step.training["data"]["train"]["events"]
    rows = [(f"`{facts.name}`", number(labels), *(f"{number(own[c])} ({_interval(metrics[c.partition('.')[0]], c)})" for c in columns))]
    rows += [(entry["rival"], number(entry["labels"]), *(_cell(entry, c) for c in columns)) for entry in entries]
    lost = [_name(c) for c in columns if any(_beats(entry, c, own[c]) for entry in entries if entry["labels"] <= labels)]
    text = table(("", "labelled events", *map(_name, columns)), rows)
    return Rivals(text, tuple(lost), len(data["seeds"]), file, revision(data["git_revision"]))


def _mean(entry: Mapping[str, Any], column: str) -> float | None:
    return entry["metrics"].get(column, {}).get("mean")


def _interval(scores: Mapping[str, Any], column: str) -> str:
    key = column.partition(".")[2]
    return interval(scores.get(f"{key}_low"), scores.get(f"{key}_high"))


def _cell(entry: Mapping[str, Any], column: str) -> str:
    if (mean := _mean(entry, column)) is None:
        return "–"
    std = entry["metrics"][column].get("std")
    return number(mean) if std is None else f"{number(mean)} ± {std:.2g}"


def _beats(entry: Mapping[str, Any], column: str, own: float | None) -> bool:
    mean, direction = _mean(entry, column), better(column)
    if mean is None or own is None or direction is None:
        return False
    return mean > own if direction == "higher" else mean < own


def _name(column: str) -> str:
    quantity, metric = column.split(".")
    return f"{quantity_name(quantity)}: {metric_name(metric)}"
