"""Areas under ROC curves of many resamples at once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def resampled_auroc(scores: np.ndarray, positive: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """AUROC as a function of how often each event was drawn.

    The probability that a positive event scores above a negative one, ties counting half (Mann-Whitney; equals
    `sklearn.metrics.roc_auc_score`).

    Args:
        scores: (N,).
        positive: bool (N,).

    Returns:
        A function of multiplicities (R, N) that gives (R,), NaN for a resample without positives or negatives.
    """
    order = np.argsort(scores, kind="stable")
    sorted_scores, is_positive = scores[order], positive[order].astype(np.float64)
    first_of_tie = np.flatnonzero(np.r_[True, np.diff(sorted_scores) != 0])

    def auroc(multiplicities: np.ndarray) -> np.ndarray:
        counts = multiplicities[:, order]
        positives = counts * is_positive
        negatives = counts - positives
        if len(first_of_tie) < len(order):
            positives = np.add.reduceat(positives, first_of_tie, axis=1)
            negatives = np.add.reduceat(negatives, first_of_tie, axis=1)
        below = np.cumsum(negatives, axis=1)
        pairs = positives.sum(1) * below[:, -1]
        below -= negatives / 2
        wins = np.einsum("rn,rn->r", positives, below)
        return np.divide(wins, pairs, out=np.full(len(wins), np.nan), where=pairs > 0)

    return auroc


def multiplicities(indices: np.ndarray, n: int) -> np.ndarray:
    """How often each of n events occurs in each resample: float64 (R, n) from indices (R, M)."""
    rows = len(indices)
    flat = (indices + n * np.arange(rows)[:, None]).ravel()
    return np.bincount(flat, minlength=rows * n).reshape(rows, n).astype(np.float64)
