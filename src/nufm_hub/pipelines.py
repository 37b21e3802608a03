"""From events to predictions in physical units: `FlavourPipeline.from_pretrained("nufm/fasercal-mae-rel-flavour")(events)`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, ClassVar, Self

import numpy as np
import torch
from transformers import PreTrainedModel

from nufm_hub.events import Event
from nufm_hub.models import AutoModelForFlavourClassification, AutoModelForParticleID, AutoModelForVertexRegression
from nufm_hub.models.nufm.processing_nufm import NuFMProcessor


class EventPipeline:
    """A model with its processor. Takes one event, a list, or any iterable of events; memory does not grow with their number.

    Args:
        model: put into evaluation mode.
        processor: the one saved with the model.
        batch_size: events of one forward pass.
    """

    auto_model: ClassVar[Any]

    def __init__(self, model: PreTrainedModel, processor: NuFMProcessor, batch_size: int = 16) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        if model.config.spec.hash != processor.spec.hash:
            names = f"the model reads detector {model.config.spec.name!r}, the processor {processor.spec.name!r}"
            raise ValueError(f"{names} (or another version of it): load both from one checkpoint")
        self.model, self.processor, self.batch_size = model.eval(), processor, batch_size

    @classmethod
    def from_pretrained(cls, name_or_path: str, batch_size: int = 16, **kwargs: Any) -> Self:
        """Load model and processor from a bundled id, a folder, or the Hub; `kwargs` go to the model's `from_pretrained`."""
        hub = {k: v for k, v in kwargs.items() if k in ("revision", "cache_dir", "token", "local_files_only")}
        return cls(cls.auto_model.from_pretrained(name_or_path, **kwargs), NuFMProcessor.from_pretrained(name_or_path, **hub), batch_size)

    def __call__(self, events: Event | Iterable[Event]) -> Any:
        """The prediction of one event, or the list of predictions of several."""
        if isinstance(events, Event):
            return next(self.stream([events]))
        return list(self.stream(events))

    def stream(self, events: Iterable[Event]) -> Iterator[Any]:
        """Predictions one by one, in the order of the events."""
        iterator = iter(events)
        while batch := list(islice(iterator, self.batch_size)):
            inputs = self.processor(batch).to(self.model.device)
            with torch.inference_mode():
                outputs = self.model(**inputs)
            yield from self._post_process(outputs)

    def _post_process(self, outputs: Any) -> Iterable[Any]:
        raise NotImplementedError


class FlavourPipeline(EventPipeline):
    """Per event `{"label", "score", "probabilities"}` over the detector's flavour classes."""

    auto_model = AutoModelForFlavourClassification

    def _post_process(self, outputs: Any) -> list[dict[str, Any]]:
        return self.processor.post_process_classification(outputs, "flavour")


class ParticlePipeline(EventPipeline):
    """Per event `{"label", "score", "probabilities"}` over the detector's particle classes."""

    auto_model = AutoModelForParticleID

    def _post_process(self, outputs: Any) -> list[dict[str, Any]]:
        return self.processor.post_process_classification(outputs, "particle")


class VertexPipeline(EventPipeline):
    """Per event the primary vertex in mm, float64 (3,), in the detector frame."""

    auto_model = AutoModelForVertexRegression

    def _post_process(self, outputs: Any) -> np.ndarray:
        return self.processor.post_process_vertex(outputs)
