"""`nufm study baselines`."""

# ruff: noqa: B006 - typer passes new lists; these are what its help shows

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import command_options as options


def baselines(
    events: Annotated[list[Path], typer.Option(help="Parquet file or folder of labelled events (or crops); may be repeated.")] = [
        Path("data/fasercal-train")
    ],
    test: Annotated[list[Path], typer.Option(help="Events to judge by; may be repeated.")] = [Path("data/fasercal-test")],
    budget: Annotated[list[str], typer.Option(help="Number of labelled events, a share like 10%, or all; may be repeated.")] = [
        "100",
        "300",
        "1000",
        "all",
    ],
    seed: Annotated[list[int], typer.Option(help="Seed of the subset of events and of the trees; may be repeated.")] = [0, 1, 2],
    rival: Annotated[list[str] | None, typer.Option(help="mean, geometry, extra-trees or boosted-trees; may be repeated. All by default.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of the runs; what is done there is not done again.")] = Path("runs/baselines"),
    results: options.Results = options.RESULTS,
    num_resamples: Annotated[int, typer.Option(min=0, help="Resamples of the bootstrap intervals.")] = 1000,
) -> None:
    """Geometry and trees on hand-made numbers, with the labels and on the events that models have."""
    from nufm_hub.baselines import RIVALS

    from .baselines import study_baselines

    try:
        study_baselines(events, test, budget, seed, out, results, rival or RIVALS, num_resamples)
    except (ValueError, OSError, ImportError) as error:
        raise typer.BadParameter(str(error)) from error
    typer.echo(f"saved {results / 'baselines.csv'} and .json")
