"""From event files to batches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import TrainerCallback

from nufm_hub.detectors import DetectorSpec
from nufm_hub.events import Event, EventDataset
from nufm_hub.events.augmentation import Augmentation
from nufm_hub.models.common import EventProcessor
from nufm_hub.provenance import simulations_of
from nufm_hub.tasks import Task

from .particles import ParticleEvents


class EventSubset(Dataset[Event]):
    """The first `count` events of a random order of `events` that the seed gives: of one seed, the smaller subset lies in the larger one.

    Raises:
        ValueError: there are fewer than `count` events, or `count` is not positive.
    """

    def __init__(self, events: EventDataset | ParticleEvents, count: int, seed: int) -> None:
        if not 0 < count <= len(events):
            raise ValueError(f"cannot take {count} of {len(events)} events: give a number from 1 to {len(events)}, or more data")
        self.events, self.indices = events, np.random.default_rng(seed).permutation(len(events))[:count]

    @property
    def spec(self) -> DetectorSpec:
        return self.events.spec

    @property
    def files(self) -> list[str]:
        return self.events.files

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Event | list[Event]:
        return self.events[self.indices[index]]


class AugmentedEvents(Dataset[Event]):
    """Events changed anew in every epoch.

    The change is a function of (seed, epoch, index) alone, so neither worker processes nor an interruption alter it. The crops of one event
    are all mirrored and rotated in the same way.
    """

    def __init__(self, events: Sequence[Event] | Dataset[Event], augmentation: Augmentation, spec: DetectorSpec, seed: int) -> None:
        self.events, self.augmentation, self.spec, self.seed, self.epoch = events, augmentation, spec, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.events)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Event | list[Event]:
        event = self.events[index]
        return [self._changed(crop, index) for crop in event] if isinstance(event, list) else self._changed(event, index)

    def _changed(self, event: Event, index: int) -> Event:
        return self.augmentation(event, self.spec, np.random.default_rng([self.seed, self.epoch, index]))


class SetEpoch(TrainerCallback):
    """Tells the training data which epoch it is; Trainer tells its sampler only."""

    def on_epoch_begin(self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **kwargs: Any) -> None:
        if hasattr(dataset := getattr(train_dataloader, "dataset", None), "set_epoch"):
            dataset.set_epoch(int(state.epoch or 0))


class EvaluateAt(TrainerCallback):
    """Evaluates `count` times at equal numbers of steps, the last time at the end."""

    def __init__(self, count: int) -> None:
        self.count = count

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step in {max(1, round(state.max_steps * (i + 1) / self.count)) for i in range(self.count)}:
            control.should_evaluate = True


class EventCollator:
    """A list of events to one batch of model inputs, with the labels of a task (see `EventProcessor.__call__`)."""

    def __init__(self, processor: EventProcessor, labels: str | None = None) -> None:
        self.processor, self.labels = processor, labels

    def __call__(self, events: list[Event]) -> dict[str, torch.Tensor]:
        return dict(self.processor(events, labels=self.labels))


NuFMCollator = EventCollator  # its name while there was one family

Events = EventDataset | EventSubset | ParticleEvents


def open_task(task: Task, events: str | Path | list[str | Path], detector: DetectorSpec | None = None) -> EventDataset | ParticleEvents:
    """The events of parquet shards, as the model of a task takes them: labels of voxels only where they are learnt."""
    opened = EventDataset(events, detector, voxel_truth=task.labels == "voxels")
    return ParticleEvents(opened) if task.grouped else opened


def open_events(
    task: Task,
    events: str | Path | list[str | Path],
    validation: str | Path | list[str | Path] | None,
    max_events: int | None,
    seed: int,
) -> tuple[Events, Events | None]:
    """Training and validation events of one detector; `max_events` of the former in an order that the seed gives."""
    train_events = open_task(task, events)
    validation_events = None if validation is None else open_task(task, validation, train_events.spec)
    return train_events if max_events is None else EventSubset(train_events, max_events, seed), validation_events


def describe_data(events: Events) -> dict[str, Any]:
    """Detector, number of events and where they came from; file names only, no folders."""
    return {
        "detector": events.spec.name,
        "detector_hash": events.spec.hash,
        "events": len(events),
        "files": [Path(f).name for f in events.files],
        "simulations": simulations_of(events.files),
    }
