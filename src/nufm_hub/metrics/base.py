"""What all metrics share: an `evaluate.Metric` that checks its inputs before anything is stored."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, ClassVar

import datasets
import evaluate
import numpy as np

from .bootstrap import Statistic, bootstrap, report


class EventMetric(evaluate.Metric):
    """A metric over events. Bad input raises ValueError and leaves batches that were added before untouched.

    Args:
        **kwargs: of `evaluate.Metric`. Without several processes the inputs stay in memory instead of a cache file.
    """

    inputs_text = ""
    citation_text = ""
    features_of: ClassVar[dict[str, Any]]

    def __init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("keep_in_memory", kwargs.get("num_process", 1) == 1)
        super().__init__(**kwargs)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=inspect.getdoc(type(self)),
            citation=self.citation_text,
            inputs_description=self.inputs_text,
            features=datasets.Features(self.features_of),
        )

    def _checked(self, predictions: Any, references: Any) -> tuple[np.ndarray, np.ndarray]:
        raise NotImplementedError

    def _statistic(self, predictions: np.ndarray, references: np.ndarray) -> Statistic:
        raise NotImplementedError

    def _class_names(self, given: Sequence[str] | None, predictions: np.ndarray) -> Sequence[str]:
        """Names for values that come by class; a metric without classes has none."""
        return ()

    def difference(
        self,
        *,
        predictions: Any,
        baseline: Any,
        references: Any,
        class_names: Sequence[str] | None = None,
        num_resamples: int = 1000,
        seed: int = 0,
        groups: Sequence[Any] | None = None,
    ) -> dict[str, Any]:
        """What `predictions` are better or worse than `baseline`, other predictions of the same events: the differences of all values.

        Both are resampled together, so that what is hard about an event drops out: the intervals are narrower than those of either alone.
        `groups`, (B,), says what is resampled as one; events if None.

        Returns:
            names as of `compute`, each with `_low` and `_high` (95 %), and `num_events`.
        """
        (first, labels), (second, _) = (self._checked(p, references) for p in (predictions, baseline))
        one, other = self._statistic(first, labels), self._statistic(second, labels)

        def statistic(indices: np.ndarray) -> dict[str, np.ndarray]:
            subtracted = other(indices)
            return {name: values - subtracted[name] for name, values in one(indices).items()}

        names = self._class_names(class_names, first)
        return report(bootstrap(statistic, len(first), num_resamples, seed, groups), len(first), names)

    def add_batch(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> None:
        """Add a batch, (B, ...) arrays, tensors or lists."""
        predictions, references = self._checked(predictions, references)
        super().add_batch(predictions=predictions, references=references, **kwargs)

    def _finalize(self) -> None:
        if self.writer is None:
            raise ValueError(f"{self.name}: there is nothing to compute: give predictions and references, or add batches first")
        super()._finalize()


class ClassificationMetric(EventMetric):
    """Predictions are class probabilities (B, K), references class indices (B,).

    `groups`, an option of `compute`: (B,), what is resampled as one for the intervals, such as the image of each particle; events if None.
    """

    inputs_text = "Args: predictions: class probabilities (B, K); references: class indices (B,); groups: what is resampled as one (B,)."
    features_of: ClassVar = {"predictions": datasets.Sequence(datasets.Value("float64")), "references": datasets.Value("int64")}

    def _checked(self, predictions: Any, references: Any) -> tuple[np.ndarray, np.ndarray]:
        p = _array(self.name, "predictions", predictions, 2, "class probabilities (events, classes)")
        labels = _array(self.name, "references", references, 1, "class indices (events,)")
        _require_equal_length(self.name, p, labels)
        if p.shape[1] < 2:
            raise ValueError(f"{self.name}: predictions have {p.shape[1]} class; give the probabilities of all classes, two or more")
        bad = (p < 0).any(1) | (np.abs(p.sum(1) - 1) > 5e-3)  # leaves room for a softmax in bfloat16
        if bad.any():
            row = int(bad.argmax())
            raise ValueError(
                f"{self.name}: predictions of event {row} are no probabilities (sum {p[row].sum():.4g}): apply a softmax to logits first"
            )
        bad = (labels != np.round(labels)) | (labels < 0) | (labels >= p.shape[1])
        if bad.any():
            row = int(bad.argmax())
            raise ValueError(f"{self.name}: reference {labels[row]:g} of event {row} is not one of the {p.shape[1]} classes; drop unlabelled events")
        return p, labels.astype(np.int64)

    def _class_names(self, given: Sequence[str] | None, predictions: np.ndarray) -> Sequence[str]:
        """The given names, or "0", "1", ...; ValueError when their number does not fit."""
        num_classes = predictions.shape[1]
        names = [str(i) for i in range(num_classes)] if given is None else [str(n) for n in given]
        if len(set(names)) != num_classes:
            raise ValueError(f"{self.name}: class_names {names} do not name the {num_classes} classes of the predictions")
        return names


class NamedClassesMetric(ClassificationMetric):
    """The result says something of each class, under its name.

    `class_names`, an option of `compute`: K names; "0", "1", ... if None.
    """

    def _compute(
        self,
        predictions: Any,
        references: Any,
        class_names: Sequence[str] | None = None,
        num_resamples: int = 1000,
        seed: int = 0,
        groups: Sequence[Any] | None = None,
    ) -> dict[str, Any]:
        p, labels = self._checked(predictions, references)
        names = self._class_names(class_names, p)
        values = report(bootstrap(self._statistic(p, labels), len(p), num_resamples, seed, groups), len(p), names)
        return {**values, **self._additions(p, labels, names)}

    def _additions(self, p: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
        """What the result says besides values and intervals."""
        raise NotImplementedError


class RegressionMetric(EventMetric):
    """Predictions and references are numbers (B,)."""

    inputs_text = "Args: predictions, references: numbers (B,) in the same unit."
    features_of: ClassVar = {"predictions": datasets.Value("float64"), "references": datasets.Value("float64")}
    shape_text, dimensions = "numbers (events,)", 1

    def _checked(self, predictions: Any, references: Any) -> tuple[np.ndarray, np.ndarray]:
        p = _array(self.name, "predictions", predictions, self.dimensions, self.shape_text)
        r = _array(self.name, "references", references, self.dimensions, self.shape_text)
        _require_equal_length(self.name, p, r)
        return p, r

    def _compute(self, predictions: Any, references: Any, num_resamples: int = 1000, seed: int = 0) -> dict[str, Any]:
        p, r = self._checked(predictions, references)
        return report(bootstrap(self._statistic(p, r), len(p), num_resamples, seed), len(p))


def _array(metric: str, what: str, values: Any, dimensions: int, shape: str) -> np.ndarray:
    if values is None:
        raise ValueError(f"{metric}: {what} are missing")
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{metric}: {what} must be {shape}, all rows of one length: {error}") from error
    if array.size == 0:
        raise ValueError(f"{metric}: {what} are empty; a metric needs at least one event")
    if array.ndim != dimensions:
        raise ValueError(f"{metric}: {what} have shape {array.shape}, but must be {shape}")
    bad = ~np.isfinite(array).reshape(len(array), -1).all(1)
    if bad.any():
        raise ValueError(f"{metric}: {what} of event {int(bad.argmax())} are not finite ({int(bad.sum())} such events)")
    return array


def _require_equal_length(metric: str, predictions: np.ndarray, references: np.ndarray) -> None:
    if len(predictions) != len(references):
        raise ValueError(f"{metric}: {len(predictions)} predictions do not match {len(references)} references")
