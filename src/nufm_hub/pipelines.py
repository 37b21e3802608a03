"""From events to predictions in physical units: `FlavourPipeline.from_pretrained("nufm/fasercal-mae-rel-flavour")(events)`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import islice
from typing import Any, ClassVar, Self

import numpy as np
import torch
from transformers import PreTrainedModel

from nufm_hub.checkpoints import list_checkpoints
from nufm_hub.detectors import DetectorSpec, load_detector
from nufm_hub.events import Event
from nufm_hub.events.crop_files import CropSettings
from nufm_hub.models import AutoConfig, AutoModelForFlavourClassification, AutoModelForParticleID, AutoModelForVertexRegression, AutoProcessor
from nufm_hub.models.common import EventProcessor
from nufm_hub.models.common.loading import hub_options
from nufm_hub.tasks import task_of


class EventPipeline:
    """A model with its processor. Takes one event, a list, or any iterable of events; memory does not grow with their number.

    Args:
        model: put into evaluation mode.
        processor: the one saved with the model.
        batch_size: events of one forward pass.
    """

    auto_model: ClassVar[Any]

    def __init__(self, model: PreTrainedModel, processor: EventProcessor, batch_size: int = 16) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        if model.config.spec.hash != processor.spec.hash:
            names = f"the model reads detector {model.config.spec.name!r}, the processor {processor.spec.name!r}"
            raise ValueError(f"{names} (or another version of it): load both from one checkpoint")
        self.model, self.processor, self.batch_size = model.eval(), processor, batch_size

    @classmethod
    def from_pretrained(cls, name_or_path: str, batch_size: int = 16, **kwargs: Any) -> Self:
        """Load model and processor from a bundled id, a folder, or the Hub; `kwargs` go to the model's `from_pretrained`.

        Raises:
            ValueError: the checkpoint holds no trained head of this kind, such as one that is pre-trained only.
        """
        return cls(*cls._load(name_or_path, **kwargs), batch_size)

    @classmethod
    def _load(cls, name_or_path: str, **kwargs: Any) -> tuple[PreTrainedModel, EventProcessor]:
        model, info = cls.auto_model.from_pretrained(name_or_path, output_loading_info=True, **kwargs)
        if info["missing_keys"]:
            name = type(model).__name__
            bundled = [c for c in list_checkpoints() if AutoConfig.from_pretrained(c).architectures == [name]]
            others = f", or take {' or '.join(bundled)}, which the package brings" if bundled else ""
            raise ValueError(
                f"{name_or_path} holds no trained head of a {name} (no weights named {sorted(info['missing_keys'])[:3]} ...): "
                f"fine-tune it with nufm finetune{others}"
            )
        return model, AutoProcessor.from_pretrained(name_or_path, **hub_options(kwargs))

    def __call__(self, events: Event | Iterable[Event]) -> Any:
        """The prediction of one event, or the list of predictions of several."""
        if isinstance(events, Event):
            return next(self.stream([events]))
        return list(self.stream(events))

    def stream(self, events: Iterable[Event]) -> Iterator[Any]:
        """Predictions one by one, in the order of the events."""
        iterator = iter(events)
        while batch := list(islice(iterator, self.batch_size)):
            yield from self._predict(batch)

    def _predict(self, batch: list[Event], **more: torch.Tensor) -> Iterable[Any]:
        inputs = self.processor(batch)
        inputs.update(more)
        with torch.inference_mode():
            outputs = self.model(**inputs.to(self.model.device))
        return self._post_process(outputs)

    def _post_process(self, outputs: Any) -> Iterable[Any]:
        raise NotImplementedError


class FlavourPipeline(EventPipeline):
    """Per event `{"label", "score", "probabilities"}` over the detector's flavour classes."""

    auto_model = AutoModelForFlavourClassification

    def _post_process(self, outputs: Any) -> list[dict[str, Any]]:
        return self.processor.post_process_classification(outputs, "flavour")


