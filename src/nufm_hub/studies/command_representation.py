"""`nufm study representation`."""

# ruff: noqa: B006 - typer passes new lists; these are what its help shows

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import command_options as options


def representation(
    initialisation: options.Initialisation = options.INITIALISATIONS,
    events: Annotated[list[Path], typer.Option(help="Events to fit the probes on; may be repeated.")] = [Path("data/fasercal-train")],
    test: Annotated[list[Path], typer.Option(help="Events to judge them by; may be repeated.")] = [Path("data/fasercal-test")],
    out: Annotated[Path, typer.Option(help="Folder of the runs; what is done there is not done again.")] = Path("runs/representation"),
    results: Annotated[Path, typer.Option(help="Folder of the table, the summary and the figure.")] = options.RESULTS,
    budget: Annotated[list[str], typer.Option(help="Number of labelled events to fit on, or all; may be repeated.")] = ["300", "all"],
    seed: Annotated[list[int], typer.Option(help="Seed of such a subset of the events; may be repeated.")] = [0, 1, 2],
    scratch_seeds: Annotated[int, typer.Option(min=1, help="Number of encoders with random weights.")] = 3,
    batch_size: Annotated[int, typer.Option(min=1, help="Events of one forward pass.")] = 32,
    workers: options.Workers = 0,
    num_resamples: Annotated[int, typer.Option(min=0, help="Resamples of the bootstrap intervals.")] = 1000,
    cpu: Annotated[bool, typer.Option("--cpu", help="Stay on the CPU even where there is a GPU.")] = False,
) -> None:
    """Linear probe, nearest neighbours and a picture of the frozen features of encoders, beside hand-made numbers of the events."""
    from .representation import SCRATCH, study_representation

    try:
        checkpoints = options.parse_initialisations(initialisation)
        seeds = scratch_seeds if SCRATCH in checkpoints else 0
        checkpoints.pop(SCRATCH, None)
        study_representation(checkpoints, events, test, out, results, budget, seed, seeds, batch_size, workers, cpu, num_resamples)
    except (ValueError, OSError, ImportError) as error:
        raise typer.BadParameter(str(error)) from error
    typer.echo(f"saved {results / 'representation.csv'}, .json and .png")
