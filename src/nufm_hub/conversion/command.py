"""`nufm convert`. Heavy imports happen inside the command, so that `nufm --help` stays quick."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def convert(
    checkpoint: Annotated[Path, typer.Argument(metavar="CKPT", help="faserDL checkpoint (.ckpt) or file with a state dictionary.")],
    out: Annotated[Path, typer.Argument(help="Folder to make: config, weights, processor.")],
    statistics: Annotated[Path | None, typer.Option(help="JSON file: k, mu, sigma of the charges, or all statistics of a NuFMProcessor.")] = None,
    charge: Annotated[tuple[float, float, float] | None, typer.Option(metavar="K MU SIGMA", help="Instead of --statistics, k in MeV.")] = None,
    task: Annotated[str | None, typer.Option(help="encoder, flavour, charm, vertex or particle; by default what the checkpoint was for.")] = None,
    detector: Annotated[str | None, typer.Option(help="Packaged detector or JSON file; by default the published one.")] = None,
    heads: Annotated[int, typer.Option(min=1, help="Attention heads.")] = 12,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing folder.")] = False,
) -> None:
    """Convert a faserDL checkpoint to a folder that from_pretrained loads."""
    from .faserdl import RECORD_FILE, convert_faserdl

    if charge is not None and statistics is not None:
        raise typer.BadParameter("give either --statistics or --charge")
    given = dict(zip(("k", "mu", "sigma"), charge)) if charge is not None else statistics
    try:
        convert_faserdl(checkpoint, out, given, task, detector, heads, overwrite)
    except (ValueError, OSError) as error:
        raise typer.BadParameter(str(error)) from error
    typer.echo(f"{out}: config, weights and processor; {RECORD_FILE} says what had no counterpart")
    if missing := json.loads((out / RECORD_FILE).read_text(encoding="utf-8"))["statistics_missing"]:
        names = ", ".join(missing)
        typer.echo(
            f"The processor has no statistics of {names} and takes no events yet: give those of NuFMProcessor.fit(events) as --statistics", err=True
        )
