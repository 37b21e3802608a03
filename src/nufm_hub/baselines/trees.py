"""Predictions of the rivals: always the same, geometry, and trees on summary numbers, from so many labelled events."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.ensemble import ExtraTreesClassifier, ExtraTreesRegressor, HistGradientBoostingClassifier, HistGradientBoostingRegressor

from nufm_hub.detectors import DetectorSpec
from nufm_hub.evaluation.scores import origin, truth_of
from nufm_hub.events import Event, geometric_vertex, summary_features

MEAN, GEOMETRY = "mean", "geometry"
_FOREST = {"n_estimators": 500, "min_samples_leaf": 2, "max_features": 0.3, "n_jobs": 1}
_BOOSTED = {"max_iter": 150, "learning_rate": 0.05, "min_samples_leaf": 8, "l2_regularization": 1.0, "early_stopping": False}
# Nothing is tuned: these are settings that one starts from.
TREES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "extra-trees": (ExtraTreesClassifier, ExtraTreesRegressor, _FOREST),
    "boosted-trees": (HistGradientBoostingClassifier, HistGradientBoostingRegressor, _BOOSTED),
}
RIVALS = (MEAN, GEOMETRY, *TREES)


@dataclass(frozen=True)
class Table:
    """Events as rows.

    Attributes:
        features: float64 (N, F), see `summary_features`; NaN where there is nothing to measure.
        names: of the F columns.
        start: float64 (N, 3), the geometric vertices, mm.
        truth: as of `nufm_hub.evaluation.scores.truth_of`.
        origin: (N,), the event that each crop is from, see `nufm_hub.evaluation.scores.origin`.
    """

    features: np.ndarray
    names: tuple[str, ...]
    start: np.ndarray
    truth: dict[str, np.ndarray]
    origin: np.ndarray

    def __len__(self) -> int:
        return len(self.features)

    def select(self, rows: np.ndarray) -> Table:
        """Some of the rows, by index."""
        truth = {name: values[rows] for name, values in self.truth.items()}
        return Table(self.features[rows], self.names, self.start[rows], truth, self.origin[rows])


def tabulate(events: Iterable[Event], spec: DetectorSpec) -> Table:
    """Summary numbers, geometric vertices and truth of events of a detector.

    Raises:
        ValueError: no events, or one of another detector.
    """
    rows, starts, truths, origins = [], [], [], []
    for event in events:
        event.validate(spec)
        rows.append(summary_features(event, spec))
        starts.append(geometric_vertex(event, spec))
        truths.append(truth_of([event], spec))
        origins.append(origin(event, len(origins)))
    if not rows:
        raise ValueError(f"there are no events of {spec.name!r} to summarise")
    features = np.array([list(row.values()) for row in rows], dtype=np.float64)
    features[~np.isfinite(features)] = np.nan
    truth = {name: np.concatenate([t[name] for t in truths]) for name in truths[0]}
    return Table(features, tuple(rows[0]), np.stack(starts), truth, np.array(origins))


def predict(rival: str, train: Table, test: Table, spec: DetectorSpec, seed: int = 0) -> dict[str, np.ndarray]:
    """What a rival says of the test events, having seen the truth of the training events.

    Args:
        rival: one of `RIVALS`. `geometry` gives the vertex alone, and does not look at the training events.
        train: labelled events.
        test: of the same detector.
        spec: the detector.
        seed: of the trees.

    Returns:
        By quantity, where training events have the truth: probabilities (M, K) of event labels; `vertex` float64 (M, 3), mm; sizes of momenta,
        float64 (M,), GeV: `visible_momentum`, `jet_momentum`, `lepton_momentum`, `missing_pt`.

    Raises:
        ValueError: an unknown rival.
    """
    if rival not in RIVALS:
        raise ValueError(f"unknown rival {rival!r}: give one of {', '.join(RIVALS)}")
    if rival == GEOMETRY:
        return {"vertex": test.start} if np.isfinite(test.start).all() else {}
    predictions: dict[str, np.ndarray] = {}
    for name in spec.event_labels:
        labels = train.truth[name]
        if (known := labels >= 0).any():
            predictions[name] = _classes(rival, train.features[known], labels[known], test.features, len(spec.classes(name)), seed)
    if (known := np.isfinite(train.truth["vertex"]).all(axis=1)).any():
        predictions["vertex"] = _vertex(rival, train.select(np.flatnonzero(known)), test, seed)
    for name, size in momentum_sizes(train.truth).items():
        if (known := np.isfinite(size)).any():
            # on a logarithm, since sizes span decades; a missing pT may be zero
            predictions[name] = np.expm1(_values(rival, train.features[known], np.log1p(size[known])[:, None], test.features, seed)[:, 0])
    return predictions


def momentum_sizes(truth: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """True sizes of momenta, float64 (N,), GeV, NaN where unknown or, of the lepton, where there is none."""
    visible, jet = truth["visible_momentum"], truth["jet_momentum"]
    lepton = np.where(truth["is_cc"][:, None], visible - jet, np.nan)
    momenta = {"visible_momentum": visible, "jet_momentum": jet, "lepton_momentum": lepton, "missing_pt": visible[:, :2]}
    return {name: np.linalg.norm(p, axis=1) for name, p in momenta.items()}


def _classes(rival: str, features: np.ndarray, labels: np.ndarray, asked: np.ndarray, num_classes: int, seed: int) -> np.ndarray:
    found, counts = np.unique(labels, return_counts=True)
    probabilities = np.zeros((len(asked), num_classes))
    if rival == MEAN or len(found) == 1:
        probabilities[:, found] = counts / counts.sum()
    else:
        classifier, _, settings = TREES[rival]
        seen = _seen(features)
        probabilities[:, found] = classifier(random_state=seed, **settings).fit(features[:, seen], labels).predict_proba(asked[:, seen])
    return probabilities


def _values(rival: str, features: np.ndarray, values: np.ndarray, asked: np.ndarray, seed: int) -> np.ndarray:
    """(N, K) values to (M, K)."""
    if rival == MEAN:
        return np.broadcast_to(values.mean(axis=0), (len(asked), values.shape[1]))
    _, regressor, settings = TREES[rival]
    seen = _seen(features)
    columns = [regressor(random_state=seed, **settings).fit(features[:, seen], column).predict(asked[:, seen]) for column in values.T]
    return np.stack(columns, axis=1)


def _seen(features: np.ndarray) -> np.ndarray:
    """Columns that any event has a number in, bool (F,): scikit-learn cannot bin the others."""
    return np.isfinite(features).any(axis=0)


def _vertex(rival: str, train: Table, test: Table, seed: int) -> np.ndarray:
    """The mean vertex, or what trees add to the geometric one (to the mean one where an event has no start)."""
    mean = train.truth["vertex"].mean(axis=0)
    if rival == MEAN:
        return np.broadcast_to(mean, (len(test), 3))
    of_train, of_test = (np.where(np.isfinite(table.start), table.start, mean) for table in (train, test))
    return of_test + _values(rival, train.features, train.truth["vertex"] - of_train, test.features, seed)
