"""Predictions and truth of many batches to metrics by quantity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from nufm_hub.detectors import DetectorSpec
from nufm_hub.events import Event
from nufm_hub.events.splits import group_key
from nufm_hub.files import new_file
from nufm_hub.metrics import (
    LEAST_MISSING_PT,
    BalancedAccuracy,
    ErrorDetectionAUROC,
    ExpectedCalibrationError,
    MacroAUROC,
    PurityEfficiency,
    RelativeResidual,
    ThresholdAUROC,
    VertexError,
    VoxelClassification,
    kinematic_sizes,
)
from nufm_hub.models.common import EventProcessor
from nufm_hub.tasks import Task

_MOMENTA = ("visible_momentum", "jet_momentum", "lepton_momentum", "missing_pt")


def class_scores(
    probabilities: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    num_resamples: int = 1000,
    seed: int = 0,
    groups: Sequence[int] | np.ndarray | None = None,
) -> dict[str, Any]:
    """All metrics of a classification: probabilities (B, K), class indices (B,), and what is resampled as one, (B,)."""
    options = {"predictions": probabilities, "references": labels, "num_resamples": num_resamples, "seed": seed, "groups": groups}
    merged = MacroAUROC().compute(**options, class_names=classes)
    left_out = merged.pop("classes_left_out")  # also a result of the balanced accuracy, of fewer classes
    for metric in (BalancedAccuracy, ErrorDetectionAUROC, ExpectedCalibrationError):
        merged |= metric().compute(**options)
    return merged | PurityEfficiency().compute(**options, class_names=classes) | {"classes_left_out": left_out}


def vertex_scores(
    predicted: np.ndarray, true: np.ndarray, training_mean: np.ndarray, num_resamples: int = 1000, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """`vertex` and `vertex_baseline`, the errors of always predicting the mean vertex of the training events; all in mm, (B, 3) and (3,)."""
    options = {"references": true, "num_resamples": num_resamples, "seed": seed}
    return {
        "vertex": VertexError().compute(predictions=predicted, **options),
        "vertex_baseline": VertexError().compute(predictions=np.broadcast_to(training_mean, true.shape), **options),
    }


def event_scores(
    predictions: Mapping[str, np.ndarray],
    truth: Mapping[str, np.ndarray],
    spec: DetectorSpec,
    training_mean: Sequence[float] | None,
    groups: np.ndarray | None = None,
    num_resamples: int = 1000,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Metrics of what is predicted of events, by quantity, over the events whose truth is known.

    Args:
        predictions: probabilities (B, K) of event labels; `vertex` (B, 3), mm; `visible_momentum`, `jet_momentum`, `lepton_momentum`, (B, 3) or
            sizes (B,), and `missing_pt` (B,), GeV. What is not predicted is left out.
        truth: as of `truth_of`.
        spec: the detector.
        training_mean: mean vertex of the training events, mm (3,); needed where the vertex is predicted.
        groups: (B,), what is resampled as one; None: events.
        num_resamples, seed: of the bootstrap.
    """
    options = {"num_resamples": num_resamples, "seed": seed}
    metrics: dict[str, Any] = {}
    for name in spec.event_labels:
        if name in predictions and (known := truth[name] >= 0).any():
            of_known = None if groups is None else groups[known]
            metrics[name] = class_scores(predictions[name][known], truth[name][known], spec.classes(name), **options, groups=of_known)
    if "vertex" in predictions and (known := np.isfinite(truth["vertex"]).all(axis=1)).any():
        metrics |= vertex_scores(predictions["vertex"][known], truth["vertex"][known], np.asarray(training_mean), **options)
    if "visible_momentum" in predictions:
        for name, (predicted, true) in kinematic_sizes(predictions, truth).items():
            metrics[name] = RelativeResidual().compute(predictions=predicted, references=true, **options)
    if "missing_pt" in predictions and (known := np.isfinite(size := np.linalg.norm(truth["visible_momentum"][:, :2], axis=1))).any():
        given = {"predictions": predictions["missing_pt"][known], "references": size[known], "threshold": LEAST_MISSING_PT}
        metrics["missing_pt_above_1gev"] = ThresholdAUROC().compute(**given, **options)
    return metrics


