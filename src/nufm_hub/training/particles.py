"""The particles of whole events, for models that take all of them at once."""

from __future__ import annotations

import numpy as np
import torch
from torch.utils.data import Dataset

from nufm_hub.detectors import DetectorSpec
from nufm_hub.events import Event, EventDataset
from nufm_hub.events.splits import group_key, read_truth
from nufm_hub.models.common import EventProcessor


class ParticleEvents(Dataset[list[Event]]):
    """The events that crops were made from: each a list of the crops of its particles.

    Args:
        crops: those of one event follow one another, as `nufm crop` writes them.

    Raises:
        ValueError: they do not, or do not say which event they are of.
    """

    def __init__(self, crops: EventDataset) -> None:
        keys = [group_key(crop, "event") for crop in read_truth(crops.files)]
        first = np.flatnonzero([i == 0 or key != keys[i - 1] for i, key in enumerate(keys)])
        if len(first) > len(set(keys)):
            raise ValueError(f"the crops of an event are not next to each other in {crops.files[0]} and the others: write them with nufm crop")
        self.crops, self.edges = crops, np.append(first, len(keys))

    @property
    def spec(self) -> DetectorSpec:
        return self.crops.spec

    @property
    def files(self) -> list[str]:
        return self.crops.files

    def __len__(self) -> int:
        return len(self.edges) - 1

    def __getitem__(self, index: int) -> list[Event]:
        if not 0 <= index < len(self):
            raise IndexError(f"event {index} of {len(self)}")
        return [self.crops[i] for i in range(self.edges[index], self.edges[index + 1])]


class ParticleCollator:
    """Events, each a list with the crops of its particles (`nufm_hub.events.crops.particle_crops`), to one batch of particles.

    Args:
        processor: of the crops.
        labels: also give the kinds of the particles.
    """

    def __init__(self, processor: EventProcessor, labels: bool = True) -> None:
        self.processor, self.labels = processor, "particle" if labels else None

    def __call__(self, events: list[list[Event]]) -> dict[str, torch.Tensor]:
        """Model inputs with the particles as batch, and `particle_event` int64 (P,).

        Raises:
            ValueError: no event has a particle.
        """
        crops = [crop for event in events for crop in event]
        if not crops:
            raise ValueError("none of the events of the batch has a particle: leave out events without crops")
        number = torch.tensor([i for i, event in enumerate(events) for _ in event])
        return {**self.processor(crops, labels=self.labels), "particle_event": number}
