"""What studies found about a checkpoint, or about the one it started from, with what got worse than training from scratch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nufm_hub.studies.tables import better

from .facts import Facts
from .markdown import number, table
from .scores import metric_name, quantity_name

_SERIES, _REFERENCE = "initialisation", "scratch"
WORSE = "(worse)"


@dataclass(frozen=True)
class StudyTables:
    """One study on a card.

    Attributes:
        name: as in `nufm study <name>`.
        file: with its results.
        seeds: trainings behind each number, such as `"3"` or `"2 to 3"`.
        counts: initialisation -> (metrics better than from scratch, worse ones), by their means.
        single, classes: tables of the metrics that are one number, and of those by class; empty where the study
            has no summary over seeds.
        plots: file names.
    """

    name: str
    file: str
    seeds: str
    counts: dict[str, tuple[int, int]]
    single: str
    classes: str
    plots: tuple[str, ...]


def studies_of(facts: Facts) -> tuple[list[StudyTables], list[str]]:
    """The studies in the folder of results that used the weights of this checkpoint or of one it started from, on its detector if it has a task;
    and the names of those that used other weights of the same name, which say nothing about this one."""
    found, outdated = [], []
    for path in sorted(facts.results.glob("*.json")):
        text = path.read_text(encoding="utf-8")
        data = json.loads(text)
        if "study" not in data or not (facts.step.is_pretraining or _detector(data) == facts.spec.name.removesuffix("-crop")):
            continue
        if any(step.weights_sha256 in text or ('"encoder_sha256"' in text and step.encoder_sha256 in text) for step in facts.steps):
            found.append(_tables(data, path))
        elif any(f'"{step.name}"' in text for step in facts.steps):
            outdated.append(path.stem)
    return found, outdated


def _detector(data: Mapping[str, Any]) -> str:
    """Of the events that a study used."""
    described = data["data"].get("test", data["data"])
    return described["detector"].removesuffix("-crop")


def _tables(data: Mapping[str, Any], path: Path) -> StudyTables:
    plots = tuple(p.name for p in sorted(path.parent.glob(f"{path.stem}*.png")))
    if not (entries := data.get("summary")):
        return StudyTables(data["study"], path.name, "", {}, "", "", plots)
    columns = [key for key in entries[0] if key not in (_SERIES, "runs", "metrics")]
    series = list(dict.fromkeys(str(entry.get(_SERIES, "value")) for entry in entries))
    places: dict[tuple[Any, ...], dict[str, Mapping[str, Any]]] = {}
    for entry in entries:
        places.setdefault(tuple(entry[c] for c in columns), {})[str(entry.get(_SERIES, "value"))] = entry["metrics"]
    metrics = [m for m in dict.fromkeys(m for e in entries for m in e["metrics"]) if better(m) and not m.startswith("vertex_baseline.")]
    counts = {s: [0, 0] for s in series if s != _REFERENCE and _REFERENCE in series}
    rows: dict[bool, list[list[str]]] = {False: [], True: []}
    for metric in metrics:
        quantity, key, *of_class = metric.split(".")
        label = " ".join([quantity_name(quantity), metric_name(key), *of_class])
        for place, by_series in places.items():
            cells = []
            for s in series:
                cell, sign = _cell(metric, by_series.get(s), by_series.get(_REFERENCE) if s != _REFERENCE else None)
                cells.append(cell)
                if sign and s in counts:
                    counts[s][sign < 0] += 1
            rows[bool(of_class)].append([label, *map(str, place), *cells])
    head = ["metric", *columns, *series]
    runs = sorted({entry["runs"] for entry in entries})
    return StudyTables(
        data["study"],
        path.name,
        str(runs[0]) if len(runs) == 1 else f"{runs[0]} to {runs[-1]}",
        {s: (up, down) for s, (up, down) in counts.items()},
        *(table(head, rows[kind]) if rows[kind] else "" for kind in (False, True)),
        plots,
    )


def _cell(metric: str, metrics: Mapping[str, Any] | None, reference: Mapping[str, Any] | None) -> tuple[str, int]:
    """Text, and whether the mean is better (1) or worse (-1) than the reference's; 0 for neither."""
    held = (metrics or {}).get(metric)
    if held is None or held["mean"] is None:
        return "undefined" if held else "–", 0
    text = number(held["mean"])
    if held["count"] > 1:
        text += f" ± {number(held['std'])} ({number(held['lowest'])} to {number(held['highest'])})"
    base = ((reference or {}).get(metric) or {}).get("mean")
    if base is None or base == held["mean"]:
        return text, 0
    sign = 1 if (held["mean"] > base) == (better(metric) == "higher") else -1
    return (text if sign > 0 else f"{text} {WORSE}"), sign
