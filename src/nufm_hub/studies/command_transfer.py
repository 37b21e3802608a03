"""`nufm study transfer` and `nufm study crosstalk`."""

# ruff: noqa: B006 - typer passes new lists; these are what its help shows

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from . import command_options as options

Summarise = Annotated[bool, typer.Option("--summarise", help="Compute nothing new; write the results of the runs that are finished.")]


def transfer(
    name: Annotated[str, typer.Argument(help="superfgd, superfgd-voxels or pilarnet; or a name of your own, with --plan and --events.")],
    events: Annotated[
        list[Path] | None, typer.Option(help="Parquet file or folder of events; may be repeated. data/superfgd or the like by default.")
    ] = None,
    initialisation: options.Initialisation = options.INITIALISATIONS,
    share: Annotated[list[str], typer.Option(help="Share of the labelled training events, or their number; may be repeated.")] = [
        "1%",
        "10%",
        "100%",
    ],
    seed: Annotated[list[int], typer.Option(help="Seed of subset, new weights and order; may be repeated.")] = [0, 1, 2],
    rival: options.Rivals = options.RIVALS,
    plan: Annotated[
        str | None, typer.Option(help="JSON file of crops, split, recipe, epochs and tuning; the packaged transfer-NAME by default.")
    ] = None,
    recipe: options.RecipeChoice = None,
    set_: options.RecipeValues = None,
    tune_learning_rate: options.TunedRates = None,
    tune_epochs: options.TunedEpochs = None,
    tune_budget: Annotated[list[int] | None, typer.Option(help="Number of labelled events to tune with; may be repeated.")] = None,
    tune_seed: options.TuningSeeds = None,
    out: Annotated[Path | None, typer.Option(help="Folder of crops, runs and models; runs/transfer-NAME by default.")] = None,
    results: options.Results = options.RESULTS,
    summarise: Summarise = False,
    cpu: options.Cpu = False,
    workers: options.Workers = 0,
) -> None:
    """Take encoders to another detector and fine-tune them with few and many labels, tuned on validation events, compared on test events."""
    from nufm_hub.training.command import parse_values

    from .transfer import TransferPlan
    from .transfer import transfer as run

    tuning: dict[str, Any] = {
        "base_learning_rates": tune_learning_rate,
        "epoch_factors": tune_epochs,
        "budgets": tune_budget,
        "seeds": tune_seed,
    }
    try:
        loaded = TransferPlan.load(plan or f"transfer-{name}", recipe=recipe, recipe_values=parse_values(set_), **tuning)
        shards, folder = events or [Path("data") / name.removesuffix("-voxels")], out or Path("runs") / f"transfer-{name}"
        starts = options.parse_initialisations(initialisation)
        summary = run(name, shards, starts, share, seed, loaded, folder, results, cpu, workers, summarise, rival)
    except (ValueError, OSError, ImportError) as error:
        raise typer.BadParameter(str(error)) from error
    report(summary, results)


def report(summary: dict[str, Any], results: Path) -> None:
    for name, carried in summary["carried"].items():
        typer.echo(f"{name}: {carried['parameters']:,} parameters carried over, {carried['fraction']:.1%} of the new encoder")
    for c in summary["tuning"]["chosen"]:
        edge = f" (the {c['edge']} of the grid)" if c["edge"] else ""
        typer.echo(f"{c['initialisation']}: base_learning_rate {c['base_learning_rate']:g}{edge}, epochs x {c['epoch_factor']:g}")
    for entry in summary["summary"]:
        means = {name: entry["metrics"].get(f"particle.{name}", {}).get("mean") for name in ("accuracy", "macro_auroc")}
        values = ", ".join(f"{name} undefined" if mean is None else f"{name} {mean:.3f}" for name, mean in means.items())
        typer.echo(f"{entry['labels']} labels, {entry['initialisation']}, {entry['runs']} seeds: {values}")
    for entry in summary["steps_to_reference_loss"]:
        if entry["target"] == "final" and entry["share"]["mean"] is not None:
            at = f"{entry['labels']} labels, {entry['initialisation']}"
            share, seeds = entry["share"]["mean"], f"{entry['reached']} of {entry['runs']} seeds"
            typer.echo(f"{at}: the final loss of scratch in {share:.2f} of the steps that scratch needs for it, {seeds}")
    tuning, runs = summary["tuning"], summary["runs"]
    typer.echo(f"{tuning['finished']} of {tuning['planned']} trials, {runs['finished']} of {runs['planned']} runs; written to {results}")


def crosstalk(
    models: Annotated[Path, typer.Option(help="Folder of the transfer study of superfgd; its models are evaluated.")] = Path(
        "runs/transfer-superfgd"
    ),
    level: Annotated[
        list[float], typer.Option(help="Light in each neighbour of a cube as a share of that in the cube, 0 to 0.3; may be repeated.")
    ] = [0.0, 0.03, 0.05, 0.1, 0.15, 0.2, 0.3],
    labels: Annotated[
        list[int] | None, typer.Option(help="Take the models with so many labels; those with most by default; may be repeated.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of events and runs.")] = Path("runs/crosstalk"),
    results: options.Results = options.RESULTS,
    summarise: Summarise = False,
    cpu: options.Cpu = False,
    workers: Annotated[int, typer.Option(help="Processes that simulate.")] = 1,
) -> None:
    """Simulate the test particles of a transfer study with more and less crosstalk, and evaluate its models on them."""
    from .crosstalk import crosstalk as run

    try:
        summary = run(models, level, out, results, labels, cpu, workers, summarise)
    except (ValueError, OSError, ImportError) as error:
        raise typer.BadParameter(str(error)) from error
    for entry in summary["summary"]:
        accuracy = entry["metrics"]["particle.accuracy"]["mean"]
        typer.echo(f"{entry['labels']} labels, {entry['initialisation']}, crosstalk {entry['crosstalk']:g}: accuracy {accuracy:.3f}")
    typer.echo(f"{summary['runs']['finished']} of {summary['runs']['planned']} runs; written to {results}")
