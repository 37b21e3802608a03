"""Parameter groups: which weights decay, and which learn more slowly."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from torch import nn

from nufm_hub.models.common import DetectorModel

_LOSS_WEIGHT = re.compile(r"log_sigma$|\.task_weight\.")


def parameter_groups(
    model: nn.Module, learning_rate: float, weight_decay: float, layer_decay: float = 1.0, carried: Collection[str] = (), carried_rate: float = 1.0
) -> list[dict[str, Any]]:
    """Groups for AdamW.

    Matrices of linear layers decay; norms, biases, tokens and embeddings (one dimension, or named so by the family) do not. Weights of summed losses
    (log-sigmas, task weights) learn with a tenth of the rate (arXiv:2604.07037). With `layer_decay` < 1 the rate falls by this factor
    from each depth of the encoder to the one below: heads and decoder are on top, embeddings at the bottom. Parameters named in `carried`
    learn with `carried_rate` times their rate.

    Returns:
        Groups with `params`, `lr`, `weight_decay` and a readable `name`; empty ones are left out.
    """
    _, own = _detector_model(model)
    depths, vectors = encoder_depths(model), re.compile(own.vectors)
    top = max(depths.values(), default=0) + 1
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decay = 0.0 if parameter.ndim < 2 or vectors.search(name) else weight_decay
        rate = learning_rate * (0.1 if _LOSS_WEIGHT.search(name) else layer_decay ** (top - depths.get(name, top)))
        if name in carried:
            rate *= carried_rate
        group = groups.setdefault((rate, decay), {"params": [], "lr": rate, "weight_decay": decay, "name": f"lr {rate:.3g} decay {decay:g}"})
        group["params"].append(parameter)
    return list(groups.values())


def encoder_depths(model: nn.Module) -> dict[str, int]:
    """Depth of the encoder's parameters by name, from 0, the embeddings, upwards, as the model's family counts; `model` may be wrapped.

    Raises:
        ValueError: there is no model of a family inside.
    """
    prefix, own = _detector_model(model)
    return {prefix + name: depth for name, depth in own.encoder_depths(name for name, _ in own.named_parameters()).items()}


def _detector_model(model: nn.Module) -> tuple[str, DetectorModel]:
    """The model of a family inside, with what precedes the names of its parameters."""
    for name, module in model.named_modules():
        if isinstance(module, DetectorModel):
            return f"{name}." if name else "", module
    raise ValueError(f"{type(model).__name__} holds no model of a family of nufm_hub")