def event_differences(
    predictions: Mapping[str, np.ndarray],
    baseline: Mapping[str, np.ndarray],
    truth: Mapping[str, np.ndarray],
    spec: DetectorSpec,
    groups: np.ndarray | None = None,
    num_resamples: int = 1000,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Metrics of predictions minus those of others of the same events, with paired intervals, by quantity that both predict.

    Arguments as of `event_scores`; see `EventMetric.difference`.
    """
    options = {"num_resamples": num_resamples, "seed": seed}
    both = [name for name in predictions if name in baseline]
    found: dict[str, dict[str, Any]] = {}

    def given(name: str, known: np.ndarray) -> dict[str, Any]:
        return {"predictions": predictions[name][known], "baseline": baseline[name][known], **options}

    for name in spec.event_labels:
        if name in both and (known := truth[name] >= 0).any():
            asked = {**given(name, known), "references": truth[name][known], "groups": None if groups is None else groups[known]}
            found[name] = {}
            for metric in (MacroAUROC, BalancedAccuracy, PurityEfficiency):
                found[name] |= metric().difference(**asked, class_names=spec.classes(name))
    if "vertex" in both and (known := np.isfinite(truth["vertex"]).all(axis=1)).any():
        found["vertex"] = VertexError().difference(**given("vertex", known), references=truth["vertex"][known])
    if "visible_momentum" in both:
        sizes, before = kinematic_sizes(predictions, truth), kinematic_sizes(baseline, truth)
        for name, (predicted, true) in sizes.items():
            found[name] = RelativeResidual().difference(predictions=predicted, baseline=before[name][0], references=true, **options)
    if "missing_pt" in both and (known := np.isfinite(size := np.linalg.norm(truth["visible_momentum"][:, :2], axis=1))).any():
        above = (size[known] > LEAST_MISSING_PT).astype(np.float64)
        found["missing_pt_above_1gev"] = ThresholdAUROC().difference(**given("missing_pt", known), references=above)
    return found


def save_predictions(path: str | Path, predictions: Mapping[str, np.ndarray]) -> None:
    """Write predictions, as `event_scores` takes them, to an npz file, a name a quantity; what was there is replaced."""
    with new_file(path, overwrite=True) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **predictions)


def load_predictions(path: str | Path) -> dict[str, np.ndarray]:
    """What `save_predictions` wrote."""
    with np.load(path, allow_pickle=False) as held:
        return dict(held)


def origin(event: Event, number: int) -> str:
    """The event that a crop is from; `number` stands for one that does not say so."""
    return group_key(event, "event") if "index" in event.provenance else f"unknown {number}"


def groups_of(origins: Sequence[str]) -> np.ndarray | None:
    """Number of the event that each crop is from, (B,); None where every one is from another event."""
    numbers = np.unique(origins, return_inverse=True)[1]
    return None if len(set(numbers.tolist())) == len(numbers) else numbers


class Scores:
    """What is kept of every batch: predictions and truth of events in physical units, counts of voxels, sums of losses."""

    def __init__(self, task: Task, processor: EventProcessor) -> None:
        self.task, self.processor, self.spec = task, processor, processor.spec
        self.predictions: dict[str, list[np.ndarray]] = {}
        self.truth: dict[str, list[np.ndarray]] = {}
        self.voxels = {label.name: VoxelClassification(label) for label in self.spec.voxel_branches[0].labels}
        self.losses: dict[str, list[tuple[float, int]]] = {}
        self._origins: list[str] = []

    def add(self, outputs: Any, events: list[Event], shares: torch.Tensor | None) -> None:
        """Take in a batch: outputs of the task's model for the events, and `voxel_labels`, float (B, N, K), where voxels are judged."""
        if self.task.judged == "losses":
            for name, loss in {"loss": outputs.loss, **outputs.losses}.items():
                self.losses.setdefault(name, []).append((float(loss), len(events)))
        elif self.task.judged == "voxels":
            self._add_voxels(outputs.logits.float().cpu().numpy(), shares.cpu().numpy())
        else:
            for name, values in self._predictions(outputs).items():
                self.predictions.setdefault(name, []).append(values)
            for name, values in truth_of(events, self.spec).items():
                self.truth.setdefault(name, []).append(values)
            self._origins += [origin(event, len(self._origins) + i) for i, event in enumerate(events)]

    def _predictions(self, outputs: Any) -> dict[str, np.ndarray]:
        """Probabilities (B, K), vertices in mm (B, 3), momenta in GeV, by quantity."""
        if (label := self.task.event_label) is not None:
            return {label: _softmax(outputs.logits)}
        if "logits" in outputs:
            return {"vertex": self.processor.post_process_vertex(outputs)}
        found = {name: _softmax(outputs[f"{name}_logits"]) for name in self.spec.event_labels if f"{name}_logits" in outputs}
        found |= {name: outputs[name].double().cpu().numpy() for name in _MOMENTA}
        if "vertex" in outputs:
            found["vertex"] = self.processor.post_process_vertex(SimpleNamespace(logits=outputs.vertex))
        return found

    def _add_voxels(self, logits: np.ndarray, shares: np.ndarray) -> None:
        column = 0
        for label in self.spec.voxel_branches[0].labels:
            columns = slice(column, column := column + len(label.classes))
            for row, truth in zip(logits, shares, strict=True):
                self.voxels[label.name].add(row[:, columns], truth[:, columns])

    def arrays(self) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Predictions and truth of all events so far, as `event_scores` takes them."""
        return tuple({k: np.concatenate(v) for k, v in held.items()} for held in (self.predictions, self.truth))  # type: ignore[return-value]

    def metrics(self, num_resamples: int, seed: int) -> dict[str, Any]:
        """All that can be said, by quantity."""
        predictions, truth = self.arrays()
        options = {"num_resamples": num_resamples, "seed": seed}
        mean = self.processor.statistics.get("vertex", {}).get("mean")
        metrics = event_scores(predictions, truth, self.spec, mean, groups_of(self._origins), **options)
        metrics |= {name: result for name, counted in self.voxels.items() if (result := counted.compute(**options))}
        if self.losses:
            events = sum(n for _, n in self.losses["loss"])
            means = {name: sum(v * n for v, n in values) / sum(n for _, n in values) for name, values in self.losses.items()}
            metrics["pretraining"] = {**means, "num_events": events}
        return metrics


def truth_of(events: Sequence[Event], spec: DetectorSpec) -> dict[str, np.ndarray]:
    """Class indices (B,), -1 where unknown; `vertex`, `visible_momentum`, `jet_momentum` (B, 3), NaN where unknown; `is_cc` bool (B,)."""
    truth = {name: np.array([int(e.truth.get(name, -1)) for e in events]) for name in spec.event_labels}
    for name in ("vertex", "visible_momentum", "jet_momentum"):
        truth[name] = np.stack([np.asarray(e.truth.get(name, np.full(3, np.nan)), dtype=np.float64) for e in events])
    truth["is_cc"] = np.array([bool(e.truth.get("is_cc", False)) for e in events])
    return truth


def _softmax(logits: torch.Tensor) -> np.ndarray:
    return logits.double().softmax(-1).cpu().numpy()
