"""The model that a training starts from, and its processor: new, from a checkpoint, or with the encoder of another detector."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from nufm_hub.events import Event
from nufm_hub.models import AutoProcessor
from nufm_hub.models.auto import saved_family
from nufm_hub.models.common import DetectorConfig, DetectorModel, EventProcessor
from nufm_hub.models.families import get_family
from nufm_hub.tasks import Task
from nufm_hub.transfer import transfer_encoder

from .data import Events
from .recipe import Recipe

Started = tuple[DetectorModel, EventProcessor]


def start(task: Task, recipe: Recipe, events: Events, source: str | None, transfer: bool, replace_targets: bool) -> Started:
    """The model before training, and its processor.

    Args:
        task: what is to be learnt.
        recipe: its family and preset count where there is no source, `model` always.
        events: of the training; what is not taken from the source is fitted on them.
        source: id or folder of the checkpoint to start from.
        transfer: only its encoder, for the detector of the events.
        replace_targets: fit the scales of vertex and momenta anew: the source may have seen the truth of more events than it is to learn from now.

    Raises:
        ValueError: source, events and recipe do not fit together.
    """
    if source is None:
        if transfer:
            raise ValueError("transfer=True needs a source to take the encoder from")
        return _new(task, recipe, events)
    family = saved_family(source, {})
    family.config.check_fields(recipe.model)
    model_class = task.model_class(family.config)
    if transfer:
        return _transferred(model_class, task, recipe, events, source)
    return _continued(model_class, task, recipe, events, source, replace_targets)


def _new(task: Task, recipe: Recipe, events: Events) -> Started:
    family = get_family(recipe.family)
    processor = family.get("Processor").fit(_singles(events), events.spec)
    config = family.config.preset(recipe.preset, detector=events.spec, **_model_options(task, recipe, processor))
    return task.model_class(family.config)(config), _with_summary(processor, config, events)


def _transferred(model_class: type[DetectorModel], task: Task, recipe: Recipe, events: Events, source: str) -> Started:
    if model_class.config_class.from_pretrained(source).spec.hash == events.spec.hash:
        raise ValueError(f"{source} reads {events.spec.name!r} already: fine-tune it as it is, without transfer")
    processor = get_family(model_class.config_class.model_type).get("Processor").fit(_singles(events), events.spec)
    model, _ = transfer_encoder(source, model_class, events.spec, **_model_options(task, recipe, processor))
    return model, _with_summary(processor, model.config, events)


def _continued(
    model_class: type[DetectorModel], task: Task, recipe: Recipe, events: Events, source: str, replace_targets: bool
) -> Started:
    processor = AutoProcessor.from_pretrained(source)
    if processor.spec.hash != events.spec.hash:
        raise ValueError(
            f"{source} reads detector {processor.spec.name!r} (hash {processor.spec.hash}), the events are of {events.spec.name!r} "
            f"(hash {events.spec.hash}): transfer the encoder to the new detector (transfer=True, --transfer)"
        )
    if replace_targets or None in task.scales_of(processor).values():
        processor = processor.with_targets(_singles(events), replace=replace_targets)
    options = _model_options(task, recipe, processor)
    model, info = model_class.from_pretrained(source, ignore_mismatched_sizes=True, output_loading_info=True, **options)
    # A new head or decoder is as it should be; another shape, or a layer of the encoder that the source lacks, comes of sizes in the recipe.
    if unfit := sorted({name for name, *_ in info["mismatched_keys"]} | {name for name in info["missing_keys"] if name.startswith("encoder.")}):
        raise ValueError(
            f"{source} has no weights that fit {unfit[:3]} ...: its sizes cannot be changed by the recipe, which has model={recipe.model}"
        )
    return model, _with_summary(processor, model.config, events)


def _with_summary(processor: EventProcessor, config: DetectorConfig, events: Events) -> EventProcessor:
    """The processor, fitted for the summary numbers where models of this configuration read them."""
    if not config.needs_summary or "summary" in processor.statistics:
        return processor
    return processor.with_summary(_singles(events))


def _model_options(task: Task, recipe: Recipe, processor: EventProcessor) -> dict[str, Any]:
    return recipe.model | task.scales_of(processor)


def _singles(events: Events) -> Iterator[Event]:
    """One by one, also the particles of an event."""
    for i in range(len(events)):
        event = events[i]
        yield from event if isinstance(event, list) else [event]
