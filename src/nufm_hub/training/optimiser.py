"""Parameter groups: which weights decay, and which learn more slowly."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from torch import nn

# Learned vectors that happen to be stored as matrices: CLS tokens, window and state embeddings, cosine bases.
_NO_DECAY = re.compile(r"\.(cls_token|window\.weight|state\.weight|basis\.[xyz])$")

_LOSS_WEIGHT = re.compile(r"log_sigma$|\.task_weight\.")


def parameter_groups(
    model: nn.Module, learning_rate: float, weight_decay: float, layer_decay: float = 1.0, carried: Collection[str] = (), carried_rate: float = 1.0
) -> list[dict[str, Any]]:
    """Groups for AdamW.

    Matrices of linear layers decay; norms, biases, tokens and embeddings (one dimension, or named so) do not. Weights of summed losses
    (log-sigmas, task weights) learn with a tenth of the rate (arXiv:2604.07037). With `layer_decay` < 1 the rate falls by this factor
    from each depth of the encoder to the one below: heads and decoder are on top, embeddings at the bottom. Parameters named in `carried`
    learn with `carried_rate` times their rate.

    Returns:
        Groups with `params`, `lr`, `weight_decay` and a readable `name`; empty ones are left out.
    """
    depths = encoder_depths(model)
    top = max(depths.values(), default=0) + 1
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decay = 0.0 if parameter.ndim < 2 or _NO_DECAY.search(name) else weight_decay
        rate = learning_rate * (0.1 if _LOSS_WEIGHT.search(name) else layer_decay ** (top - depths.get(name, top)))
        if name in carried:
            rate *= carried_rate
        group = groups.setdefault((rate, decay), {"params": [], "lr": rate, "weight_decay": decay, "name": f"lr {rate:.3g} decay {decay:g}"})
        group["params"].append(parameter)
    return list(groups.values())


def encoder_depths(model: nn.Module) -> dict[str, int]:
    """Depth of the encoder parameters of a NuFM model by name: 0 embeddings, then window layers, then fusion rounds.

    Branches with fewer window layers than the deepest one end, not start, together with it: all meet in the fusion.
    """
    names = [name for name, _ in model.named_parameters()]
    window = {name: (int(m[1]), int(m[2])) for name in names if (m := re.search(r"encoder\.branches\.(\d+)\.layers\.(\d+)\.", name))}
    layers = {branch: 1 + max(layer for b, layer in window.values() if b == branch) for branch, _ in window.values()}
    deepest = max(layers.values(), default=0)
    depths: dict[str, int] = {}
    for name in names:
        if "embeddings." in name:
            depths[name] = 0
        elif name in window:
            branch, layer = window[name]
            depths[name] = 1 + layer + deepest - layers[branch]
        elif m := re.search(r"encoder\.(?:cross|self)_layers\.(\d+)\.", name):
            depths[name] = 1 + deepest + int(m[1])
        elif "cls_token" in name:
            depths[name] = 1
        elif re.search(r"encoder\..*norm\.", name):
            depths[name] = deepest  # after the last window layer
    return depths
