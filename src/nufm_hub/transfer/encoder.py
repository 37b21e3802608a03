"""Take a pretrained encoder to another detector.

What a weight is for can be read off its name: `encoder.*` moves, `embeddings.*` belongs to one detector, `head.*` to a task, `decoder.*` to
pre-training (see `nufm_hub.models.common.modeling`).
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nufm_hub.detectors import DetectorSpec, VoxelBranch, load_detector
from nufm_hub.models.auto import AutoTaskModel, saved_family
from nufm_hub.models.common import DetectorConfig, DetectorModel
from nufm_hub.models.common.loading import check_finite
from nufm_hub.models.common.modeling import saved_class

from .report import TransferReport, TransferRow

_NEW = {
    "embeddings": "belongs to the detector",
    "head": "belongs to the task",
    "decoder": "belongs to pre-training",
}


def transfer_encoder(
    source: str | os.PathLike[str] | DetectorModel,
    head_class: type[DetectorModel] | type[AutoTaskModel],
    detector: str | Path | Mapping[str, Any] | DetectorSpec,
    min_loaded: float = 0.5,
    **config_overrides: Any,
) -> tuple[DetectorModel, TransferReport]:
    """A model for a detector with the encoder of another one.

    Carried where role, shape and meaning match: the encoder, of layers of single voxel branches those of the first. Everything else starts anew,
    whatever its shape: embeddings and positions, further voxel branches (another sub-detector is another thing), heads, decoder. Sizes are
    the source's unless overridden. Of a deeper source the first layers are carried, since each builds on the ones before it; of a deeper
    target the layers beyond the source's start anew.

    Args:
        source: id of a bundled checkpoint or on the Hub, folder, or a model in memory (which is left as it is).
        head_class: what to make: an Auto class, such as `AutoModelForParticleID`, or a model class of the source's family.
        detector: packaged name, path of a JSON file, dictionary or spec of the new detector.
        min_loaded: smallest acceptable share of the parameters of the new encoder that are carried.
        config_overrides: fields of the family's configuration, or `num_labels`, `id2label`, `label2id`.

    Returns:
        The model in evaluation mode, float32, on the CPU; and the report, which is also its `transfer_report` and is saved with it.

    Raises:
        ValueError: no encoder in the source, or one of another family than `head_class`; values that are not finite, an unknown detector or
            override, sizes that do not fit together, another number of classes than the detector names, or a share below `min_loaded` (the
            message holds the table).
    """
    if not (isinstance(head_class, type) and issubclass(head_class, (DetectorModel, AutoTaskModel))):
        raise ValueError(f"head_class={head_class!r} is no class of models, such as nufm_hub.AutoModelForParticleID")
    if not 0 <= min_loaded <= 1:
        raise ValueError(f"min_loaded={min_loaded} must be a share in [0, 1]")
    spec = load_detector(detector)
    name, source_config, weights = _read_source(source)
    if Path(name).is_dir() or Path(name).is_absolute():
        name = Path(name).name  # reports get published; folders of a machine do not belong there
    if issubclass(head_class, AutoTaskModel):
        head_class = head_class.model_class(type(source_config))
    if not isinstance(source_config, head_class.config_class):
        raise ValueError(f"{name} is of the family {source_config.model_type!r}: its encoder does not fit into a {head_class.__name__}")
    config = _target_config(source_config, head_class, spec, config_overrides)
    with torch.device("meta"):
        target = head_class(config).state_dict()
    rows = _plan(weights, target, source_config, config)
    report = TransferReport(name, source_config.spec.name, spec.name, head_class.__name__, rows)
    if report.fraction < min_loaded:
        raise ValueError(f"only {report.fraction:.1%} of the encoder can be carried over, less than min_loaded={min_loaded:.0%}\n{report}")
    carried = {n: weights[n].detach().to(device="cpu", dtype=torch.float32, copy=True) for n in report.names("loaded")}
    with _quiet_loading():
        model, info = head_class.from_pretrained(None, config=config, state_dict=carried, dtype=torch.float32, output_loading_info=True)
    new = set(target) - set(carried)
    if set(info["missing_keys"]) != new or info["unexpected_keys"] or info["mismatched_keys"]:
        raise RuntimeError(f"transformers did not load what was planned for {head_class.__name__}: {info}")
    check_finite(model.state_dict(), f"the new {head_class.__name__}")
    model.transfer_report = report
    return model, report


def _read_source(source: str | os.PathLike[str] | DetectorModel) -> tuple[str, DetectorConfig, dict[str, Tensor]]:
    """What to call the source, its configuration and its weights."""
    if isinstance(source, torch.nn.Module):
        name = getattr(source, "name_or_path", "") or type(source).__name__
        config = getattr(source, "config", None)
        model, absent = source, []
    else:
        name = os.fspath(source)
        config = saved_family(name, {}).config.from_pretrained(name)
        # the class it was saved with knows all its tensors
        reader = saved_class(type(config), (config.architectures or [""])[0])
        with _quiet_loading():
            model, info = reader.from_pretrained(name, dtype=torch.float32, output_loading_info=True)
        absent = sorted(info["missing_keys"])
    weights = {k: v for k, v in model.state_dict().items() if k not in absent}
    if not isinstance(config, DetectorConfig) or not any(k.startswith("encoder.") for k in weights):
        raise ValueError(f"{name} has no encoder: it holds no weights named encoder.*")
    if lost := [k for k in absent if k.startswith("encoder.")]:
        raise ValueError(f"{name} is incomplete: {len(lost)} tensors of its encoder are not in the file, the first is {lost[0]!r}")
    check_finite(weights, name)
    return name, config, weights


def _target_config(
    source: DetectorConfig, head_class: type[DetectorModel], spec: DetectorSpec, overrides: dict[str, Any]
) -> DetectorConfig:
    label, number = getattr(head_class, "event_label", None), overrides.get("num_labels")
    if label in spec.event_labels and "id2label" not in overrides and number not in (None, count := len(spec.event_labels[label])):
        raise ValueError(f"num_labels={number}, but detector {spec.name!r} names {count} classes for {label!r}: leave it out, or give id2label too")
    if label and label not in spec.event_labels and not {"num_labels", "id2label"} & set(overrides):
        raise ValueError(f"detector {spec.name!r} names no classes for {label!r}, by which processor and metrics go: add event_labels to its JSON")
    return source.for_detector(spec, **overrides)


def _plan(
    source: Mapping[str, Tensor], target: Mapping[str, Tensor], source_config: DetectorConfig, config: DetectorConfig
) -> tuple[TransferRow, ...]:
    """What to do with every tensor: a rule of names and shapes."""
    branches, source_branches = config.spec.voxel_branches, source_config.spec.voxel_branches
    rows = []
    for name, tensor in target.items():
        status = "re-initialised"
        if reason := _new_by_role(name, branches):
            pass
        elif name not in source:
            status, reason = "missing", "the source has fewer layers"
        elif source[name].shape != tensor.shape:
            reason = "shape differs"
        elif changed := _changed_meaning(name, source_config, config):
            reason = f"{changed} differs"  # the same matrix would mean another thing
        else:
            status = "loaded"
        rows.append(TransferRow(name, status, reason, tuple(tensor.shape), tensor.numel()))
    new = {r.name: r.reason for r in rows if r.status != "loaded"}
    loaded = {r.name for r in rows} - set(new)
    for name, tensor in source.items():
        if name not in loaded:
            reason = _new_by_role(name, source_branches) or new.get(name, "the target has fewer layers")
            rows.append(TransferRow(name, "skipped", reason, tuple(tensor.shape), tensor.numel()))
    return tuple(rows)


def _changed_meaning(name: str, source: DetectorConfig, target: DetectorConfig) -> str:
    """What makes a weight of the same shape another thing; empty when nothing does."""
    fields = ((words, field) for field, (weights, words) in target.meanings.items() if re.match(weights, name))
    return next((words for words, field in fields if getattr(source, field) != getattr(target, field)), "")


def _new_by_role(name: str, branches: Sequence[VoxelBranch]) -> str:
    """Why a weight never moves, whatever its shape; empty when it does."""
    role, *rest = name.split(".")
    if role != "encoder":
        return _NEW.get(role, "belongs to the task")
    if rest[0] == "branches" and int(rest[1]) > 0:
        return f"branch {branches[int(rest[1])].name!r} has no counterpart"
    return ""


@contextmanager
def _quiet_loading() -> Iterator[None]:
    """Without the library's load report: ours says the same by role."""
    logger = logging.getLogger("transformers.modeling_utils")

    def nothing(record: logging.LogRecord) -> bool:
        return False

    logger.addFilter(nothing)
    try:
        yield
    finally:
        logger.removeFilter(nothing)
