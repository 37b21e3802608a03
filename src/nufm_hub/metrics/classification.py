"""How well events are sorted into classes."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from .auroc import multiplicities, resampled_auroc
from .base import NamedClassesMetric
from .bootstrap import Statistic


class MacroAUROC(NamedClassesMetric):
    """Area under the ROC curve, each class against the rest, averaged over classes with equal weight.

    A class without positives or without negatives has no ROC curve: its AUROC is None, the average runs over the other classes, and
    `classes_left_out` names it. Result: `macro_auroc`, per class `auroc`, each with `_low` and `_high` (95 %), and `num_events`.
    """

    def _statistic(self, p: np.ndarray, labels: np.ndarray) -> Statistic:
        curves = [resampled_auroc(p[:, k], labels == k) for k in range(p.shape[1])]

        def statistic(indices: np.ndarray) -> dict[str, np.ndarray]:
            counts = multiplicities(indices, len(p))
            auroc = np.stack([curve(counts) for curve in curves], axis=1)
            return {"macro_auroc": _mean_of_defined(auroc), "auroc": auroc}

        return statistic

    def _additions(self, p: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
        counts = np.bincount(labels, minlength=len(names))
        return {"classes_left_out": [name for name, count in zip(names, counts) if count in (0, len(labels))]}


class PurityEfficiency(NamedClassesMetric):
    """Per class, for the most probable class as the prediction: purity (precision) and efficiency (recall).

    Purity of a class that is never predicted and efficiency of a class without true events are None. Result: `purity`, `efficiency` per
    class with `_low` and `_high` (95 %), the counts `num_true`, `num_predicted`, `num_correct` per class, and `num_events`.
    """

    def _statistic(self, p: np.ndarray, labels: np.ndarray) -> Statistic:
        predicted = p.argmax(1)

        def statistic(indices: np.ndarray) -> dict[str, np.ndarray]:
            table = _confusion(labels, predicted, p.shape[1], indices)
            correct = table.diagonal(axis1=1, axis2=2)
            return {"purity": _ratio(correct, table.sum(1)), "efficiency": _ratio(correct, table.sum(2))}

        return statistic

    def _additions(self, p: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
        predicted = p.argmax(1)
        of = {"num_true": labels, "num_predicted": predicted, "num_correct": labels[labels == predicted]}
        return {key: dict(zip(names, np.bincount(classes, minlength=len(names)).tolist())) for key, classes in of.items()}


class BalancedAccuracy(NamedClassesMetric):
    """Accuracy, and balanced accuracy: the mean efficiency of the classes that have true events (as scikit-learn defines it).

    Result: `balanced_accuracy`, `accuracy`, each with `_low` and `_high` (95 %), `classes_left_out` (no true events) and `num_events`.
    """

    def _statistic(self, p: np.ndarray, labels: np.ndarray) -> Statistic:
        predicted = p.argmax(1)

        def statistic(indices: np.ndarray) -> dict[str, np.ndarray]:
            table = _confusion(labels, predicted, p.shape[1], indices)
            correct = table.diagonal(axis1=1, axis2=2)
            return {"balanced_accuracy": _mean_of_defined(_ratio(correct, table.sum(2))), "accuracy": correct.sum(1) / indices.shape[1]}

        return statistic

    def _additions(self, p: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
        return {"classes_left_out": [name for k, name in enumerate(names) if not (labels == k).any()]}


def _confusion(labels: np.ndarray, predicted: np.ndarray, num_classes: int, indices: np.ndarray) -> np.ndarray:
    """Events by true class (axis 1) and predicted class (axis 2) for each resample, (R, K, K)."""
    rows, cells = len(indices), num_classes**2
    cell = (labels * num_classes + predicted)[indices] + cells * np.arange(rows)[:, None]
    return np.bincount(cell.ravel(), minlength=rows * cells).reshape(rows, num_classes, num_classes)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)


def _mean_of_defined(values: np.ndarray) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Mean of empty slice")  # no class defined: NaN is the answer
        return np.nanmean(values, axis=1)
