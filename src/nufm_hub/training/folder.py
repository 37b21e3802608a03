"""The folder of a run: whose it is, where it is taken up again, and what it leaves behind."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel
from transformers.trainer import TRAINER_STATE_NAME

from nufm_hub.files import new_file, new_folder
from nufm_hub.models.common import EventProcessor

MODEL_FOLDER, MARKER = "model", "run.json"


def save_checkpoint(model: PreTrainedModel, processor: EventProcessor, record: Mapping[str, Any], folder: Path, overwrite: bool = False) -> None:
    """Config, weights, processor and `training.json` in a new folder."""
    with new_folder(folder, overwrite) as temporary:
        model.save_pretrained(temporary)
        processor.save_pretrained(temporary)
        (temporary / "training.json").write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _last_checkpoint(output_dir: Path) -> str | None:
    """The newest checkpoint that was written to its end."""
    complete = [folder for folder in output_dir.glob("checkpoint-*") if _is_complete(folder / TRAINER_STATE_NAME)]
    return str(max(complete, key=lambda folder: int(folder.name.split("-")[1]))) if complete else None


def _is_complete(state: Path) -> bool:
    """Whether the Trainer's state, which it writes last, and in place, is there to its closing bracket."""
    try:
        json.loads(state.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return False
    return True


def resumable(output_dir: Path, settings: dict[str, Any]) -> str | None:
    """The checkpoint to resume from, if there is one of a run with these settings; refuses a folder that holds anything else."""
    marker = output_dir / MARKER
    if (output_dir / MODEL_FOLDER).exists():
        raise FileExistsError(f"{output_dir} holds a finished run: choose another output folder, or remove it first")
    if marker.is_file():
        if json.loads(marker.read_text(encoding="utf-8")) != json.loads(json.dumps(settings)):
            raise FileExistsError(f"{output_dir} holds a run with other settings ({marker.name}): choose another output folder, or remove it first")
        return _last_checkpoint(output_dir)
    if output_dir.exists() and any(output_dir.iterdir()):
        raise FileExistsError(f"{output_dir} exists and holds other files: choose another output folder")
    return None


def claim(output_dir: Path, settings: dict[str, Any]) -> None:
    """Make the run's folder. Only once nothing is left to refuse: the same folder is then free for what is put right."""
    output_dir.mkdir(parents=True, exist_ok=True)
    with new_file(output_dir / MARKER, overwrite=True) as temporary:
        temporary.write_text(json.dumps(settings, indent=1, sort_keys=True) + "\n", encoding="utf-8")
