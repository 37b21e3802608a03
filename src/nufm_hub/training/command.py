"""`nufm pretrain` and `nufm finetune`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

Events = Annotated[list[Path], typer.Option("--events", help="Parquet file or folder of training events; may be repeated.")]
Validation = Annotated[list[Path] | None, typer.Option("--validation", help="Parquet file or folder of validation events; may be repeated.")]
Out = Annotated[Path, typer.Option("--out", help="Folder of the run; an interrupted run in it is taken up again.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="Replace a value of the recipe, e.g. --set steps=3000; values are JSON.")]
Epochs = Annotated[int | None, typer.Option(help="Length of the training in passes over its events, instead of the recipe's.")]
Steps = Annotated[int | None, typer.Option(help="Length of the training in optimiser steps, instead of the recipe's; not with --epochs.")]
Seed = Annotated[int, typer.Option(help="Seed of weights, order, augmentation and masking.")]
Cpu = Annotated[bool, typer.Option("--cpu", help="Train on the CPU even where there is a GPU.")]
Workers = Annotated[int, typer.Option(help="Processes that prepare batches.")]
ReportTo = Annotated[str, typer.Option(help="Where to log besides training.json: csv, tensorboard, or both with a comma between.")]
MaxEvents = Annotated[int | None, typer.Option(help="Learn from so many of the events only: a random subset, nested for one seed.")]
Checkpointing = Annotated[bool, typer.Option("--gradient-checkpointing", help="Compute activations twice instead of keeping them: less memory.")]
Precision = Annotated[str, typer.Option(help="float32, or bf16 or fp16: mixed precision on a GPU that has it.")]

# Defaults of `finetune` for tasks that need one of their own.
RECIPES = {"particle": "superfgd-transfer-nano", "event-particles": "pilarnet-transfer-nano"}


def pretrain(
    events: Events,
    out: Out,
    recipe: Annotated[str, typer.Option(help="Recipe name or JSON file.")] = "fasercal-pretrain-nano",
    relational: Annotated[
        bool | None,
        typer.Option("--relational/--no-relational", help="mae-rel (uses simulation truth per voxel; where there is any, the default), or mae."),
    ] = None,
    validation: Validation = None,
    set_: Set = None,
    epochs: Epochs = None,
    steps: Steps = None,
    seed: Seed = 0,
    cpu: Cpu = False,
    workers: Workers = 0,
    report_to: ReportTo = "none",
    gradient_checkpointing: Checkpointing = False,
    precision: Precision = "float32",
) -> None:
    """Pre-train an encoder as the recipe says: `nufm` models by masked reconstruction and, unless told otherwise, relational voxel objectives."""
    model = {} if relational is None else {"relational": relational}
    _train(
        "pretraining",
        recipe,
        set_,
        {"epochs": epochs, "steps": steps},
        model,
        events=events,
        output_dir=out,
        validation=validation,
        seed=seed,
        use_cpu=cpu,
        workers=workers,
        report_to=report_to,
        gradient_checkpointing=gradient_checkpointing,
        precision=precision,
    )


def finetune(
    task: Annotated[
        str, typer.Argument(help="flavour, charm, vertex, momentum, reconstruction (all of these at once), voxels, particle, or event-particles.")
    ],
    events: Events,
    out: Out,
    source: Annotated[str | None, typer.Option(help="Id or folder of the pre-trained checkpoint; random weights when left out.")] = None,
    recipe: Annotated[str | None, typer.Option(help="Recipe name or JSON file; a small one for the task by default.")] = None,
    validation: Validation = None,
    set_: Set = None,
    epochs: Epochs = None,
    steps: Steps = None,
    seed: Seed = 0,
    cpu: Cpu = False,
    workers: Workers = 0,
    report_to: ReportTo = "none",
    gradient_checkpointing: Checkpointing = False,
    precision: Precision = "float32",
    max_events: MaxEvents = None,
    transfer: Annotated[
        bool, typer.Option("--transfer", help="The source reads another detector: take its encoder along, start all else anew.")
    ] = False,
) -> None:
    """Fine-tune an encoder with a task head on labelled events."""
    chosen = recipe or RECIPES.get(task, "fasercal-finetune-nano")
    _train(
        task,
        chosen,
        set_,
        {"epochs": epochs, "steps": steps},
        {},
        events=events,
        output_dir=out,
        source=source,
        validation=validation,
        seed=seed,
        use_cpu=cpu,
        workers=workers,
        report_to=report_to,
        gradient_checkpointing=gradient_checkpointing,
        precision=precision,
        max_events=max_events,
        transfer=transfer,
    )


def _train(
    task: str, recipe: str, set_: list[str] | None, length: dict[str, int | None], model: dict[str, Any], **options: Any
) -> None:
    """`train` with the `options`, of a recipe with what `--set`, `--epochs` and `--steps` replace and with fields of the `model`."""
    from .recipe import load_recipe
    from .run import train

    try:
        given = {name: value for name, value in length.items() if value is not None}
        loaded = load_recipe(recipe, **parse_values(set_) | given)
        folder = train(task, load_recipe(loaded, model={**loaded.model, **model}), **options)
    except (ValueError, OSError, ImportError) as error:
        raise typer.BadParameter(str(error)) from error
    typer.echo(f"saved {folder}")


def parse_values(items: list[str] | None) -> dict[str, Any]:
    """What `--set` gives: `["epochs=5"]` to `{"epochs": 5}`.

    Raises:
        ValueError: an item that is not name=value with a value in JSON.
    """
    values = {}
    for item in items or []:
        name, found, value = item.partition("=")
        if not found:
            raise ValueError(f"--set {item!r} is not name=value")
        try:
            values[name] = json.loads(value)
        except json.JSONDecodeError as error:
            raise ValueError(f"--set {item!r}: the value is not JSON (quote strings): {error}") from error
    return values
