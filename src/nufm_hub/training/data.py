"""From event files to batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import TrainerCallback

from nufm_hub.detectors import DetectorSpec
from nufm_hub.events import Event
from nufm_hub.events.augmentation import Augmentation
from nufm_hub.models.nufm.processing_nufm import NuFMProcessor


class AugmentedEvents(Dataset[Event]):
    """Events changed anew in every epoch.

    The change is a function of (seed, epoch, index) alone, so neither worker processes nor an interruption alter it.
    """

    def __init__(self, events: Sequence[Event] | Dataset[Event], augmentation: Augmentation, spec: DetectorSpec, seed: int) -> None:
        self.events, self.augmentation, self.spec, self.seed, self.epoch = events, augmentation, spec, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.events)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Event:
        return self.augmentation(self.events[index], self.spec, np.random.default_rng([self.seed, self.epoch, index]))


class SetEpoch(TrainerCallback):
    """Tells the training data which epoch it is; Trainer tells its sampler only."""

    def on_epoch_begin(self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **kwargs: Any) -> None:
        if hasattr(dataset := getattr(train_dataloader, "dataset", None), "set_epoch"):
            dataset.set_epoch(int(state.epoch or 0))


class NuFMCollator:
    """A list of events to one batch of model inputs, with the labels of a task (see `NuFMProcessor.__call__`)."""

    def __init__(self, processor: NuFMProcessor, labels: str | None = None) -> None:
        self.processor, self.labels = processor, labels

    def __call__(self, events: list[Event]) -> dict[str, torch.Tensor]:
        return dict(self.processor(events, labels=self.labels))
