"""Frozen features of events, and the truth they are to be compared with."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from nufm_hub.events import Event, EventDataset
from nufm_hub.models.common import DetectorModel, EventProcessor


@dataclass(frozen=True)
class Encoded:
    """Events as an encoder sees them.

    Attributes:
        features: float32 (N, D): the event vectors (`pooler_output`), hand-made numbers, or both side by side.
        labels: class indices int64 (N,) by name of the event label, -1 where unknown.
        vertex: float64 (N, 3), mm, NaN where unknown.
    """

    features: np.ndarray
    labels: dict[str, np.ndarray]
    vertex: np.ndarray

    def select(self, rows: np.ndarray) -> Encoded:
        """Some of the events, by index."""
        return Encoded(self.features[rows], {name: labels[rows] for name, labels in self.labels.items()}, self.vertex[rows])

    def beside(self, features: np.ndarray) -> Encoded:
        """The same events with further features (N, K)."""
        return replace(self, features=np.concatenate([self.features, features], axis=1))


def encode(model: DetectorModel, processor: EventProcessor, events: EventDataset, batch_size: int = 32, workers: int = 0) -> Encoded:
    """All events through a frozen encoder, on the device of the model.

    Raises:
        ValueError: the events are of another detector.
    """
    if events.spec.hash != processor.spec.hash:
        raise ValueError(f"the encoder reads detector {processor.spec.name!r}, the events are of {events.spec.name!r} (or another version of it)")

    def collate(batch: list[Event]) -> tuple[Mapping[str, torch.Tensor], list[Mapping[str, Any]]]:
        return processor(batch), [event.truth for event in batch]

    model.eval()
    features, truths = [], []
    loader = DataLoader(events, batch_size, collate_fn=collate, num_workers=workers)
    for inputs, truth in tqdm(loader, desc="encode", unit="batch", leave=False):
        with torch.inference_mode():
            output = model(**{name: value.to(model.device) for name, value in inputs.items()})
        features.append(output.pooler_output.float().cpu().numpy())
        truths += truth
    return _encoded(np.concatenate(features), truths, list(processor.spec.event_labels))


def summarised(processor: EventProcessor, events: EventDataset) -> Encoded:
    """All events as the hand-made numbers of `summary_features`, by a processor that was fitted for them."""
    found, truths = [], []
    for i in tqdm(range(len(events)), desc="summarise", unit="event", leave=False):
        event = events[i]
        found.append(processor.summary([event])[0].numpy())
        truths.append(event.truth)
    return _encoded(np.stack(found), truths, list(processor.spec.event_labels))


def _encoded(features: np.ndarray, truths: list[Mapping[str, Any]], labels: list[str]) -> Encoded:
    classes = {name: np.array([int(t.get(name, -1)) for t in truths]) for name in labels}
    return Encoded(features, classes, np.stack([np.asarray(t.get("vertex", np.full(3, np.nan)), dtype=np.float64) for t in truths]))


def random_encoder(like: DetectorModel, seed: int) -> DetectorModel:
    """An encoder of the same size with new weights; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return type(like)(like.config)


def encoder_sha256(model: DetectorModel) -> str:
    """Hash of the encoder's weights by name and value: the same encoder inside another checkpoint has the same one."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
