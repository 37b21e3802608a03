"""`nufm card`. Heavy imports happen inside the command, so that `nufm --help` stays quick."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def card(
    checkpoints: Annotated[list[str] | None, typer.Argument(metavar="[ID...]", help="Ids or folders of checkpoints.")] = None,
    all_: Annotated[bool, typer.Option("--all", help="All checkpoints that come with the package.")] = False,
    results: Annotated[Path, typer.Option(help="Folder with what `nufm evaluate` and `nufm study` wrote.")] = Path("model_cards/results"),
    out: Annotated[Path, typer.Option(help="Folder for <name>.md; old cards are replaced.")] = Path("model_cards"),
) -> None:
    """Write model cards from the records in the checkpoints and the results of evaluations and studies."""
    from nufm_hub.checkpoints import list_checkpoints

    from .card import write_card

    if bool(checkpoints) == all_:
        raise typer.BadParameter("give one or more checkpoints, or --all")
    for checkpoint in list_checkpoints() if all_ else checkpoints:
        try:
            path = write_card(checkpoint, results, out)
        except (ValueError, OSError) as error:
            raise typer.BadParameter(str(error)) from error
        typer.echo(f"saved {path}")
