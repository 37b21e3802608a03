"""Parameter groups: which weights decay, and which learn more slowly."""

from __future__ import annotations

import re
from typing import Any

from torch import nn


def parameter_groups(model: nn.Module, learning_rate: float, weight_decay: float, layer_decay: float = 1.0) -> list[dict[str, Any]]:
    """Groups for AdamW.

    Matrices of linear layers decay; norms, biases, tokens and embeddings (one dimension, or named so) do not. The log-sigmas of
    the loss weights learn with a tenth of the rate (arXiv:2604.07037). With `layer_decay` < 1 the rate falls by this factor
    from each depth of the encoder to the one below: heads and decoder are on top, embeddings at the bottom.

    Returns:
        Groups with `params`, `lr`, `weight_decay` and a readable `name`; empty ones are left out.
    """
    depths = encoder_depths(model)
    top = max(depths.values(), default=0) + 1
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decay = 0.0 if parameter.ndim < 2 or re.search(r"(^|[._])(token|tokens|embedding|embeddings|position)s?(\.weight)?$", name) else weight_decay
        rate = learning_rate * (0.1 if "log_sigma" in name else layer_decay ** (top - depths.get(name, top)))
        group = groups.setdefault((rate, decay), {"params": [], "lr": rate, "weight_decay": decay, "name": f"lr {rate:.3g} decay {decay:g}"})
        group["params"].append(parameter)
    return list(groups.values())


def encoder_depths(model: nn.Module) -> dict[str, int]:
    """Depth of every encoder parameter by name: 0 for embeddings, then the window blocks, then the fusion blocks of this model.

    Parallel branches of different depth end at the same place: the last window block of each is one below the fusion.
    """
    names = [name for name, _ in model.named_parameters()]
    window = [(int(m[1]), int(m[2])) for name in names if (m := re.search(r"encoder\.window_layers\.(\d+)\.(\d+)\.", name))]
    deepest = {branch: max(layer for b, layer in window if b == branch) + 1 for branch, _ in window}
    window_depth = max(deepest.values(), default=0)
    fusion = [int(m[1]) for name in names if (m := re.search(r"encoder\.(?:latent|cross|fusion)_layers\.(\d+)\.", name))]
    depths: dict[str, int] = {}
    for name in names:
        if "embeddings." in name:
            depths[name] = 0
        elif m := re.search(r"encoder\.window_layers\.(\d+)\.(\d+)\.", name):
            depths[name] = 1 + int(m[2]) + window_depth - deepest[int(m[1])]
        elif m := re.search(r"encoder\.(?:latent|cross|fusion)_layers\.(\d+)\.", name):
            depths[name] = 1 + window_depth + int(m[1])
        elif re.search(r"(^|\.)encoder\.", name):
            # Norms between the stages and the CLS tokens: where they first act.
            depths[name] = 1 if "token" in name else window_depth + 1 if fusion else window_depth
    return depths
