"""Exponential moving average of the weights: what is evaluated and saved, while training goes on with the weights themselves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import TrainerCallback

from nufm_hub.files import new_file

# A checkpoint's model.safetensors holds the average, as it is what one wants to load; this file, the weights that training goes on with.
TRAINING_WEIGHTS = "training_weights.safetensors"


class ExponentialMovingAverage(TrainerCallback):
    """Averages the weights after every optimiser step t with the decay `min(decay, (1 + t) / (10 + t))`, so that the start is soon forgotten.

    `EventTrainer` evaluates and saves inside `averaged`; with any other trainer, the average is in the model once training has ended.
    Every process keeps its own average; the weights are equal on all of them, and so are the averages.

    Args:
        decay: share of the average that a step keeps, in (0, 1).
        resume: checkpoint folder that training is taken up from: the model holds its average by then.
    """

    def __init__(self, decay: float, resume: str | Path | None = None) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"the decay of a moving average must lie between 0 and 1, got {decay}")
        self.decay, self.resume = decay, resume
        self.average: dict[str, Tensor] = {}

    @torch.no_grad()
    def on_train_begin(self, args: Any, state: Any, control: Any, model: nn.Module, **kwargs: Any) -> None:
        self.average = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        if self.resume is not None:
            weights = load_file(Path(self.resume) / TRAINING_WEIGHTS)
            for name, parameter in model.named_parameters():
                parameter.copy_(weights[name])

    @torch.no_grad()
    def on_step_end(self, args: Any, state: Any, control: Any, model: nn.Module, **kwargs: Any) -> None:
        step = state.global_step
        kept = min(self.decay, (1 + step) / (10 + step))
        parameters = dict(model.named_parameters())
        torch._foreach_lerp_(list(self.average.values()), [parameters[name] for name in self.average], 1 - kept)

    def on_train_end(self, args: Any, state: Any, control: Any, model: nn.Module, **kwargs: Any) -> None:
        if not (args.load_best_model_at_end and state.best_model_checkpoint):  # else the average of the best step has just been loaded
            self._exchange(model)
        self.average = {}

    @contextmanager
    def averaged(self, model: nn.Module) -> Iterator[None]:
        """The average is in the model inside, its own weights are back after; before and after training, nothing changes."""
        self._exchange(model)
        try:
            yield
        finally:
            self._exchange(model)

    def save_weights(self, model: nn.Module, folder: str | Path) -> None:
        """Keep the model's own weights for a later `resume`; to be called outside `averaged`."""
        with new_file(Path(folder) / TRAINING_WEIGHTS, overwrite=True) as temporary:
            save_file({name: parameter.detach().contiguous() for name, parameter in model.named_parameters()}, temporary)

    @torch.no_grad()
    def _exchange(self, model: nn.Module) -> None:
        for name, parameter in model.named_parameters():
            if name in self.average:
                own = parameter.detach().clone()
                parameter.copy_(self.average[name])
                self.average[name].copy_(own)
