"""The metrics of an evaluation as tables: every number, every class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .markdown import interval, number, table

NAMES = {
    "macro_auroc": "macro-AUROC",
    "auroc": "AUROC",
    "error_detection_auroc": "AUROC of detecting errors",
    "vertex_error_mean": "mean distance, mm",
    "vertex_error_median": "median distance, mm",
    "vertex_error_q68": "distance that 68 % are below, mm",
    "vertex_beyond_100mm": "share further away than 100 mm",
    "vertex_q68_x": "distance in x that 68 % are below, mm",
    "vertex_q68_y": "distance in y that 68 % are below, mm",
    "vertex_q68_z": "distance in z that 68 % are below, mm",
    "detection_auroc": "AUROC of telling them from the others",
    "vertex_bias_x": "mean of x, predicted - true, mm",
    "vertex_bias_y": "mean of y, predicted - true, mm",
    "vertex_bias_z": "mean of z, predicted - true, mm",
    "loss": "all, weighted as learnt",
    "bias": "median relative residual",
    "sigma68": "half width of the central 68 % of the relative residual",
    "resolution68": "that half width over 1 + median relative residual",
}
QUANTITIES = {
    "vertex_baseline": "vertex, always the mean training vertex",
    "missing_pt": "missing pT",
    "missing_pt_above_1gev": "missing pT above 1 GeV",
    "pretraining": "pre-training loss",
}
_OF_CLASSES = ("auroc", "purity", "efficiency")


def metric_name(key: str) -> str:
    """`macro_auroc` -> macro-AUROC."""
    return NAMES.get(key) or key.replace("_", " ")


def quantity_name(key: str) -> str:
    """`visible_momentum` -> visible momentum."""
    return QUANTITIES.get(key) or key.replace("_", " ")


def single_values(scores: Mapping[str, Any]) -> dict[str, tuple[float | None, float | None, float | None]]:
    """Metrics that are one number, with the ends of their intervals (None where there are none)."""
    return {
        key: (value, scores.get(f"{key}_low"), scores.get(f"{key}_high"))
        for key, value in scores.items()
        if (value is None or isinstance(value, float)) and not key.endswith(("_low", "_high"))
    }


def scores_table(metrics: Mapping[str, Mapping[str, Any]]) -> str:
    """All single numbers of all quantities."""
    rows = []
    for quantity, scores in metrics.items():
        for key, (value, low, high) in single_values(scores).items():
            rows.append((quantity_name(quantity), metric_name(key), number(value), interval(low, high), number(scores["num_events"])))
    return table(("quantity", "metric", "value", "95 % interval", "events"), rows, numbers_from=2)


def class_tables(metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """By quantity, a table with a row for each class."""
    return {quantity_name(quantity): _class_table(scores) for quantity, scores in metrics.items() if "auroc" in scores}


def _class_table(scores: Mapping[str, Any]) -> str:
    def cell(key: str, name: str) -> str:
        value, low, high = (scores[key + end][name] for end in ("", "_low", "_high"))
        return number(value) if low is None else f"{number(value)} ({interval(low, high)})"

    counted = "voxels" if "num_voxels" in scores else "events"
    rows = [(name, number(count), *(cell(key, name) for key in _OF_CLASSES)) for name, count in scores["num_true"].items()]
    return table(("class", counted, *map(metric_name, _OF_CLASSES)), rows)