class EventParticlePipeline(EventPipeline):
    """Per event the list of its particles, each `{"label", "score", "probabilities"}` over the detector's particle classes.

    A model of crops (see `nufm_hub.events.crops`) takes whole events and crops them; `"id"` then says which `particle` instance is
    meant, and particles too small to tell are left out. Events of the model's own detector are taken as they are: one particle each.

    Args:
        detector: of the whole events; by default the packaged one whose crops the model reads.
        crops: how they were cropped; by default as published for that detector, in the sizes that the model reads.

    Raises:
        ValueError: events of another detector; whole events whose detector or crops are unknown or not the model's.
    """

    auto_model = AutoModelForParticleID

    def __init__(
        self,
        model: PreTrainedModel,
        processor: EventProcessor,
        batch_size: int = 16,
        detector: str | DetectorSpec | None = None,
        crops: CropSettings | None = None,
    ) -> None:
        super().__init__(model, processor, batch_size)
        self._given = detector, crops

    @cached_property
    def cropping(self) -> tuple[DetectorSpec, CropSettings]:
        """The detector of whole events, and how they are cropped."""
        (detector, crops), own = self._given, self.processor.spec
        name = own.name.removesuffix("-crop")
        detector = load_detector(name if detector is None else detector)
        if crops is None:
            branch = own.voxel_branches[0]
            sizes = {"shape": branch.shape, "patch": branch.patch, "window": branch.window}
            crops = CropSettings.load(name, **sizes, features=own.track_branch is not None)
        if crops.detector(detector).hash != own.hash:
            raise ValueError(f"{crops} of {detector.name!r} are not the crops the model reads: give the detector and the crops it was trained with")
        return detector, crops

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str,
        batch_size: int = 16,
        detector: str | DetectorSpec | None = None,
        crops: CropSettings | None = None,
        **kwargs: Any,
    ) -> Self:
        """As in `EventPipeline`."""
        return cls(*cls._load(name_or_path, **kwargs), batch_size, detector, crops)

    def stream(self, events: Iterable[Event]) -> Iterator[Any]:
        """Lists of predictions one by one, in the order of the events and, in each, of the ids."""
        iterator = iter(events)
        while batch := list(islice(iterator, self.batch_size)):
            particles = [self._particles(event) for event in batch]
            together = [crop for crops in particles for crop in crops]
            more = {}
            if task_of(self.model).grouped:
                more["particle_event"] = torch.tensor([i for i, crops in enumerate(particles) for _ in crops])
            rows = iter(self._predict(together, **more) if together else [])
            for crops in particles:
                yield [{**_identity(crop), **next(rows)} for crop in crops]

    def _particles(self, event: Event) -> list[Event]:
        own = self.processor.spec
        if event.detector == own.name or not own.name.endswith("-crop"):
            return [event]
        detector, crops = self.cropping
        event.validate(detector)
        return list(crops.crops(event, detector, own))

    def _post_process(self, outputs: Any) -> list[dict[str, Any]]:
        return self.processor.post_process_classification(outputs, "particle")


class ParticlePipeline(EventParticlePipeline):
    """Per event, with one particle each, `{"label", "score", "probabilities"}` over the detector's particle classes.

    Whole events and crops are taken as by `EventParticlePipeline`.
    """

    def stream(self, events: Iterable[Event]) -> Iterator[Any]:
        """Predictions one by one, in the order of the events."""
        for (particle,) in super().stream(events):
            particle.pop("id", None)
            yield particle

    def _particles(self, event: Event) -> list[Event]:
        particles = super()._particles(event)
        if len(particles) != 1:
            raise ValueError(f"{event} has {len(particles)} particles large enough to tell, not one: use EventParticlePipeline")
        return particles


def _identity(crop: Event) -> dict[str, int]:
    return {"id": int(crop.particles["id"][0])} if len(crop.particles.get("id", ())) == 1 else {}


class VertexPipeline(EventPipeline):
    """Per event the primary vertex in mm, float64 (3,), in the detector frame."""

    auto_model = AutoModelForVertexRegression

    def _post_process(self, outputs: Any) -> np.ndarray:
        return self.processor.post_process_vertex(outputs)
