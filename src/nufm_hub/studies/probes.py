"""What simple models read out of frozen features: a linear probe and nearest neighbours.

Strengths of regularisation and numbers of neighbours are chosen by cross-validation on the training events. Features are standardised with
the training events' mean and width.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from sklearn.base import BaseEstimator, clone
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.model_selection import KFold, StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from nufm_hub.metrics import MacroAUROC

FOLDS = 5
# Ascending: of equally good ones the strongest regularisation wins.
INVERSE_REGULARISATIONS = tuple(10.0**n for n in range(-4, 3))
RIDGE_PENALTIES = tuple(10.0**n for n in range(6, -3, -1))
NEIGHBOURS = (100, 50, 20, 10, 5, 3, 1)


class Probed(NamedTuple):
    """Predictions on test events, and the setting that cross-validation chose."""

    predictions: np.ndarray
    chosen: Any


def linear_classes(train: np.ndarray, labels: np.ndarray, test: np.ndarray, num_classes: int, seed: int = 0) -> Probed:
    """Multinomial logistic regression; `chosen` is scikit-learn's `C`, the one of the best macro-AUROC out of fold.

    Args:
        train: features (N, D) of events with class indices `labels` int (N,), of at least two classes.
        test: features (M, D).
        seed: of the folds.

    Returns:
        Probabilities (M, num_classes); a class without training events gets zero.
    """
    models = {c: make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=5000)) for c in INVERSE_REGULARISATIONS}
    return _classes(models, train, labels, test, num_classes, seed)


def nearest_classes(train: np.ndarray, labels: np.ndarray, test: np.ndarray, num_classes: int, seed: int = 0) -> Probed:
    """Classes of the k nearest training events, weighted by 1 / distance; `chosen` is k. All else as in `linear_classes`."""
    models = {k: make_pipeline(StandardScaler(), KNeighborsClassifier(k, weights="distance")) for k in _neighbours(len(train))}
    return _classes(models, train, labels, test, num_classes, seed)


def linear_values(train: np.ndarray, values: np.ndarray, test: np.ndarray) -> Probed:
    """Ridge regression of values (N, K), predictions (M, K); `chosen` is scikit-learn's `alpha` of each column, of the least squared error
    when each training event is left out in turn."""
    model = make_pipeline(StandardScaler(), RidgeCV(RIDGE_PENALTIES, alpha_per_target=True)).fit(train, values)
    return Probed(model.predict(test), [float(a) for a in model[-1].alpha_])


def nearest_values(train: np.ndarray, values: np.ndarray, test: np.ndarray, seed: int = 0) -> Probed:
    """Mean of the values (N, K) of the k nearest training events, weighted by 1 / distance; `chosen` is the k of the least mean distance of
    prediction and truth out of fold."""
    models = {k: make_pipeline(StandardScaler(), KNeighborsRegressor(k, weights="distance")) for k in _neighbours(len(train))}
    folds = list(KFold(FOLDS, shuffle=True, random_state=seed).split(train))

    def badness(model: BaseEstimator) -> float:
        return float(np.linalg.norm(_out_of_fold(model, train, values, folds, lambda fitted, x: fitted.predict(x)) - values, axis=1).mean())

    k = min(models, key=lambda k: badness(models[k]))
    return Probed(models[k].fit(train, values).predict(test), k)


def _classes(models: dict[Any, BaseEstimator], train: np.ndarray, labels: np.ndarray, test: np.ndarray, num_classes: int, seed: int) -> Probed:
    def probabilities(fitted: BaseEstimator, x: np.ndarray) -> np.ndarray:
        full = np.zeros((len(x), num_classes))
        full[:, fitted.classes_] = fitted.predict_proba(x)
        return full

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class")  # then it is absent from some folds: no reason to leave it out
        folds = list(StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(train, labels))

    def goodness(model: BaseEstimator) -> float:
        predictions = _out_of_fold(model, train, labels, folds, probabilities)
        return MacroAUROC().compute(predictions=predictions, references=labels, num_resamples=0)["macro_auroc"]

    chosen = max(models, key=lambda setting: goodness(models[setting]))
    return Probed(probabilities(models[chosen].fit(train, labels), test), chosen)


def _out_of_fold(
    model: BaseEstimator,
    x: np.ndarray,
    y: np.ndarray,
    folds: Sequence[tuple[np.ndarray, np.ndarray]],
    predict: Callable[[BaseEstimator, np.ndarray], np.ndarray],
) -> np.ndarray:
    """Predictions for each event by a model that was fitted without it."""
    rows = np.concatenate([held for _, held in folds])
    predictions = np.concatenate([predict(clone(model).fit(x[used], y[used]), x[held]) for used, held in folds])
    return predictions[np.argsort(rows)]


def _neighbours(num_events: int) -> list[int]:
    return [k for k in NEIGHBOURS if k <= num_events * (FOLDS - 1) // FOLDS]
