"""How far predicted vertices and kinematic quantities are from the truth."""

from __future__ import annotations

from typing import Any, ClassVar

import datasets
import numpy as np

from .auroc import multiplicities, resampled_auroc
from .base import RegressionMetric
from .bootstrap import Statistic, bootstrap, report

_FAR = 100.0  # mm


class VertexError(RegressionMetric):
    """Distance in mm of predicted and true vertices, both (B, 3) in mm.

    Result, each with `_low` and `_high` (95 %), in mm: `vertex_error_mean`, `vertex_error_median`, `vertex_error_q68` (68 % of the events are
    closer) of the 3-D distance; `vertex_q68_x`, `_y`, `_z`, the same of the distance along each axis; `vertex_bias_x`, `_y`, `_z` (mean of
    prediction minus truth); and `vertex_beyond_100mm`, the share of events that are further away than 100 mm; `num_events`.
    """

    inputs_text = "Args: predictions, references: vertices (B, 3) in mm."
    features_of: ClassVar = {k: datasets.Sequence(datasets.Value("float64")) for k in ("predictions", "references")}
    shape_text, dimensions = "vertices (events, 3) in mm", 2

    def _checked(self, predictions: Any, references: Any) -> tuple[np.ndarray, np.ndarray]:
        p, r = super()._checked(predictions, references)
        if p.shape[1] != 3 or r.shape[1] != 3:
            raise ValueError(f"{self.name}: predictions {p.shape} and references {r.shape} must be {self.shape_text}")
        return p, r

    def _statistic(self, p: np.ndarray, r: np.ndarray) -> Statistic:
        offset = p - r
        distance = np.linalg.norm(offset, axis=1)

        def statistic(indices: np.ndarray) -> dict[str, np.ndarray]:
            drawn = distance[indices]
            median, q68 = np.quantile(drawn, [0.5, 0.68], axis=1)
            along = {f"vertex_q68_{axis}": np.quantile(np.abs(offset[:, i])[indices], 0.68, axis=1) for i, axis in enumerate("xyz")}
            bias = {f"vertex_bias_{axis}": offset[:, i][indices].mean(1) for i, axis in enumerate("xyz")}
            far = (drawn > _FAR).mean(1)
            return {
                "vertex_error_mean": drawn.mean(1), "vertex_error_median": median, "vertex_error_q68": q68,
                **along, **bias, "vertex_beyond_100mm": far,
            }  # fmt: skip

        return statistic


class RelativeResidual(RegressionMetric):
    """Relative residual (prediction - truth) / truth of a positive quantity, e.g. visible energy or missing transverse momentum.

    Result, each with `_low` and `_high` (95 %): `bias` (median), `sigma68` (half the width of the central 68 %) and `resolution68`, which is
    `sigma68` over 1 + `bias`; `num_events`. Predictions that are all too small by a factor have a `sigma68` too small by that factor, and a
    constant zero has the smallest of all; `resolution68` does not change when all predictions are scaled, so compare models by it. None where
    the median prediction is not positive.
    """

    def _checked(self, predictions: Any, references: Any) -> tuple[np.ndarray, np.ndarray]:
        p, r = super()._checked(predictions, references)
        if (r <= 0).any():
            row = int((r <= 0).argmax())
            raise ValueError(
                f"{self.name}: reference {r[row]:g} of event {row} ({int((r <= 0).sum())} such events) has no relative residual: "
                "leave out events with a true value of zero"
            )
        return p, r

    def _statistic(self, p: np.ndarray, r: np.ndarray) -> Statistic:
        residual = p / r - 1

        def statistic(indices: np.ndarray) -> dict[str, np.ndarray]:
            low, median, high = np.quantile(residual[indices], [0.16, 0.5, 0.84], axis=1)
            sigma68 = (high - low) / 2
            resolution68 = np.divide(sigma68, 1 + median, out=np.full_like(median, np.nan), where=1 + median > 0)
            return {"bias": median, "sigma68": sigma68, "resolution68": resolution68}

        return statistic


class ThresholdAUROC(RegressionMetric):
    """How well a predicted quantity tells true values above a threshold from the others: area under the ROC curve of the prediction.

    It does not change when predictions are scaled, and a constant prediction has 0.5. Result: `detection_auroc` with `_low` and `_high` (95 %;
    None when no true value is above, or all are), `num_above`, `num_events`.
    """

    def _compute(self, predictions: Any, references: Any, threshold: float = 0.0, num_resamples: int = 1000, seed: int = 0) -> dict[str, Any]:
        p, r = self._checked(predictions, references)
        estimates = bootstrap(self._statistic(p, r, threshold), len(p), num_resamples, seed)
        return {**report(estimates, len(p)), "num_above": int((r > threshold).sum())}

    def _statistic(self, p: np.ndarray, r: np.ndarray, threshold: float = 0.0) -> Statistic:
        curve = resampled_auroc(p, r > threshold)
        return lambda indices: {"detection_auroc": curve(multiplicities(indices, len(p)))}
