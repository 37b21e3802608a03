"""One fine-tuning of a study: so many labels, one seed, one start; trained to the end of its schedule and evaluated once."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers.utils import cached_file

from nufm_hub import checkpoints
from nufm_hub.evaluation import evaluate
from nufm_hub.events import list_shards
from nufm_hub.files import sha256_of
from nufm_hub.tasks import get_task
from nufm_hub.training import train
from nufm_hub.training.data import describe_data, open_task
from nufm_hub.training.folder import MODEL_FOLDER

from .runs import Work

Paths = Sequence[str | Path]
PREDICTIONS = "predictions.npz"


@dataclass(frozen=True)
class Events:
    """Event files, and what they hold.

    Attributes:
        paths: parquet files, folders or globs.
        description: as of `describe_data`, with `sha256` of the files.
    """

    paths: Paths
    description: dict[str, Any]

    @classmethod
    def open(cls, paths: Paths, task: str) -> Events:
        """Read what there is, counted as the task counts events.

        Raises:
            ValueError: no or damaged files, or files of several detectors.
        """
        return cls(paths, describe_data(open_task(get_task(task), list(paths))) | {"sha256": sha256_of(list_shards(paths))})

    def __len__(self) -> int:
        return self.description["events"]

    @property
    def identity(self) -> dict[str, Any]:
        """What decides a result, wherever the files lie."""
        return {key: self.description[key] for key in ("detector", "events", "sha256")}


def refuse_shared_files(paths: Mapping[str, Paths]) -> None:
    """Raises ValueError when one file is among the events of two purposes, by name."""
    seen: dict[Path, str] = {}
    for name, given in paths.items():
        for file in {Path(f).resolve() for f in list_shards(list(given))}:
            if file in seen:
                raise ValueError(f"{file.name} is among both {seen[file]} and {name}: these must not share events")
            seen[file] = name


def describe_source(source: str | None) -> dict[str, str] | None:
    """Id (or name of the folder) and weights' hash of the checkpoint a training starts from; None for random weights.

    Raises:
        ValueError: there is no such checkpoint.
    """
    if source is None:
        return None
    try:
        weights = cached_file(checkpoints.resolve(source), "model.safetensors")
    except OSError as error:
        raise ValueError(f"{source} is neither a folder nor the id of a checkpoint with model.safetensors: {error}") from error
    return {"checkpoint": Path(source).resolve().name if Path(source).is_dir() else source, "sha256": sha256_of([weights])}


def fine_tune_and_evaluate(
    train_events: Events,
    evaluated: Events,
    sources: Mapping[str, str | None],
    use_cpu: bool,
    workers: int,
    validation: Events | None = None,
) -> Work:
    """The `work` of `runs.execute`.

    Its settings: `task`, `initialisation` (a key of `sources`), `labels`, `seed`, `recipe`; and where wanted `transfer`, and `evaluations`, the
    number of times that `validation` is evaluated during training. Nothing is chosen by that: what is evaluated in the end are the weights
    at the end of the schedule. They are left in the folder of the run as `model`, and what they predict of the events as `PREDICTIONS`.

    Returns:
        A function whose result is `{"training": {...}, "evaluation": as of evaluate}`; where weights are not finite, `evaluation` is None. With
        `evaluations`, `training` has the `curve`, a list of `[step, validation loss]` (None where it is not finite).
    """

    def work(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
        output, model = folder / "training", folder / MODEL_FOLDER
        evaluations = settings.get("evaluations")
        if not model.exists():
            made = output / MODEL_FOLDER
            if not made.exists():
                train(
                    settings["task"],
                    settings["recipe"],
                    list(train_events.paths),
                    output,
                    sources[settings["initialisation"]],
                    list(validation.paths) if evaluations else None,
                    seed=settings["seed"],
                    use_cpu=use_cpu,
                    workers=workers,
                    max_events=settings["labels"],
                    transfer=settings.get("transfer", False),
                    evaluations=evaluations,
                )
            os.replace(made, model)
        record = json.loads((model / "training.json").read_text(encoding="utf-8"))
        losses = [entry for entry in record["curves"] if "loss" in entry]
        training = {
            "steps": losses[-1]["step"],
            "last_loss": losses[-1]["loss"],
            "parameters": record["parameters"],
            "seconds": record["seconds"],
            "resumed": record["resumed"],
            "machine": record["machine"],
        }
        if evaluations:
            curve = [(entry["step"], entry["eval_loss"]) for entry in record["curves"] if "eval_loss" in entry]
            training["curve"] = [[step, loss if math.isfinite(loss) else None] for step, loss in curve]
        finite = all(torch.isfinite(w).all() for w in load_file(model / "model.safetensors").values())
        evaluation = evaluate(model, list(evaluated.paths), use_cpu=use_cpu, predictions=folder / PREDICTIONS) if finite else None
        return {"training": training, "evaluation": evaluation}

    return work
