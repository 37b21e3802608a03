"""What a checkpoint says about itself, and what is taken of one that was saved for another task."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

_FROM_HUB = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")


def hub_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those options of `from_pretrained` that say where the files are."""
    return {name: options[name] for name in _FROM_HUB if name in options}


def saved_config(folder: str | os.PathLike[str], options: Mapping[str, Any]) -> dict[str, Any]:
    """What `config.json` holds; `options` are those of `from_pretrained`."""
    return PreTrainedConfig.get_config_dict(folder, **hub_options(options))[0]


def with_own_classes(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of `from_pretrained` under which a model names its classes anew, not as another task's checkpoint does; given ones are kept."""
    if {"config", "id2label"} & options.keys():
        return dict(options)
    names = {i: f"LABEL_{i}" for i in range(options.get("num_labels", 2))}  # what the library has where nothing is said
    return {"id2label": names, "label2id": {name: i for i, name in names.items()}, "problem_type": None, **options}


def check_finite(weights: Mapping[str, Tensor], where: str) -> None:
    """Raises ValueError that names the first tensor with NaN or infinity."""
    bad = [n for n, tensor in weights.items() if tensor.is_floating_point() and not tensor.is_meta and not torch.isfinite(tensor).all()]
    if bad:
        raise ValueError(f"{where}: {len(bad)} tensors hold NaN or infinity, the first is {bad[0]!r}; take another checkpoint")
