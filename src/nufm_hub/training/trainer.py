"""The Trainer of all trainings."""

from __future__ import annotations

import time
from contextlib import nullcontext
from typing import Any

import torch
from transformers import Trainer

from .ema import ExponentialMovingAverage
from .optimiser import parameter_groups
from .recipe import Recipe


class EventTrainer(Trainer):
    """`Trainer` with the recipe's parameter groups; evaluates and saves a moving average if there is one; logs the parts of a summed loss.

    Attributes:
        rates: once training has ended, `events_per_second` of all processes together (with evaluations and checkpoints, without what was done
            before an interruption), and `loader_events_per_second`, of the time that was spent waiting for batches: what the loader can do
            by itself, or more than that where worker processes prepare batches during the steps. Where the two are close, the loader limits
            the training. Empty when no step was left to do.
    """

    def __init__(self, *args: Any, recipe: Recipe, ema: ExponentialMovingAverage | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.recipe, self.ema = recipe, ema
        if ema is not None:
            self.add_callback(ema)
        self._parts: dict[str, list[torch.Tensor]] = {}
        self.rates: dict[str, float] = {}
        self._begin: tuple[float, float] | None = None  # seconds, epoch
        self._waited = 0.0

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            r = self.recipe
            report = getattr(self.model, "transfer_report", None)
            carried = set(report.names("loaded")) if report else ()
            groups = parameter_groups(self.model if model is None else model, r.learning_rate, r.weight_decay, r.layer_decay, carried, r.carried_rate)
            self.optimizer = torch.optim.AdamW(groups, lr=r.learning_rate, betas=r.betas)
        return self.optimizer

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        self._begin = self._begin or (started, self.state.epoch or 0.0)
        batches = super().get_batch_samples(*args, **kwargs)
        self._waited += time.perf_counter() - started
        return batches

    def compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **kwargs: Any) -> Any:
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        if model.training:
            for name, value in (outputs.get("losses") or {}).items():
                self._parts.setdefault(name, []).append(value.detach())
        return (loss, outputs) if return_outputs else loss

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        with nullcontext() if self.ema is None else self.ema.averaged(self.model):
            return super().evaluate(*args, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        if self.ema is None:
            return super()._save(output_dir, state_dict)
        with self.ema.averaged(self.model):
            super()._save(output_dir, state_dict)
        if self.args.should_save and self.is_in_train:
            self.ema.save_weights(self.model, output_dir or self.args.output_dir)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs:
            logs |= {f"loss_{name}": round(torch.stack(values).mean().item(), 5) for name, values in sorted(self._parts.items())}
            self._parts.clear()
        if "train_runtime" in logs and self._begin:  # the last row
            seconds, epoch = self._begin
            events = (self.state.epoch - epoch) * len(self.train_dataset)
            of_seconds = {"events_per_second": time.perf_counter() - seconds, "loader_events_per_second": self._waited}
            self.rates = {name: round(events / duration, 2) for name, duration in of_seconds.items()}
            logs |= self.rates
        super().log(logs, *args, **kwargs)
