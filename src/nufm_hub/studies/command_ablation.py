"""`nufm study ablation`."""

# ruff: noqa: B006 - typer passes new lists; these are what its help shows

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def ablation(
    checkpoint: Annotated[str, typer.Argument(metavar="ID", help="Bundled id, folder, or id on the Hub of a model that predicts events.")],
    test: Annotated[list[Path], typer.Option(help="Events to predict; may be repeated.")] = [Path("data/fasercal-test")],
    results: Annotated[Path, typer.Option(help="Folder of the table, the summary and the figure.")] = Path("model_cards/results"),
    batch_size: Annotated[int, typer.Option(min=1, help="Events of one forward pass.")] = 32,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
    num_resamples: Annotated[int, typer.Option(min=0, help="Resamples of the bootstrap intervals.")] = 1000,
    cpu: Annotated[bool, typer.Option("--cpu", help="Stay on the CPU even where there is a GPU.")] = False,
) -> None:
    """What each sub-detector is worth to a fine-tuned model: its metrics without it, on the same events."""
    from .ablation import study_ablation

    try:
        study_ablation(checkpoint, test, results, batch_size, seed, num_resamples, cpu)
    except (ValueError, OSError, ImportError) as error:
        raise typer.BadParameter(str(error)) from error
    typer.echo(f"saved {results / 'ablation.csv'}, .json and .png")
