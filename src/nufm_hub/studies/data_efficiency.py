"""How far labels go: the same fine-tuning from different initialisations with fewer and more labelled events."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .comparison import Study, compare
from .fine_tuning import Paths
from .plots import Panel, plot_curves
from .tables import Row, better, metrics_of, write_results

NAME = "data-efficiency"
_TITLES = {
    "flavour.macro_auroc": "flavour macro-AUROC",
    "charm.macro_auroc": "charm macro-AUROC",
    "vertex.vertex_error_mean": "mean vertex error [mm]",
    "missing_pt_above_1gev.detection_auroc": "AUROC of missing pT above 1 GeV",
}


def name_of(task: str) -> str:
    """Name of the study's files: each task has its own, so that one folder holds the results of several."""
    return NAME if task == "reconstruction" else f"{NAME}-{task}"


def data_efficiency(
    study: Study,
    events: Paths,
    validation: Paths,
    test: Paths,
    out: str | Path,
    results: str | Path,
    use_cpu: bool = False,
    workers: int = 0,
    summarise_only: bool = False,
) -> dict[str, Any]:
    """Tune each initialisation on validation events, then train it with each budget and seed and evaluate it on test events.

    Test events are not opened before the tuning is complete. May be interrupted at any time and repeated, and executed by several processes
    at once, see `runs.execute`.

    Args:
        study: what is compared.
        events, validation, test: parquet files, folders or globs.
        out: folder of the runs.
        results: folder for `NAME.csv` (a row a run), `.json` (summary and where it came from), `-*.png`, `-tuning.csv`; NAME is that of the study.
        use_cpu: stay on the CPU even where there is a GPU.
        workers: processes that prepare batches.
        summarise_only: train nothing; write the results of what is finished.

    Returns:
        What is in the JSON file.

    Raises:
        ValueError: bad events, checkpoints or budgets, or runs in `out` that were made with other settings.
    """
    outcome = compare(study, events, validation, test, out, results, use_cpu, workers, summarise_only)
    write_results(study.name, outcome.rows, outcome.summary, results)
    _plot(outcome.rows, study, Path(results))
    return outcome.summary


def _plot(rows: Sequence[Row], study: Study, results: Path) -> None:
    metrics = [name for name in metrics_of(rows) if not name.startswith("vertex_baseline.")]
    figures = {
        "curves": [name for name in metrics if name.endswith((".macro_auroc", ".vertex_error_mean")) or name == "visible_momentum.resolution68"],
        "classes": [name for name in metrics if ".auroc." in name],
        "kinematics": [name for name in metrics if name.endswith((".resolution68", "_median", "_error_q68", ".detection_auroc")) and better(name)],
    }
    for figure, names in figures.items():
        if names:
            panels = [Panel(n, _title(n), n.replace("vertex.", "vertex_baseline.") if n.startswith("vertex.") else None) for n in names]
            plot_curves(rows, panels, results / f"{study.name}-{figure}.png", title=f"task: {study.task}")


def _title(column: str) -> str:
    quantity, metric, *rest = column.split(".")
    if metric == "resolution68":
        return f"{quantity.replace('_', ' ')}, relative resolution"
    return _TITLES.get(column) or " ".join([quantity, *rest, metric.replace("auroc", "AUROC").replace("vertex_error_", "error, ")])
