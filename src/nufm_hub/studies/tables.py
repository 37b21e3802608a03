"""Results of runs as rows, a CSV file, and a JSON summary over seeds."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nufm_hub.files import new_file

Row = Mapping[str, Any]

_BETTER = {
    "macro_auroc": "higher",
    "auroc": "higher",
    "accuracy": "higher",
    "balanced_accuracy": "higher",
    "purity": "higher",
    "efficiency": "higher",
    "error_detection_auroc": "higher",
    "vertex_error_mean": "lower",
    "vertex_error_median": "lower",
    "vertex_error_q68": "lower",
    "vertex_q68_x": "lower",
    "vertex_q68_y": "lower",
    "vertex_q68_z": "lower",
    "vertex_beyond_100mm": "lower",
    "detection_auroc": "higher",
    "resolution68": "lower",
    "expected_calibration_error": "lower",
}

# Most missing pT is small against its error, so that a constant has a good relative resolution: judge it by the AUROC of "> 1 GeV".
WON_BY_A_CONSTANT = frozenset({"missing_pt.resolution68"})


def better(column: str) -> str | None:
    """Whether `"higher"` or `"lower"` values of a metric such as `"flavour.auroc.nue_cc"` are better; None for what is no quality (a bias)."""
    if column in WON_BY_A_CONSTANT:
        return None
    parts = column.split(".")
    return _BETTER.get(parts[1]) if len(parts) > 1 else None


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, float | None]:
    """The numbers (and undefined values, None) of nested dictionaries by dotted name, `{"flavour": {"auroc": {"nc": 1}}}` to `flavour.auroc.nc`.

    Texts and lists are left out.
    """
    flat: dict[str, float | None] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        elif value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)):
            flat[f"{prefix}{key}"] = value
    return flat


def interval_of(column: str) -> tuple[str, str]:
    """Columns with the ends of a metric's interval: `flavour.auroc.nc` to `flavour.auroc_low.nc`, `flavour.auroc_high.nc`."""
    quantity, metric, *rest = column.split(".")
    return tuple(".".join([quantity, metric + end, *rest]) for end in ("_low", "_high"))


def metrics_of(rows: Sequence[Row]) -> list[str]:
    """Columns of the metrics: those that come with an interval, in the order of the rows."""
    columns = dict.fromkeys(key for row in rows for key in row)
    return [c for c in columns if "." in c and set(interval_of(c)) <= columns.keys()]


def spread(values: Sequence[float | None]) -> dict[str, Any]:
    """`mean`, `std` (of a sample; None for one value), `lowest`, `highest` and `count` of the values that are defined."""
    defined = np.array([v for v in values if v is not None], dtype=np.float64)
    if not len(defined):
        return {"mean": None, "std": None, "lowest": None, "highest": None, "count": 0}
    std = float(defined.std(ddof=1)) if len(defined) > 1 else None
    return {"mean": float(defined.mean()), "std": std, "lowest": float(defined.min()), "highest": float(defined.max()), "count": len(defined)}


def summarise(rows: Sequence[Row], by: Sequence[str]) -> list[dict[str, Any]]:
    """Rows with the same values of the columns `by`, usually those that differ in the seed only, as one entry each.

    Returns:
        In the order of the rows, `{column: value, ..., "runs": number of rows, "metrics": {name: spread | {"values", "low", "high"}}}`, where the
        last three list what each run gave and its own bootstrap interval over events, in the order of the rows.
    """
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[column] for column in by), []).append(row)
    names = metrics_of(rows)
    summary = []
    for key, members in groups.items():
        metrics = {}
        for name in names:
            listed = {"values": name, **dict(zip(("low", "high"), interval_of(name)))}
            metrics[name] = spread([r.get(name) for r in members]) | {k: [r.get(column) for r in members] for k, column in listed.items()}
        summary.append({**dict(zip(by, key)), "runs": len(members), "metrics": metrics})
    return summary


def write_results(name: str, rows: Sequence[Row], summary: Mapping[str, Any], folder: str | Path) -> None:
    """Write `folder/<name>.csv`, one line a row and a column for every key, and `folder/<name>.json`; what was there is replaced."""
    folder = Path(folder)
    write_table(rows, folder / f"{name}.csv")
    with new_file(folder / f"{name}.json", overwrite=True) as temporary:
        text = json.dumps(summary, indent=1, allow_nan=False)
        # Lists of numbers on one line each.
        text = re.sub(r"\[(?:[-+.,\s\deE]|null)+\]", lambda m: " ".join(m[0].split()), text)
        temporary.write_text(text + "\n", encoding="utf-8")


def write_table(rows: Sequence[Row], path: str | Path) -> None:
    """Write a CSV file, one line a row and a column for every key in order of appearance; undefined values stay empty."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with new_file(path, overwrite=True) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
