"""How well single voxels are classified, counted event by event: memory does not grow with the number of voxels."""

from __future__ import annotations

from typing import Any

import numpy as np

from nufm_hub.detectors import VoxelLabel

from .bootstrap import bootstrap, report
from .classification import _mean_of_defined, _ratio

# Scores (log odds) are counted in equal bins, voxels of one bin as ties: finely for values, coarsely by event for their intervals.
_RANGE, _BINS, _COARSE = 12.0, 2**16, 2**10


class VoxelClassification:
    """Metrics of one voxel label, whose true class is the most probable one of the voxel's soft label.

    Voxels of one event are not independent, so intervals are those of a bootstrap over events, not over voxels.

    Args:
        label: a binary one has the classes `no <name>` and `<name>`.
    """

    def __init__(self, label: VoxelLabel) -> None:
        self.classes = (f"no {label.classes[0]}", label.classes[0]) if label.is_binary else label.classes
        self._is_binary = label.is_binary
        self._confusion: list[np.ndarray] = []
        self._scores: list[np.ndarray] = []
        self._all_scores = np.zeros((len(self.classes), 2, _BINS), dtype=np.int64)  # class, is it, bin

    def add(self, logits: np.ndarray, shares: np.ndarray) -> None:
        """Count the voxels of an event.

        Args:
            logits: (N, K), one column of a binary label; rows with a NaN are left out.
            shares: (N, K), probability of a binary label, else the share of each class; rows below zero are unlabelled and left out.
        """
        logits, shares = np.asarray(logits, dtype=np.float64), np.asarray(shares)
        known = ~np.isnan(logits).any(axis=1) & (shares >= 0).all(axis=1)
        logits, shares = logits[known], shares[known]
        if not len(logits):
            return
        if self._is_binary:
            logits, truth = np.concatenate([np.zeros_like(logits), logits], axis=1), (shares[:, 0] >= 0.5).astype(np.int64)
        else:
            truth = shares.argmax(axis=1)
        k = len(self.classes)
        self._confusion.append(np.bincount(truth * k + logits.argmax(axis=1), minlength=k * k).reshape(k, k))
        scores = np.empty((k, 2, _COARSE), dtype=np.int32)
        for c in range(k):
            odds = logits[:, c] - np.logaddexp.reduce(np.delete(logits, c, axis=1), axis=1)
            cell = np.clip((odds / _RANGE + 1) * (_BINS / 2), 0, _BINS - 1).astype(np.int64) + _BINS * (truth == c)
            np.add.at(self._all_scores[c].reshape(-1), cell, 1)
            scores[c] = np.bincount(cell // (_BINS // _COARSE), minlength=2 * _COARSE).reshape(2, _COARSE)
        self._scores.append(scores)

    def compute(self, num_resamples: int = 1000, seed: int = 0) -> dict[str, Any] | None:
        """`macro_auroc`, `balanced_accuracy`, `accuracy`, and per class `auroc`, `purity`, `efficiency`, each with `_low` and `_high` (95 %,
        bootstrap over events); per class `num_true`; `num_voxels`; `num_events`, those with a labelled voxel. None without such a voxel.
        """
        if not self._confusion:
            return None
        confusion, scores = np.stack(self._confusion).astype(np.float64), np.stack(self._scores).astype(np.float64)
        events = len(confusion)

        def statistic(indices: np.ndarray) -> dict[str, np.ndarray]:
            drawn = np.stack([np.bincount(row, minlength=events) for row in indices]).astype(np.float64)
            table = np.tensordot(drawn, confusion, axes=1)
            correct = table.diagonal(axis1=1, axis2=2)
            efficiency, auroc = _ratio(correct, table.sum(axis=2)), _auroc(np.tensordot(drawn, scores, axes=1))
            return {
                "macro_auroc": _mean_of_defined(auroc),
                "balanced_accuracy": _mean_of_defined(efficiency),
                "accuracy": correct.sum(axis=1) / table.sum(axis=(1, 2)),
                "auroc": auroc,
                "purity": _ratio(correct, table.sum(axis=1)),
                "efficiency": efficiency,
            }

        estimates = bootstrap(statistic, events, num_resamples, seed)
        auroc = _auroc(self._all_scores[None])
        for name, value in {"auroc": auroc, "macro_auroc": _mean_of_defined(auroc)}.items():
            estimates[name] = estimates[name]._replace(value=value[0])
        result = report(estimates, events, self.classes)
        result["num_true"] = dict(zip(self.classes, confusion.sum(axis=(0, 2)).astype(int).tolist()))
        return {**result, "num_voxels": int(confusion.sum())}


def _auroc(counts: np.ndarray) -> np.ndarray:
    """(R, K, 2, bins), negatives and positives with rising score -> (R, K); NaN without either."""
    negatives, positives = counts[:, :, 0], counts[:, :, 1]
    below = np.cumsum(negatives, axis=2) - negatives / 2
    return _ratio((positives * below).sum(axis=2), positives.sum(axis=2) * negatives.sum(axis=2))
