"""Batches of the particles of whole events, for `NuFMForEventParticleID`."""

from __future__ import annotations

import torch

from nufm_hub.events import Event
from nufm_hub.models.nufm.processing_nufm import NuFMProcessor


class ParticleCollator:
    """Events, each a list with the crops of its particles (`nufm_hub.events.crops.particle_crops`), to one batch of particles.

    Args:
        processor: of the crops.
        labels: also give the kinds of the particles.
    """

    def __init__(self, processor: NuFMProcessor, labels: bool = True) -> None:
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
