"""Options that several commands of `nufm study` share."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

Initialisation = Annotated[
    list[str], typer.Option(help="scratch for random weights, or NAME=ID with the id or folder of a checkpoint; may be repeated.")
]
INITIALISATIONS = ["scratch", "mae=nufm/fasercal-mae", "mae-rel=nufm/fasercal-mae-rel"]

RecipeChoice = Annotated[str | None, typer.Option(help="Recipe name or JSON file instead of the plan's.")]
RecipeValues = Annotated[list[str] | None, typer.Option("--set", help="Replace a value of the recipe for all, e.g. --set warmup=0.1.")]
TunedRates = Annotated[list[float] | None, typer.Option(help="base_learning_rate to try; may be repeated.")]
TunedEpochs = Annotated[list[float] | None, typer.Option(help="Factor on the plan's epochs to try; may be repeated.")]
TuningSeeds = Annotated[list[int] | None, typer.Option(help="Seed of the tuning, none of the study's; may be repeated.")]

Rivals = Annotated[
    list[str], typer.Option("--rival", help="With the same labels beside each training: extra-trees, boosted-trees, geometry, mean; may be repeated.")
]
RIVALS = ["extra-trees"]

Results = Annotated[Path, typer.Option(help="Folder for tables, summary and plots.")]
RESULTS = Path("model_cards/results")
Cpu = Annotated[bool, typer.Option("--cpu", help="Use the CPU even where there is a GPU.")]
Workers = Annotated[int, typer.Option(help="Processes that prepare batches.")]


def parse_initialisations(given: list[str]) -> dict[str, str | None]:
    """`["scratch", "mae=nufm/fasercal-mae"]` to `{"scratch": None, "mae": "nufm/fasercal-mae"}`.

    Raises:
        ValueError: a name without a checkpoint, or given twice.
    """
    parsed: dict[str, str | None] = {}
    for item in given:
        name, _, source = item.partition("=")
        if name in parsed or not re.fullmatch(r"[\w-]+", name) or (name == "scratch") == bool(source):
            raise ValueError(f"initialisation {item!r}: give scratch, or NAME=checkpoint, each name once")
        parsed[name] = source or None
    return parsed
