"""What a card is made of: the files of a checkpoint, of those it was made from, and of its evaluation."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from nufm_hub import checkpoints
from nufm_hub.detectors import DetectorSpec
from nufm_hub.evaluation.checkpoint import checkpoint_folder, checkpoint_name
from nufm_hub.evaluation.source import crop_settings, packaged_sample, weights_sha256
from nufm_hub.events import read_detector
from nufm_hub.events.crop_files import CropSettings
from nufm_hub.files import sha256_of
from nufm_hub.models import AutoConfig, AutoModel
from nufm_hub.models.common import DetectorConfig
from nufm_hub.studies.features import encoder_sha256
from nufm_hub.tasks import Task, get_task
from nufm_hub.transfer.report import REPORT_FILE, TransferReport


@dataclass(frozen=True)
class Step:
    """A checkpoint and how it was trained.

    Attributes:
        name: id, or name of the folder.
        folder: of its files.
        config: of the model.
        training: what `training.json` holds.
    """

    name: str
    folder: Path
    config: DetectorConfig
    training: dict[str, Any]

    @classmethod
    def load(cls, checkpoint: str | Path) -> Step:
        """Raises ValueError when the folder holds no record of a training."""
        folder = checkpoint_folder(checkpoint)
        if not (path := folder / "training.json").is_file():
            raise ValueError(f"{checkpoint} has no training.json: a card cannot say how it was made")
        return cls(checkpoint_name(checkpoint), folder, AutoConfig.from_pretrained(folder), json.loads(path.read_text(encoding="utf-8")))

    @property
    def task(self) -> Task:
        return get_task(self.training["task"])

    @property
    def is_pretraining(self) -> bool:
        return self.task.judged == "losses"

    @property
    def uses_truth(self) -> bool:
        """Whether its pre-training learnt what the simulation says of single voxels."""
        return self.is_pretraining and self.config.pretrains_on_truth

    @property
    def source_sha256(self) -> str | None:
        """Hash of the weights it started from, if that was recorded."""
        return self.training.get("source_sha256")

    @cached_property
    def weights_sha256(self) -> str:
        return weights_sha256(self.folder)

    @cached_property
    def encoder_sha256(self) -> str:
        return encoder_sha256(AutoModel.from_pretrained(self.folder))

    @property
    def source(self) -> str | None:
        """Id of the checkpoint it started from; of a folder its name, without a slash. None for random weights."""
        source = self.training.get("source")
        if source is None:
            return None
        is_id = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source) and not Path(source).is_dir()
        return source if is_id else Path(source).name


@dataclass(frozen=True)
class Facts:
    """Everything a card says.

    Attributes:
        steps: the checkpoint, then the one it started from, and so on as far as these weights come with the package.
        evaluation: what `nufm evaluate` wrote.
        results: folder of the results.
        transfer: what was carried over from another detector, if so.
    """

    steps: tuple[Step, ...]
    evaluation: dict[str, Any]
    results: Path
    transfer: TransferReport | None

    @property
    def step(self) -> Step:
        return self.steps[0]

    @property
    def name(self) -> str:
        return self.step.name

    @property
    def stem(self) -> str:
        """Name without namespace, as of its files."""
        return self.name.rpartition("/")[2]

    @property
    def spec(self) -> DetectorSpec:
        return self.step.config.spec

    @property
    def architecture(self) -> str:
        return self.evaluation["architecture"]

    @cached_property
    def sample(self) -> Path | None:
        """Packaged events that the model can be tried on."""
        try:
            return packaged_sample(self.spec)
        except ValueError:
            return None

    @property
    def is_on_sample(self) -> bool:
        """Whether those are the events of the evaluation."""
        return self.sample is not None and sha256_of([self.sample]) == self.evaluation["data"]["events_sha256"]

    @cached_property
    def crops(self) -> CropSettings | None:
        """How the packaged events are cut into what the model takes; None when it takes them whole."""
        return None if self.sample is None else crop_settings(read_detector(self.sample), self.spec)


def load_facts(checkpoint: str | Path, results: Path) -> Facts:
    """Read all files.

    Raises:
        ValueError: one is missing, or the evaluation is not of these weights, or was made on events of the training.
    """
    steps = tuple(_steps(checkpoint))
    step = steps[0]
    path = results / f"{step.name.rpartition('/')[2]}.json"
    command = f"run `nufm evaluate {checkpoint} --out {path}`, with --events for events of your own"
    if not path.is_file():
        raise ValueError(f"there are no results of {step.name} in {results}: {command}")
    evaluation = json.loads(path.read_text(encoding="utf-8"))
    if evaluation["weights_sha256"] != step.weights_sha256:
        raise ValueError(f"{path} is of other weights than those of {step.name}: {command}")
    if evaluation["held_out"] is False or evaluation["absent"]:
        raise ValueError(f"{path} is of events that the checkpoint was trained on, or of events without {evaluation['absent']}: {command}")
    transfer = TransferReport.load(step.folder) if (step.folder / REPORT_FILE).is_file() else None
    return Facts(steps, evaluation, results, transfer)


def _steps(checkpoint: str | Path) -> Iterator[Step]:
    """The checkpoint and those before it, as long as the weights of that id are still the ones that it started from."""
    step = Step.load(checkpoint)
    yield step
    source = step.training.get("source")
    if source in checkpoints.list_checkpoints() and weights_sha256(checkpoints.checkpoint_path(source)) == step.training.get("source_sha256"):
        yield from _steps(source)
