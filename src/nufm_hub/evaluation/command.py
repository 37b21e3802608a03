"""`nufm evaluate`. Heavy imports happen inside the command, so that `nufm --help` stays quick."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def evaluate(
    checkpoint: Annotated[str, typer.Argument(metavar="ID", help="Bundled id, folder, or id on the Hub.")],
    events: Annotated[list[Path] | None, typer.Option(help="Parquet file or folder; may be repeated. The packaged events by default.")] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file to write; an old one is replaced. Printed when left out.")] = None,
    absent: Annotated[list[str] | None, typer.Option(help="Branch to treat as absent in every event; may be repeated.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Events of one forward pass.")] = 32,
    seed: Annotated[int, typer.Option(help="Of the bootstrap, and of the masks of pre-training checkpoints.")] = 0,
    num_resamples: Annotated[int, typer.Option(min=0, help="Of the bootstrap; 0 for values without intervals.")] = 1000,
    cpu: Annotated[bool, typer.Option("--cpu", help="Stay on the CPU even where there is a GPU.")] = False,
) -> None:
    """Metrics of a checkpoint on events that it has not seen, with 95 % intervals, as JSON."""
    from nufm_hub.files import new_file

    from .checkpoint import evaluate as run

    try:
        result = run(checkpoint, list(events) if events else None, batch_size, seed, num_resamples, absent or (), cpu)
    except (ValueError, OSError) as error:
        raise typer.BadParameter(str(error)) from error
    text = json.dumps(result, indent=1)
    if out is None:
        typer.echo(text)
        return
    with new_file(out, overwrite=True) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    typer.echo(f"saved {out}")
