"""Differences of two models on the same events."""

import numpy as np
import pytest

from nufm_hub import metrics


@pytest.fixture
def rng():
    return np.random.default_rng(4)


def classifier(rng, labels, skill):
    logits = rng.normal(size=(len(labels), 3))
    logits[np.arange(len(labels)), labels] += skill
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


@pytest.mark.parametrize(
    "metric",
    [metrics.MacroAUROC, metrics.PurityEfficiency, metrics.BalancedAccuracy, metrics.ErrorDetectionAUROC, metrics.ExpectedCalibrationError],
)
def test_values_are_those_of_the_one_minus_those_of_the_other(metric, rng):
    labels = rng.integers(0, 3, 200)
    one, other = classifier(rng, labels, 2), classifier(rng, labels, 1)
    found = metric().difference(predictions=one, baseline=other, references=labels, num_resamples=20)
    first, second = (metric().compute(predictions=p, references=labels, num_resamples=0) for p in (one, other))
    names = [name for name in found if name + "_low" in found]
    assert names
    for name in names:
        expected = {k: first[name][k] - second[name][k] for k in first[name]} if isinstance(first[name], dict) else first[name] - second[name]
        assert found[name] == pytest.approx(expected, abs=1e-12)
    assert found["num_events"] == 200


def test_interval_resamples_both_together(rng):
    """By hand with the same resamples; and narrower than the interval of one alone, as the events are hard or easy for both."""
    true = rng.normal(0, 100, (150, 3))
    offset = rng.normal(0, 30, (150, 3))
    options = {"references": true, "num_resamples": 400, "seed": 6}
    found = metrics.VertexError().difference(predictions=true + 1.2 * offset, baseline=true + offset, **options)
    drawn = np.random.default_rng(6).integers(0, 150, (400, 150))
    by_hand = 0.2 * np.linalg.norm(offset, axis=1)[drawn].mean(1)
    assert found["vertex_error_mean"] == pytest.approx(0.2 * np.linalg.norm(offset, axis=1).mean())
    assert [found["vertex_error_mean_low"], found["vertex_error_mean_high"]] == pytest.approx(np.quantile(by_hand, [0.025, 0.975]).tolist())
    alone = metrics.VertexError().compute(predictions=true + offset, **options)
    assert found["vertex_error_mean_high"] - found["vertex_error_mean_low"] < 0.3 * (alone["vertex_error_mean_high"] - alone["vertex_error_mean_low"])


def test_nothing_differs_from_itself(rng):
    truth = rng.uniform(1, 2, 50)
    found = metrics.RelativeResidual().difference(predictions=truth * 1.1, baseline=truth * 1.1, references=truth)
    assert {name: value for name, value in found.items() if name != "num_events"} == dict.fromkeys(
        ["bias", "bias_low", "bias_high", "sigma68", "sigma68_low", "sigma68_high", "resolution68", "resolution68_low", "resolution68_high"], 0.0
    )


def test_a_class_that_cannot_be_compared_is_none(rng):
    labels = rng.integers(0, 2, 60)
    one, other = classifier(rng, labels, 1), classifier(rng, labels, 1)
    found = metrics.MacroAUROC().difference(predictions=one, baseline=other, references=labels, class_names=["a", "b", "c"], num_resamples=10)
    assert found["auroc"]["c"] is None
    assert found["auroc_low"]["c"] is None
    with pytest.raises(ValueError, match="predictions do not match"):
        metrics.MacroAUROC().difference(predictions=one, baseline=other[1:], references=labels)
