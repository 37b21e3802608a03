"""Whether a model knows when it is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .auroc import multiplicities, resampled_auroc
from .base import ClassificationMetric
from .bootstrap import Statistic, bootstrap, report


class ErrorDetectionAUROC(ClassificationMetric):
    """Area under the ROC curve of minus the entropy of the prediction, for telling right from wrong predictions (arXiv:2302.03787).

    It is not a class AUROC: 0.5 means that confidence says nothing about being right. None when all predictions are right, or all wrong.
    Result: `error_detection_auroc` with `_low` and `_high` (95 %), `num_right`, `num_wrong`, `num_events`.
    """

    citation_text = "arXiv:2302.03787"

    def _compute(
        self, predictions: Any, references: Any, num_resamples: int = 1000, seed: int = 0, groups: Sequence[Any] | None = None
    ) -> dict[str, Any]:
        p, labels = self._checked(predictions, references)
        right = p.argmax(1) == labels
        estimates = bootstrap(self._statistic(p, labels), len(p), num_resamples, seed, groups)
        return {**report(estimates, len(p)), "num_right": int(right.sum()), "num_wrong": int((~right).sum())}

    def _statistic(self, p: np.ndarray, labels: np.ndarray) -> Statistic:
        # p log p tends to 0 with p; log(1) stands in where p is 0.
        curve = resampled_auroc((p * np.log(np.where(p > 0, p, 1))).sum(1), p.argmax(1) == labels)
        return lambda indices: {"error_detection_auroc": curve(multiplicities(indices, len(p)))}


class ExpectedCalibrationError(ClassificationMetric):
    """Mean distance of confidence (largest probability) and accuracy over equal-width bins of confidence, weighted by events.

    Naeini et al., AAAI 2015; Guo et al., arXiv:1706.04599. A finite sample and its resamples scatter away from zero, so the value is biased
    upwards for few events, and the interval more so. Result: `expected_calibration_error` with `_low` and `_high` (95 %), `num_bins`,
    `num_events`.
    """

    citation_text = "arXiv:1706.04599"

    def _compute(
        self, predictions: Any, references: Any, num_bins: int = 15, num_resamples: int = 1000, seed: int = 0, groups: Sequence[Any] | None = None
    ) -> dict[str, Any]:
        p, labels = self._checked(predictions, references)
        if num_bins < 1:
            raise ValueError(f"{self.name}: num_bins={num_bins} must be at least 1")
        return {**report(bootstrap(self._statistic(p, labels, num_bins), len(p), num_resamples, seed, groups), len(p)), "num_bins": num_bins}

    def _statistic(self, p: np.ndarray, labels: np.ndarray, num_bins: int = 15) -> Statistic:
        confidence = p.max(1)
        excess = (p.argmax(1) == labels) - confidence
        # Bins hold their high edge, so that a confidence of 1 falls into the last one.
        bins = np.clip(np.ceil(confidence * num_bins).astype(np.int64) - 1, 0, num_bins - 1)

        def statistic(indices: np.ndarray) -> dict[str, np.ndarray]:
            rows = len(indices)
            cell = bins[indices] + num_bins * np.arange(rows)[:, None]
            sums = np.bincount(cell.ravel(), weights=excess[indices].ravel(), minlength=rows * num_bins)
            return {"expected_calibration_error": np.abs(sums.reshape(rows, num_bins)).sum(1) / indices.shape[1]}

        return statistic
