"""What studies found about a checkpoint, or about the one it started from, with what got worse than training from scratch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from typer.main import get_command

from nufm_hub.studies.command import app
from nufm_hub.studies.tables import better

from .facts import Facts
from .markdown import interval, number, revision, table
from .scores import metric_name, quantity_name

_SERIES, _REFERENCE = "initialisation", "scratch"
WORSE = "(worse)"
# Of all metrics, those that are shown first, and in all respects.
_HEADLINES = (".macro_auroc", ".vertex_error_mean", "particle.accuracy", "particle.error_detection_auroc", "particle.expected_calibration_error")
_BASELINE = "vertex_baseline."  # no prediction of the model


@dataclass(frozen=True)
class StudyTables:
    """One study on a card.

    Attributes:
        name: of the study, and `command`, which runs it.
        file: with its results, and `plots`, names of the files.
        progress: what is done of it, such as `"3 of 9"`; empty when all is.
        revisions: of the code that made the runs.
        seeds: trainings behind each number, such as `"3"` or `"2 to 3"`.
        columns: what the study varies besides the initialisation, such as `"labels"`.
        counts: initialisation -> (metrics better than from scratch, worse ones), by their means.
        tables: by title; the first has none. Empty where the study has no summary over seeds.
    """

    name: str
    command: str
    file: str
    plots: tuple[str, ...]
    progress: str
    revisions: tuple[str, ...]
    seeds: str = ""
    columns: tuple[str, ...] = ()
    counts: dict[str, tuple[int, int]] = field(default_factory=dict)
    tables: dict[str, str] = field(default_factory=dict)


def studies_of(facts: Facts) -> tuple[list[StudyTables], list[str]]:
    """The studies in the folder of results that used the weights of this checkpoint or of one it started from, on its detector if it has a task,
    those of numbers of labels first; and the names of those that used other weights of the same name, which say nothing about this one."""
    found, outdated = [], []
    for path in sorted(facts.results.rglob("*.json")):
        text = path.read_text(encoding="utf-8")
        data = json.loads(text)
        if "study" not in data or not (facts.step.is_pretraining or facts.spec.name.removesuffix("-crop") in _detectors(data)):
            continue
        if (rows := path.with_suffix(".csv")).is_file():
            text += rows.read_text(encoding="utf-8")
        if any(step.weights_sha256 in text or ('"encoder_sha256"' in text and step.encoder_sha256 in text) for step in facts.steps):
            found.append(_tables(data, path, facts.results))
        elif any(f'"{step.name}"' in text for step in facts.steps):
            outdated.append(path.relative_to(facts.results).with_suffix("").as_posix())
    return sorted(found, key=lambda study: (study.columns != ("labels",), study.name)), outdated


def _detectors(data: Mapping[str, Any]) -> set[str]:
    """Of the events that a study used."""
    described = [data.get("simulation"), data.get("data"), *data.get("data", {}).values()]
    return {d["detector"].removesuffix("-crop") for d in described if isinstance(d, Mapping) and "detector" in d}


def _command(data: Mapping[str, Any]) -> str:
    """What makes a study again, but for options that scale it: `transfer-superfgd` is made by `nufm study transfer superfgd`."""
    study = data["study"]
    name = max((name for name in get_command(app).commands if f"{study}-".startswith(f"{name}-")), key=len, default=study)
    which = study.removeprefix(name).removeprefix("-")
    words = [data["checkpoint"]] if name == "ablation" else ["--task", which] if name == "data-efficiency" and which else [which] if which else []
    return " ".join(["nufm study", name, *words])


def _plots(path: Path) -> tuple[str, ...]:
    """Figures of the study with this file; not those of another one whose name is longer, such as `transfer-superfgd-voxels`."""
    others = [p.stem for p in path.parent.glob(f"{path.stem}-*.json")]
    named = (p for p in sorted(path.parent.glob(f"{path.stem}*.png")) if p.stem == path.stem or p.stem.startswith(f"{path.stem}-"))
    return tuple(p.name for p in named if not any(p.stem == other or p.stem.startswith(f"{other}-") for other in others))


def _tables(data: Mapping[str, Any], path: Path, results: Path) -> StudyTables:
    runs = data.get("runs")
    progress = f"{runs['finished']} of {runs['planned']}" if isinstance(runs, Mapping) and runs["finished"] < runs["planned"] else ""
    place = path.parent.relative_to(results)  # a folder of its own says what is different about a study
    name = " ".join([data["study"], *(f"({part})" for part in place.parts)])
    plots = tuple((place / plot).as_posix() for plot in _plots(path))
    about = {"name": name, "command": _command(data), "file": (place / path.name).as_posix(), "plots": plots, "progress": progress}
    about["revisions"] = tuple(map(revision, data.get("git_revisions") or [data.get("git_revision")]))
    if not (entries := data.get("summary")):
        return StudyTables(**about)
    columns = [key for key in entries[0] if key not in (_SERIES, "runs", "metrics")]
    series = list(dict.fromkeys(str(entry.get(_SERIES, "value")) for entry in entries))
    places: dict[tuple[Any, ...], dict[str, Mapping[str, Any]]] = {}
    for entry in entries:
        places.setdefault(tuple(entry[c] for c in columns), {})[str(entry.get(_SERIES, "value"))] = entry["metrics"]
    metrics = [m for m in dict.fromkeys(m for e in entries for m in e["metrics"]) if better(m) and not m.startswith(_BASELINE)]
    counts = {s: [0, 0] for s in series if s != _REFERENCE and _REFERENCE in series}
    rows: dict[str, list[list[str]]] = {"": [], "Further metrics": [], "All classes": []}
    for metric in metrics:
        title = "" if _is_headline(metric) else "All classes" if metric.count(".") > 1 else "Further metrics"
        for place, by_series in places.items():
            cells = []
            for s in series:
                cell, sign = _cell(metric, by_series.get(s), by_series.get(_REFERENCE) if s != _REFERENCE else None)
                cells.append(cell)
                if sign and s in counts:
                    counts[s][sign < 0] += 1
            rows[title].append([_metric(metric), *map(str, place), *cells])
    head = ["metric", *columns, *series]
    runs = sorted({entry["runs"] for entry in entries})
    tables = {
        **{title: table(head, rows_of) for title, rows_of in rows.items()},
        "How many labels training from scratch needs for the same, in multiples": _label_factors(data.get("against_scratch", [])),
        "Seeds whose 95 % interval lies wholly on one side of that of training from scratch": _outside(data.get("outside_intervals", [])),
        "Steps to the validation loss of training from scratch": _steps(data.get("steps_to_reference_loss", [])),
    }
    return StudyTables(
        **about,
        seeds=str(runs[0]) if len(runs) == 1 else f"{runs[0]} to {runs[-1]}",
        columns=tuple(columns),
        counts={s: (up, down) for s, (up, down) in counts.items()},
        tables={title: text for title, text in tables.items() if text},
    )


def _is_headline(metric: str) -> bool:
    return metric.endswith(_HEADLINES) and not metric.startswith(_BASELINE)


def _metric(column: str) -> str:
    quantity, key, *of_class = column.split(".")
    return " ".join([quantity_name(quantity), metric_name(key), *of_class])


def _label_factors(entries: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for e in entries:
        if not _is_headline(e["metric"]):
            continue
        f = e["label_factor"]
        bounds = [f"{word} {number(f[key])}" for key, word in (("at_least", "more than"), ("at_most", "less than")) if key in f]
        by_seed = ", ".join("–" if value is None else number(value) for value in f["by_seed"].values())
        value = " ".join(bounds) if f["value"] is None else number(f["value"])
        rows.append((_metric(e["metric"]), e["labels"], e["initialisation"], value, by_seed))
    return table(("metric", "labels", _SERIES, "of the means", "seed by seed"), rows)


def _outside(entries: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        (_metric(e["metric"]), e["labels"], e["initialisation"], e["better"], e["worse"], e["seeds"]) for e in entries if _is_headline(e["metric"])
    ]
    return table(("metric", "labels", _SERIES, "better", "worse", "seeds"), rows)


def _steps(entries: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for e in entries:
        mean, low, high = (e["share"][key] for key in ("mean", "lowest", "highest"))
        share = "–" if mean is None else f"{number(mean)} ({interval(low, high)})"
        rows.append((e["labels"], e["initialisation"], e["target"], f"{e['reached']} of {e['runs']}", share))
    return table(("labels", _SERIES, "loss of scratch", "seeds that reach it", "share of the steps scratch needs for it"), rows)


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
