"""`nufm ...`: every command is one call into the package."""

from __future__ import annotations

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help="Pretrained encoders for neutrino detectors.")
