"""`compute_metrics` functions for `transformers.Trainer`: plain numbers, without intervals, after every evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np

from .classification import BalancedAccuracy, MacroAUROC
from .confidence import ExpectedCalibrationError
from .regression import RelativeResidual, VertexError
from .voxels import VoxelClassification

if TYPE_CHECKING:
    from transformers import EvalPrediction

    from nufm_hub.models.common import EventProcessor

_MOMENTA = ("visible_momentum", "jet_momentum", "lepton_momentum", "missing_pt")
LEAST_MISSING_PT = 1.0  # GeV; a relative error of next to nothing says nothing


def flavour_metrics(eval_prediction: EvalPrediction) -> dict[str, float]:
    """Macro-AUROC, (balanced) accuracy and calibration error from logits (B, K) and class indices (B,), of flavour or any other classes."""
    return _class_metrics(_first(eval_prediction.predictions), _first(eval_prediction.label_ids))


def _class_metrics(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    inputs = {
        "predictions": exponentials / exponentials.sum(axis=1, keepdims=True),
        "references": labels,
        "num_resamples": 0,
    }
    results = {**MacroAUROC().compute(**inputs), **BalancedAccuracy().compute(**inputs), **ExpectedCalibrationError().compute(**inputs)}
    kept = ("macro_auroc", "accuracy", "balanced_accuracy", "expected_calibration_error")
    return {key: results[key] for key in kept if results[key] is not None}


def vertex_metrics(processor: EventProcessor) -> Callable[[EvalPrediction], dict[str, float]]:
    """A `compute_metrics` function: vertex errors in mm from standardised vertices (B, 3), with the scale of `processor`."""
    if "vertex" not in processor.statistics:
        raise ValueError("the processor has no vertex statistics: the events it was fitted on carried no vertex")
    mean, std = (np.asarray(processor.statistics["vertex"][key]) for key in ("mean", "std"))

    def compute_metrics(eval_prediction: EvalPrediction) -> dict[str, float]:
        in_mm = {
            "predictions": _first(eval_prediction.predictions) * std + mean,
            "references": _first(eval_prediction.label_ids) * std + mean,
        }
        result = VertexError().compute(**in_mm, num_resamples=0)
        return {key: value for key, value in result.items() if value is not None and key != "num_events"}

    return compute_metrics


def momentum_metrics(processor: EventProcessor) -> Callable[[EvalPrediction], dict[str, float]]:
    """A `compute_metrics` function of momentum regression: see `reconstruction_metrics`."""
    return lambda eval_prediction: _momentum_metrics(dict(zip(_MOMENTA, eval_prediction.predictions, strict=True)), eval_prediction.label_ids)


def reconstruction_metrics(processor: EventProcessor) -> Callable[[EvalPrediction], dict[str, float]]:
    """A `compute_metrics` function of event reconstruction.

    Returns:
        what `flavour_metrics` gives, with `flavour_` and `charm_` in front; vertex errors in mm; and `_bias` and `_sigma68` of the relative
        residual of `visible_energy`, `jet_energy`, `lepton_energy` (sizes of the momenta; the lepton's in charged-current events) and
        `missing_pt` (where the true one exceeds 1 GeV). Quantities without truth are left out.
    """
    classified = [name for name in ("flavour", "charm") if name in processor.spec.event_labels]
    vertex = vertex_metrics(processor) if "vertex" in processor.statistics else None

    def compute_metrics(eval_prediction: EvalPrediction) -> dict[str, float]:
        names = [*(f"{name}_logits" for name in classified), *_MOMENTA, "vertex"]
        predictions, labels = dict(zip(names, eval_prediction.predictions, strict=True)), eval_prediction.label_ids
        metrics = {}
        for name in classified:
            if (known := labels[name] >= 0).any():
                found = _class_metrics(predictions[f"{name}_logits"][known].astype(np.float64), labels[name][known])
                metrics |= {f"{name}_{key}": value for key, value in found.items()}
        metrics |= _momentum_metrics(predictions, labels)
        if vertex is not None and (known := ~np.isnan(labels["vertex"]).any(axis=1)).any():
            metrics |= vertex(SimpleNamespace(predictions=predictions["vertex"][known], label_ids=labels["vertex"][known]))
        return metrics

    return compute_metrics


def kinematic_sizes(predictions: Mapping[str, np.ndarray], labels: Mapping[str, np.ndarray]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Predicted and true sizes of momenta, GeV, of the events that have a relative residual.

    Args:
        predictions: `visible_momentum`, `jet_momentum`, `lepton_momentum` (B, 3), `missing_pt` (B,).
        labels: `visible_momentum`, `jet_momentum` (B, 3), NaN where unknown; `is_cc` bool (B,).

    Returns:
        quantity -> two arrays. The lepton's momentum counts in charged-current events, `missing_pt` where the true one exceeds 1 GeV.
        Quantities without such an event are left out.
    """
    true = {name: labels[f"{name}_momentum"].astype(np.float64) for name in ("visible", "jet")}
    true["lepton"] = np.where(labels["is_cc"][:, None], true["visible"] - true["jet"], np.nan)
    sizes = {f"{name}_momentum": np.linalg.norm(p, axis=1) for name, p in true.items()}
    sizes["missing_pt"] = np.linalg.norm(true["visible"][:, :2], axis=1)
    found = {}
    for name, truth in sizes.items():
        with np.errstate(invalid="ignore"):
            known = truth > (LEAST_MISSING_PT if name == "missing_pt" else 0)
        if known.any():
            predicted = predictions[name]
            found[name] = (predicted if predicted.ndim == 1 else np.linalg.norm(predicted, axis=1))[known], truth[known]
    return found


def _momentum_metrics(predictions: Mapping[str, np.ndarray], labels: Mapping[str, np.ndarray]) -> dict[str, float]:
    metrics = {}
    for name, (predicted, truth) in kinematic_sizes(predictions, labels).items():
        result = RelativeResidual().compute(predictions=predicted, references=truth, num_resamples=0)
        metrics |= {f"{name.replace('momentum', 'energy')}_{key}": result[key] for key in ("bias", "sigma68")}
    return metrics


def voxel_metrics(processor: EventProcessor) -> Callable[[EvalPrediction], dict[str, float]]:
    """A `compute_metrics` function of voxel classification: for each voxel label, with its name in front, `macro_auroc`, `accuracy`,
    `balanced_accuracy` over the voxels that carry it. Labels that no voxel carries are left out.
    """
    labels = processor.spec.voxel_branches[0].labels

    def compute_metrics(eval_prediction: EvalPrediction) -> dict[str, float]:
        metrics, column = {}, 0
        logits, shares = _raw(eval_prediction.predictions), _raw(eval_prediction.label_ids)
        for label in labels:
            counted, columns = VoxelClassification(label), slice(column, column := column + len(label.classes))
            for row, truth in zip(logits, shares, strict=True):
                counted.add(row[:, columns], truth[:, columns])
            result = counted.compute(num_resamples=0) or {}
            kept = ("macro_auroc", "accuracy", "balanced_accuracy")
            metrics |= {f"{label.name}_{key}": result[key] for key in kept if result.get(key) is not None}
        return metrics

    return compute_metrics


def _first(arrays: np.ndarray | tuple[np.ndarray, ...]) -> np.ndarray:
    return np.asarray(_raw(arrays), dtype=np.float64)


def _raw(arrays: np.ndarray | tuple[np.ndarray, ...]) -> np.ndarray:
    """Models that also return hidden states make the Trainer pass a tuple with the logits first."""
    return arrays[0] if isinstance(arrays, tuple) else arrays
