"""`nufm ...`: every command is one call into the package.

Heavy imports happen inside the commands, so that `nufm --help` stays quick.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nufm_hub.cards.command import card
from nufm_hub.conversion.command import convert
from nufm_hub.display.command import show
from nufm_hub.evaluation.command import evaluate
from nufm_hub.events.command import check_leaks, convert_data, crop, distort
from nufm_hub.simulation.command import app as simulate
from nufm_hub.studies.command import app as study
from nufm_hub.training.command import finetune, pretrain

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help="Pretrained encoders for neutrino detectors.")
app.add_typer(simulate, name="simulate")
app.add_typer(study, name="study")
for command in (convert_data, crop, check_leaks, distort, show, pretrain, finetune, evaluate, card, convert):
    app.command()(command)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder to make.")] = Path("runs/demo"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing folder.")] = False,
) -> None:
    """Predict flavour and vertex of the packaged held-out events with the bundled models."""
    from nufm_hub.demo import demo as run
    from nufm_hub.demo import print_report

    try:
        metrics = run(out, overwrite)
    except FileExistsError as error:
        raise typer.BadParameter(f"{error}, or pass --overwrite", param_hint="--out") from error
    print_report(metrics, out)
