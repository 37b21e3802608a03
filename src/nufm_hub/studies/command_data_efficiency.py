"""`nufm study data-efficiency`."""

# ruff: noqa: B006 - typer passes new lists; these are what its help shows

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from . import command_options as options


def data_efficiency(
    events: Annotated[list[Path], typer.Option(help="Parquet file or folder of training events; may be repeated.")] = [Path("data/fasercal-train")],
    validation: Annotated[list[Path], typer.Option(help="Events to tune on; may be repeated.")] = [Path("data/fasercal-validation")],
    test: Annotated[list[Path], typer.Option(help="Events to compare on; opened when all is tuned.")] = [Path("data/fasercal-test")],
    initialisation: options.Initialisation = options.INITIALISATIONS,
    budget: Annotated[list[str], typer.Option(help="Number of labelled events, or all; may be repeated.")] = ["100", "300", "1000", "all"],
    seed: Annotated[list[int], typer.Option(help="Seed of subset, new weights, order, augmentation; may be repeated.")] = [0, 1, 2],
    task: Annotated[str, typer.Option(help="reconstruction (all of an event at once), one of its parts, or voxels.")] = "reconstruction",
    plan: Annotated[str, typer.Option(help="Plan of epochs and tuning: packaged name or JSON file.")] = "data-efficiency",
    rival: options.Rivals = options.RIVALS,
    recipe: options.RecipeChoice = None,
    set_: options.RecipeValues = None,
    tune_learning_rate: options.TunedRates = None,
    tune_epochs: options.TunedEpochs = None,
    tune_budget: Annotated[list[int] | None, typer.Option(help="Number of labels to tune with; may be repeated.")] = None,
    tune_seed: options.TuningSeeds = None,
    out: Annotated[Path, typer.Option(help="Folder of the runs.")] = Path("runs/data-efficiency"),
    results: options.Results = options.RESULTS,
    summarise: Annotated[bool, typer.Option("--summarise", help="Train nothing; write the results of the runs that are finished.")] = False,
    cpu: options.Cpu = False,
    workers: options.Workers = 0,
) -> None:
    """Fine-tune from each initialisation with few and many labels, tuned on validation events, compared on test events."""
    from nufm_hub.tasks import get_task
    from nufm_hub.training.command import parse_values

    from .comparison import Study
    from .data_efficiency import data_efficiency as run
    from .data_efficiency import name_of
    from .plan import load_plan

    try:
        loaded = load_plan(
            plan,
            recipe,
            parse_values(set_),
            base_learning_rates=tune_learning_rate,
            epoch_factors=tune_epochs,
            budgets=tune_budget,
            seeds=tune_seed,
        )
        rivals = rival if get_task(task).judged == "events" else []  # of voxels they say nothing
        asked = Study(task, name_of(task), options.parse_initialisations(initialisation), budget, seed, loaded, rivals=rivals)
        summary = run(asked, events, validation, test, out, results, cpu, workers, summarise)
    except (ValueError, OSError, ImportError) as error:
        raise typer.BadParameter(str(error)) from error
    _report(summary, results)


def _report(summary: dict[str, Any], results: Path) -> None:
    tuning, runs = summary["tuning"], summary["runs"]
    for c in tuning["chosen"]:
        edge = f" (the {c['edge']} of the grid)" if c["edge"] else ""
        typer.echo(
            f"{c['initialisation']} at {c['labels']} labels: base_learning_rate {c['base_learning_rate']:g}, epochs x {c['epoch_factor']:g}{edge}"
        )
    for entry in summary["summary"]:
        headline = {name: m["mean"] for name, m in entry["metrics"].items() if name.endswith((".macro_auroc", "vertex.vertex_error_mean"))}
        values = ", ".join(f"{name} {mean:.4g}" for name, mean in headline.items() if mean is not None)
        typer.echo(f"{entry['labels']} labels, {entry['initialisation']}, {entry['runs']} seeds: {values}")
    typer.echo(f"{tuning['finished']} of {tuning['planned']} trials, {runs['finished']} of {runs['planned']} runs; written to {results}")
