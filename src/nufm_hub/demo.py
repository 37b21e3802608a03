"""The demonstration: bundled models on the packaged held-out events, one table, a few displays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from nufm_hub.detectors import load_detector
from nufm_hub.display import event_html, plot_event
from nufm_hub.evaluation import class_scores, vertex_scores
from nufm_hub.events import Event, read_events
from nufm_hub.events.samples import sample_path
from nufm_hub.files import new_folder
from nufm_hub.pipelines import FlavourPipeline, VertexPipeline
from nufm_hub.provenance import git_revision

FLAVOUR_MODEL = "nufm/fasercal-mae-rel-flavour"
VERTEX_MODEL = "nufm/fasercal-mae-rel-vertex"
_NUM_IMAGES = 3


def demo(out: Path, overwrite: bool = False, seed: int = 0) -> dict[str, Any]:
    """Predict the packaged FASERCal events and write `predictions.parquet`, `metrics.json`, three displays and an interactive one to `out`.

    Args:
        out: folder to make.
        overwrite: replace an existing folder once the new one is complete.
        seed: of the bootstrap intervals.

    Returns:
        The metrics: `flavour`, `vertex` and `vertex_baseline` as of `nufm_hub.evaluation.evaluate`.

    Raises:
        FileExistsError: `out` exists and `overwrite` is off.
    """
    spec = load_detector("fasercal")
    with new_folder(out, overwrite) as folder:
        events = list(read_events(sample_path(spec.name)))
        flavours = FlavourPipeline.from_pretrained(FLAVOUR_MODEL)
        vertices = VertexPipeline.from_pretrained(VERTEX_MODEL)
        flavour, vertex = flavours(events), np.stack(vertices(events))
        training_mean = np.asarray(vertices.processor.statistics["vertex"]["mean"])
        classes = spec.classes("flavour")
        probabilities = np.array([[f["probabilities"][c] for c in classes] for f in flavour])
        labels, true = (np.array([e.truth[name] for e in events]) for name in ("flavour", "vertex"))
        metrics = {
            "flavour": class_scores(probabilities, labels, classes, seed=seed),
            **vertex_scores(vertex, true, training_mean, seed=seed),
            "git_revision": git_revision(),
        }
        (folder / "metrics.json").write_text(json.dumps(metrics, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        _write_predictions(folder / "predictions.parquet", events, flavour, vertex, classes)
        shown = np.linspace(0, len(events) - 1, _NUM_IMAGES).astype(int)
        for i in shown:
            plot_event(events[i], spec, prediction={"flavour": flavour[i], "vertex": vertex[i]}, path=folder / f"event-{i}.png")
        first = shown[0]
        event_html(events[first], spec, prediction={"flavour": flavour[first], "vertex": vertex[first]}, path=folder / f"event-{first}.html")
    return metrics


def _write_predictions(path: Path, events: list[Event], flavour: list[dict[str, Any]], vertex: np.ndarray, classes: tuple[str, ...]) -> None:
    true = np.stack([e.truth["vertex"] for e in events])
    columns = {
        "index": [e.provenance["index"] for e in events],
        "seed": [e.provenance["seed"] for e in events],
        "true_flavour": [classes[e.truth["flavour"]] for e in events],
        "predicted_flavour": [f["label"] for f in flavour],
        **{f"probability_{c}": [f["probabilities"][c] for f in flavour] for c in classes},
        **{f"true_vertex_{a}_mm": true[:, i] for i, a in enumerate("xyz")},
        **{f"predicted_vertex_{a}_mm": vertex[:, i] for i, a in enumerate("xyz")},
        "vertex_error_mm": np.linalg.norm(vertex - true, axis=1),
    }
    pq.write_table(pa.table(columns), path)


def print_report(metrics: dict[str, Any], out: Path, console: Console | None = None) -> None:
    """One table and where the files are."""
    console = console or Console()
    console.print(f"{FLAVOUR_MODEL} and {VERTEX_MODEL} on {metrics['flavour']['num_events']} held-out events", soft_wrap=True)
    table = Table()
    for column in ("class", "events", "purity", "efficiency"):
        table.add_column(column, justify="left" if column == "class" else "right")
    c = metrics["flavour"]
    for name, count in c["num_true"].items():
        table.add_row(name, str(count), _number(c["purity"][name]), _number(c["efficiency"][name]))
    console.print(table)
    for text, result, key, digits in (
        ("flavour macro-AUROC (0.5 is chance)", metrics["flavour"], "macro_auroc", 3),
        ("mean 3-D vertex error in mm", metrics["vertex"], "vertex_error_mean", 0),
        ("  the same for always predicting the mean training vertex", metrics["vertex_baseline"], "vertex_error_mean", 0),
    ):
        value, low, high = (f"{result[k]:.{digits}f}" for k in (key, f"{key}_low", f"{key}_high"))
        console.print(f"{text}: {value}, 95 % interval {low} to {high}, {result['num_events']} events", soft_wrap=True)
    for path in sorted(out.iterdir()):
        console.print(f"  {path}", soft_wrap=True)


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.2f}"
