"""`nufm study layout`."""

# ruff: noqa: B006 - typer passes new lists; these are what its help shows

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import command_options as options


def layout(
    events: Annotated[list[Path], typer.Option(help="Parquet file or folder of training events; may be repeated.")] = [Path("data/fasercal-seed101")],
    test: Annotated[list[Path], typer.Option(help="Validation events to judge by; may be repeated.")] = [Path("data/fasercal-seed301")],
    labels: Annotated[str, typer.Option(help="Number of labelled events, or all.")] = "all",
    seed: Annotated[list[int], typer.Option(help="Seed of subset, weights, order, augmentation; may be repeated.")] = [0, 1, 2],
    task: Annotated[str, typer.Option(help="reconstruction (all of an event at once), or one of its parts.")] = "reconstruction",
    plan: Annotated[str, typer.Option(help="Plan of variants: packaged name or JSON file.")] = "layout",
    set_: options.RecipeValues = None,
    out: Annotated[Path, typer.Option(help="Folder of the runs.")] = Path("runs/layout"),
    results: options.Results = options.RESULTS,
    summarise: Annotated[bool, typer.Option("--summarise", help="Train nothing; write the results of the runs that are finished.")] = False,
    cpu: options.Cpu = False,
    workers: options.Workers = 0,
) -> None:
    """Train variants of a model from random weights for as many steps, and compare them: what is each option worth?"""
    from nufm_hub.training.command import parse_values

    from .layout import study_layout
    from .plan import load_plan

    try:
        summary = study_layout(
            load_plan(plan, None, parse_values(set_)), task, labels, seed, events, test, out, results, cpu, workers, summarise
        )
    except (ValueError, OSError, ImportError) as error:
        raise typer.BadParameter(str(error)) from error
    for entry in summary["summary"]:
        shown = ("flavour.macro_auroc", "vertex.vertex_error_mean", "vertex.vertex_error_median", "visible_momentum.resolution68")
        found = {name: entry["metrics"][name]["mean"] for name in shown if name in entry["metrics"]}
        values = ", ".join(f"{name} {mean:.4g}" for name, mean in found.items() if mean is not None)
        typer.echo(f"{entry['initialisation']}, {entry['runs']} seeds: {values}")
    typer.echo(f"{summary['runs']['finished']} of {summary['runs']['planned']} runs; written to {results}")
