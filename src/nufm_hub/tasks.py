"""Tasks as data: which model learns what from which labels, and how it is judged. Families of models do not appear here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from transformers import PreTrainedConfig

from nufm_hub.metrics import flavour_metrics, momentum_metrics, reconstruction_metrics, vertex_metrics, voxel_metrics
from nufm_hub.models import auto
from nufm_hub.models.common import DetectorModel, EventProcessor


@dataclass(frozen=True)
class Task:
    """Something to learn.

    Attributes:
        name: of the task, as commands and records have it.
        auto: the Auto class that finds the model of a family.
        labels: what the loss needs, see `EventProcessor.__call__`.
        judged: by its `losses`, by the labels of `voxels`, or by what it predicts of `events` (or particles).
        event_label: the event label whose classes it predicts, if so.
        metrics: makes a `compute_metrics` function for `Trainer`.
        scales: properties of the processor that the configuration of the model has, by name.
        grouped: whether it takes all particles of an event at once.
    """

    name: str
    auto: type[auto.AutoTaskModel]
    labels: str
    judged: Literal["losses", "voxels", "events"] = "events"
    event_label: str | None = None
    metrics: Callable[[EventProcessor], Callable[..., dict[str, float]]] | None = None
    scales: tuple[str, ...] = ()
    grouped: bool = False

    def scales_of(self, processor: EventProcessor) -> dict[str, Any]:
        """What the configuration of the model takes over from its processor."""
        return {name: getattr(processor, name) for name in self.scales}

    def model_class(self, config_class: type[PreTrainedConfig]) -> type[DetectorModel]:
        """The model of a family, by its configuration class; ValueError when it has none for this task."""
        return self.auto.model_class(config_class)


def _of_classes(name: str, found: type[auto.AutoTaskModel], label: str | None = None) -> Task:
    label = name if label is None else label
    return Task(name, found, label, event_label=label, metrics=lambda processor: flavour_metrics)


_ALL = (
    Task("pretraining", auto.AutoModelForPreTraining, "voxels", "losses"),
    _of_classes("flavour", auto.AutoModelForFlavourClassification),
    Task("vertex", auto.AutoModelForVertexRegression, "vertex", metrics=vertex_metrics, scales=("vertex_scale",)),
    _of_classes("charm", auto.AutoModelForCharmClassification),
    Task("momentum", auto.AutoModelForMomentumRegression, "reconstruction", metrics=momentum_metrics, scales=("momentum_scales",)),
    Task(
        "reconstruction", auto.AutoModelForEventReconstruction, "reconstruction", metrics=reconstruction_metrics,
        scales=("momentum_scales", "vertex_scale"),
    ),
    Task("voxels", auto.AutoModelForVoxelClassification, "voxels", "voxels", metrics=voxel_metrics),
    _of_classes("particle", auto.AutoModelForParticleID),
    # No metrics during training: the Trainer expects one prediction an event, and cuts off what is more in the last batch.
    Task("event-particles", auto.AutoModelForEventParticleID, "particle", event_label="particle", grouped=True),
)
TASKS = {task.name: task for task in _ALL}


def get_task(name: str) -> Task:
    """A task by name.

    Raises:
        ValueError: there is no such task.
    """
    if name not in TASKS:
        raise ValueError(f"unknown task {name!r}: give one of {sorted(TASKS)}")
    return TASKS[name]


def find_task(architecture: str, config_class: type[PreTrainedConfig]) -> Task | None:
    """The task of a model class, by its name (as in `config.json`) and the configuration class of its family; None for a plain encoder."""
    family = auto.family_of(config_class)
    return next((task for task in _ALL if architecture == family.prefix + task.auto.heads[0]), None)


def task_of(model: Any) -> Task:
    """The task of a model.

    Raises:
        ValueError: a plain encoder, or a class that no family has.
    """
    name = type(model).__name__
    if (task := find_task(name, model.config_class)) is None:
        raise ValueError(f"a {name} predicts nothing: give a model with a head")
    return task
