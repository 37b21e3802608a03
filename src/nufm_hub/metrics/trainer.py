"""`compute_metrics` functions for `transformers.Trainer`: plain numbers, without intervals, after every evaluation."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from .classification import BalancedAccuracy, MacroAUROC
from .confidence import ExpectedCalibrationError
from .regression import VertexError

if TYPE_CHECKING:
    from transformers import EvalPrediction

    from nufm_hub.models.nufm.processing_nufm import NuFMProcessor


def flavour_metrics(eval_prediction: EvalPrediction) -> dict[str, float]:
    """Macro-AUROC, (balanced) accuracy and calibration error from logits (B, K) and class indices (B,), of flavour or any other classes."""
    logits = _first(eval_prediction.predictions)
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    inputs = {
        "predictions": exponentials / exponentials.sum(axis=1, keepdims=True),
        "references": _first(eval_prediction.label_ids),
        "num_resamples": 0,
    }
    results = {**MacroAUROC().compute(**inputs), **BalancedAccuracy().compute(**inputs), **ExpectedCalibrationError().compute(**inputs)}
    kept = ("macro_auroc", "accuracy", "balanced_accuracy", "expected_calibration_error")
    return {key: results[key] for key in kept if results[key] is not None}


def vertex_metrics(processor: NuFMProcessor) -> Callable[[EvalPrediction], dict[str, float]]:
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


def _first(arrays: np.ndarray | tuple[np.ndarray, ...]) -> np.ndarray:
    """Models that also return hidden states make the Trainer pass a tuple with the logits first."""
    return np.asarray(arrays[0] if isinstance(arrays, tuple) else arrays, dtype=np.float64)
