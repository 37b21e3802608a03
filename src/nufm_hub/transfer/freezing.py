"""Fine-tune a transferred model gently: keep what was carried over still for a while, or for good."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import TrainerCallback

from nufm_hub.training.optimiser import encoder_depths

from .report import TransferReport


def freeze_carried(model: nn.Module, report: TransferReport) -> list[str]:
    """Switch off the gradients of what came from the source; call it before a Trainer is made. Returns the names.

    Raises:
        ValueError: the report belongs to another model.
    """
    carried = _carried(model, report)
    for parameter in carried.values():
        parameter.requires_grad_(False)
    return list(carried)


def unfreeze(model: nn.Module, depth: int = 0) -> list[str]:
    """Switch on the gradients from a depth of the encoder upwards; heads and decoder are on top of all. Returns the names switched on.

    Depth 0 are the embeddings, then come the window layers, then the rounds of fusion (see `nufm_hub.training.optimiser.encoder_depths`).
    A Trainer whose optimiser exists already does not train what is switched on later: make a new Trainer.
    """
    depths = encoder_depths(model)
    chosen = {n: p for n, p in model.named_parameters() if not p.requires_grad and depths.get(n, depth) >= depth}
    for parameter in chosen.values():
        parameter.requires_grad_(True)
    return list(chosen)


class WarmUpNewWeights(TrainerCallback):
    """For a Trainer: only weights that are new learn in the first steps, so that random heads and embeddings do not spoil the carried encoder.

    Drops the gradients of carried weights before the optimiser sees them. So it needs no particular order of set-up, holds in distributed
    training, and a resumed run goes on where it was.

    Args:
        report: of the transfer.
        steps: optimiser steps before everything learns.
    """

    def __init__(self, report: TransferReport, steps: int) -> None:
        if steps < 0:
            raise ValueError(f"steps={steps} must not be negative")
        self.report, self.steps = report, steps

    def on_train_begin(self, args: Any, state: Any, control: Any, model: nn.Module | None = None, **kwargs: Any) -> None:
        self._parameters = list(_carried(model, self.report).values())

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step < self.steps:
            for parameter in self._parameters:
                parameter.grad = None


def _carried(model: nn.Module, report: TransferReport) -> dict[str, nn.Parameter]:
    parameters = dict(getattr(model, "module", model).named_parameters())  # `module`: of a distributed wrapper
    names = report.names("loaded")
    if absent := [name for name in names if name not in parameters]:
        raise ValueError(f"the report belongs to another model: {type(model).__name__} has no {absent[0]!r}")
    return {name: parameters[name] for name in names}
