"""`nufm study`: studies from the command line. Heavy imports happen inside the commands, so that `nufm --help` stays quick."""

from __future__ import annotations

import typer

from .command_ablation import ablation
from .command_baselines import baselines
from .command_data_efficiency import data_efficiency
from .command_layout import layout
from .command_representation import representation
from .command_transfer import crosstalk, transfer

app = typer.Typer(help="Studies: trainings and evaluations that answer one question, resumable, as tables and plots.", no_args_is_help=True)


@app.callback()
def study() -> None:
    """Studies; repeat a command to resume it, start it several times to share the work."""


for command in (baselines, layout, data_efficiency, representation, ablation, transfer, crosstalk):
    app.command()(command)
