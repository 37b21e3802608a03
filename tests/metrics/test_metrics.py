"""Metrics against scikit-learn, against numbers worked out by hand, and against what statistics promises."""

import json
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn_metrics
from transformers import EvalPrediction

from nufm_hub import metrics
from nufm_hub.metrics.auroc import multiplicities, resampled_auroc
from nufm_hub.metrics.bootstrap import bootstrap

CLASSIFICATION = [
    metrics.MacroAUROC,
    metrics.PurityEfficiency,
    metrics.BalancedAccuracy,
    metrics.ErrorDetectionAUROC,
    metrics.ExpectedCalibrationError,
]
FLAVOURS = ("nue_cc", "numu_cc", "nc")


def toy(num_events: int, num_classes: int = 3, seed: int = 0, digits: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of a mediocre classifier, rounded to make ties, and labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, num_classes, num_events)
    logits = rng.normal(size=(num_events, num_classes))
    logits[np.arange(num_events), labels] += 1
    p = np.round(np.exp(logits) / np.exp(logits).sum(1, keepdims=True), digits)
    return p / p.sum(1, keepdims=True), labels


@pytest.mark.parametrize("digits", [1, 12])
def test_macro_auroc_is_that_of_scikit_learn(digits):
    p, labels = toy(400, digits=digits)
    result = metrics.MacroAUROC().compute(predictions=p, references=labels, class_names=FLAVOURS)
    assert result["macro_auroc"] == pytest.approx(sklearn_metrics.roc_auc_score(labels, p, multi_class="ovr", average="macro"), abs=1e-12)
    for k, name in enumerate(FLAVOURS):
        assert result["auroc"][name] == pytest.approx(sklearn_metrics.roc_auc_score(labels == k, p[:, k]), abs=1e-12)
        assert result["auroc_low"][name] < result["auroc"][name] < result["auroc_high"][name]
    assert result["num_events"] == 400
    assert result["classes_left_out"] == []


def test_resampled_auroc_is_that_of_scikit_learn_on_the_resample():
    p, labels = toy(80, digits=1)
    indices = np.random.default_rng(3).integers(0, 80, (5, 80))
    ours = resampled_auroc(p[:, 0], labels == 0)(multiplicities(indices, len(p)))
    assert ours == pytest.approx([sklearn_metrics.roc_auc_score(labels[i] == 0, p[i, 0]) for i in indices], abs=1e-12)


def test_macro_auroc_names_the_classes_it_leaves_out():
    p = np.array([[0.7, 0.2, 0.1], [0.2, 0.7, 0.1], [0.5, 0.4, 0.1], [0.45, 0.45, 0.1]])
    result = metrics.MacroAUROC().compute(predictions=p, references=[0, 1, 0, 1], class_names=FLAVOURS)
    assert result["classes_left_out"] == ["nc"]
    assert result["auroc"] == {"nue_cc": 1.0, "numu_cc": 1.0, "nc": None}
    assert result["auroc_low"]["nc"] is None
    assert result["macro_auroc"] == 1.0
    alone = metrics.MacroAUROC().compute(predictions=p, references=[0, 0, 0, 0])
    assert alone["macro_auroc"] is None
    assert alone["classes_left_out"] == ["0", "1", "2"]


def test_purity_and_efficiency_are_those_of_scikit_learn():
    p, labels = toy(300)
    result = metrics.PurityEfficiency().compute(predictions=p, references=labels, class_names=FLAVOURS)
    purity, efficiency, _, support = sklearn_metrics.precision_recall_fscore_support(labels, p.argmax(1))
    assert list(result["purity"].values()) == pytest.approx(purity.tolist())
    assert list(result["efficiency"].values()) == pytest.approx(efficiency.tolist())
    assert list(result["num_true"].values()) == support.tolist()
    assert sum(result["num_correct"].values()) == (p.argmax(1) == labels).sum()


def test_undefined_purity_and_efficiency_are_none():
    p = np.array([[0.8, 0.1, 0.1], [0.6, 0.2, 0.2], [0.1, 0.1, 0.8]])
    result = metrics.PurityEfficiency().compute(predictions=p, references=[0, 1, 0])
    assert result["purity"] == {"0": 0.5, "1": None, "2": 0.0}
    assert result["efficiency"] == {"0": 0.5, "1": 0.0, "2": None}
    assert (result["num_true"], result["num_predicted"]) == ({"0": 2, "1": 1, "2": 0}, {"0": 2, "1": 0, "2": 1})
    assert result["purity_low"]["1"] is None
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_balanced_accuracy_is_that_of_scikit_learn():
    p, labels = toy(300)
    keep = (labels != 2) | (np.arange(300) % 7 == 0)
    result = metrics.BalancedAccuracy().compute(predictions=p[keep], references=labels[keep])
    assert result["balanced_accuracy"] == pytest.approx(sklearn_metrics.balanced_accuracy_score(labels[keep], p[keep].argmax(1)))
    assert result["accuracy"] == pytest.approx(sklearn_metrics.accuracy_score(labels[keep], p[keep].argmax(1)))
    assert result["classes_left_out"] == []
    two = metrics.BalancedAccuracy().compute(predictions=p[labels < 2], references=labels[labels < 2])
    assert two["classes_left_out"] == ["2"]


def test_error_detection_auroc_by_hand_and_against_scipy_entropy():
    stats = pytest.importorskip("scipy.stats")
    # Entropies rise from row to row; right, wrong, right, wrong: of four (right, wrong) pairs three are in order.
    p = np.array([[1.0, 0.0, 0.0], [0.9, 0.05, 0.05], [0.6, 0.2, 0.2], [0.4, 0.3, 0.3]])
    result = metrics.ErrorDetectionAUROC().compute(predictions=p, references=[0, 1, 0, 1])
    assert result["error_detection_auroc"] == 0.75
    assert (result["num_right"], result["num_wrong"]) == (2, 2)
    assert metrics.ErrorDetectionAUROC().compute(predictions=p, references=[0, 0, 0, 0])["error_detection_auroc"] is None
    p, labels = toy(500)
    expected = sklearn_metrics.roc_auc_score(p.argmax(1) == labels, -stats.entropy(p, axis=1))
    assert metrics.ErrorDetectionAUROC().compute(predictions=p, references=labels)["error_detection_auroc"] == pytest.approx(expected, abs=1e-12)


def test_calibration_error_by_hand():
    # Two bins: one event of confidence 0.5 (wrong); 0.75 (right), 0.75 (wrong) and 1.0 (right): (|0 - 0.5| * 1 + |2/3 - 2.5/3| * 3) / 4.
    p = np.array([[0.5, 0.5], [0.75, 0.25], [0.25, 0.75], [1.0, 0.0]])
    result = metrics.ExpectedCalibrationError().compute(predictions=p, references=[1, 0, 0, 0], num_bins=2)
    assert result["expected_calibration_error"] == pytest.approx((0.5 + 0.5) / 4)
    assert metrics.ExpectedCalibrationError().compute(predictions=p, references=[1, 0, 0, 0])["num_bins"] == 15


def test_calibration_error_of_a_calibrated_and_of_an_overconfident_classifier():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.5, 1, 20_000)
    right = rng.random(20_000) < confidence
    p = np.stack([confidence, 1 - confidence], axis=1)
    calibrated = metrics.ExpectedCalibrationError().compute(predictions=p, references=(~right).astype(int), num_resamples=0)
    assert calibrated["expected_calibration_error"] < 0.012
    right = rng.random(20_000) < confidence - 0.2
    overconfident = metrics.ExpectedCalibrationError().compute(predictions=p, references=(~right).astype(int), num_resamples=0)
    assert overconfident["expected_calibration_error"] == pytest.approx(0.2, abs=0.01)


def test_vertex_error_by_hand():
    truth = np.array([[0.0, 0, 100], [10, 0, 0], [0, 0, 0], [5, 5, 5]])
    offset = np.array([[3.0, 4, 0], [0, 0, 1], [0, 0, 10], [2, 2, 1]])  # distances 5, 1, 10, 3
    result = metrics.VertexError().compute(predictions=truth + offset, references=truth)
    assert result["vertex_error_mean"] == pytest.approx(4.75)
    assert result["vertex_error_median"] == pytest.approx(4)
    assert result["vertex_error_q68"] == pytest.approx(5 + 0.04 * 5)  # 68 % of the way through the sorted 1, 3, 5, 10
    assert [result[f"vertex_bias_{a}"] for a in "xyz"] == pytest.approx([1.25, 1.5, 3.0])
    assert result["vertex_error_mean_low"] < 4.75 < result["vertex_error_mean_high"]


def test_relative_residual_recovers_bias_and_resolution():
    rng = np.random.default_rng(0)
    truth = rng.uniform(10, 1000, 20_000)
    result = metrics.RelativeResidual().compute(predictions=truth * (1.05 + 0.2 * rng.normal(size=20_000)), references=truth, num_resamples=200)
    assert result["bias"] == pytest.approx(0.05, abs=0.006)
    assert result["sigma68"] == pytest.approx(0.2 * 0.99446, abs=0.005)  # the 84 % quantile of a normal distribution is 0.99446 sigma
    assert result["sigma68_high"] - result["sigma68_low"] < 0.01
    assert result["resolution68"] == pytest.approx(result["sigma68"] / (1 + result["bias"]))


def test_resolution_does_not_reward_small_predictions():
    rng = np.random.default_rng(0)
    truth = rng.uniform(10, 1000, 500)
    predicted = truth * (1 + 0.2 * rng.normal(size=500))
    whole, tenth, nothing = (metrics.RelativeResidual().compute(predictions=predicted * f, references=truth, num_resamples=20) for f in (1, 0.1, 0))
    assert tenth["sigma68"] == pytest.approx(0.1 * whole["sigma68"])
    assert tenth["resolution68"] == pytest.approx(whole["resolution68"])
    assert (nothing["sigma68"], nothing["resolution68"]) == (0, None)


def test_interval_covers_the_truth_in_95_percent_of_the_experiments():
    rng = np.random.default_rng(1)
    covered = 0
    for experiment in range(300):
        sample = rng.normal(3, 2, 200)
        estimate = bootstrap(lambda i, s=sample: {"mean": s[i].mean(1)}, 200, 400, seed=experiment)["mean"]
        covered += estimate.low <= 3 <= estimate.high
    assert 0.90 < covered / 300 < 0.985


def test_interval_has_the_width_of_the_normal_approximation():
    sample = np.random.default_rng(2).normal(size=1000)
    estimate = bootstrap(lambda i: {"mean": sample[i].mean(1)}, 1000, 4000)["mean"]
    assert estimate.high - estimate.low == pytest.approx(2 * 1.96 * sample.std() / np.sqrt(1000), rel=0.05)


def test_interval_is_a_function_of_the_seed_and_not_of_global_state():
    p, labels = toy(200)
    compute = metrics.MacroAUROC().compute
    first = compute(predictions=p, references=labels, seed=5)
    np.random.seed(99)
    assert compute(predictions=p, references=labels, seed=5) == first
    assert compute(predictions=p, references=labels, seed=6)["macro_auroc_low"] != first["macro_auroc_low"]
    without = compute(predictions=p, references=labels, num_resamples=0)
    assert without["macro_auroc"] == first["macro_auroc"]
    assert without["macro_auroc_low"] is None


@pytest.mark.parametrize("metric", CLASSIFICATION)
def test_classification_refuses_bad_input(metric):
    p, labels = toy(10)
    cases = [
        (p, labels[:9], "10 predictions do not match 9 references"),
        (np.where(np.arange(10)[:, None] == 4, np.nan, p), labels, "predictions of event 4 are not finite"),
        (p, np.where(np.arange(10) == 2, 3, labels), "reference 3 of event 2 is not one of the 3 classes"),
        (p, np.where(np.arange(10) == 2, -100, labels), "reference -100 of event 2"),
        (p, labels + 0.5, "of event 0"),
        (np.log(p), labels, "no probabilities"),
        (2 * p, labels, "no probabilities"),
        (p[:, 0], labels, r"have shape \(10,\)"),
        (p[:0], labels[:0], "empty"),
        ([[0.5, 0.5], [1.0]], [0, 1], "one length"),
        (None, labels, "missing"),
    ]
    for predictions, references, message in cases:
        with pytest.raises(ValueError, match=message):
            metric().compute(predictions=predictions, references=references)
    with pytest.raises(ValueError, match="nothing to compute"):
        metric().compute()


def test_regression_refuses_bad_input():
    v = np.ones((4, 3))
    for predictions, references, message in [
        (v[:, :2], v[:, :2], "must be vertices"),
        (v, v[:3], "4 predictions do not match 3"),
        (v, np.where(np.arange(4)[:, None] == 1, np.inf, v), "references of event 1 are not finite"),
    ]:
        with pytest.raises(ValueError, match=message):
            metrics.VertexError().compute(predictions=predictions, references=references)
    with pytest.raises(ValueError, match="reference 0 of event 1"):
        metrics.RelativeResidual().compute(predictions=[1.0, 1.0], references=[1.0, 0.0])


def test_options_are_checked():
    p, labels = toy(10)
    with pytest.raises(ValueError, match="class_names"):
        metrics.MacroAUROC().compute(predictions=p, references=labels, class_names=("a", "b"))
    with pytest.raises(ValueError, match="num_resamples"):
        metrics.MacroAUROC().compute(predictions=p, references=labels, num_resamples=-1)
    with pytest.raises(ValueError, match="num_bins"):
        metrics.ExpectedCalibrationError().compute(predictions=p, references=labels, num_bins=0)


def test_batches_add_up_and_a_refused_batch_leaves_no_trace():
    p, labels = toy(60)
    metric = metrics.MacroAUROC()
    metric.add_batch(predictions=torch.tensor(p[:25]), references=torch.tensor(labels[:25]))
    with pytest.raises(ValueError, match="do not match"):
        metric.add_batch(predictions=p[25:], references=labels[26:])
    metric.add_batch(predictions=p[25:].tolist(), references=labels[25:].tolist())
    assert metric.compute() == metrics.MacroAUROC().compute(predictions=p, references=labels)
    assert metric.compute(predictions=p[:30], references=labels[:30])["num_events"] == 30


def test_thousand_resamples_of_five_thousand_events_take_less_than_two_seconds():
    p, labels = toy(5000, num_classes=6)
    for metric in CLASSIFICATION:
        start = time.process_time()
        metric().compute(predictions=p, references=labels)
        assert time.process_time() - start < 2, metric


def test_flavour_metrics_of_a_trainer():
    p, labels = toy(200)
    shifted = np.log(p) + np.linspace(-500, 500, 200)[:, None]  # a softmax that forgets to subtract the maximum overflows
    result = metrics.flavour_metrics(EvalPrediction(predictions=(shifted, None), label_ids=labels))
    assert result["macro_auroc"] == pytest.approx(sklearn_metrics.roc_auc_score(labels, p, multi_class="ovr"))
    assert result["accuracy"] == pytest.approx((p.argmax(1) == labels).mean())
    assert set(result) == {"macro_auroc", "accuracy", "balanced_accuracy", "expected_calibration_error"}
    assert all(type(v) is float for v in result.values())


def test_vertex_metrics_are_in_mm():
    processor = SimpleNamespace(statistics={"vertex": {"mean": [0.0, 0.0, 1000.0], "std": [100.0, 100.0, 500.0]}})
    standardised = EvalPrediction(predictions=np.zeros((4, 3), dtype=np.float32), label_ids=np.tile(np.float32([0.3, 0.4, 0.0]), (4, 1)))
    result = metrics.vertex_metrics(processor)(standardised)
    assert result["vertex_error_mean"] == pytest.approx(50, rel=1e-6)
    assert result["vertex_bias_y"] == pytest.approx(-40, rel=1e-6)
    assert all(type(v) is float for v in result.values())
    with pytest.raises(ValueError, match="no vertex statistics"):
        metrics.vertex_metrics(SimpleNamespace(statistics={}))


def test_reconstruction_metrics_of_a_trainer():
    """Against residuals written out; what is unknown, neutral-current for the lepton, or without missing momentum is left out."""
    rng = np.random.default_rng(4)
    visible, jet = (rng.normal((0, 0, 400), (5, 5, 50), (200, 3)) for _ in range(2))
    visible[:50, :2] = 0.1
    is_cc, charm = rng.random(200) < 0.7, rng.integers(0, 2, 200)
    jet[:10], charm[10:20] = np.nan, -100
    predicted = {"visible": visible * 1.1, "jet": rng.normal((0, 0, 300), size=(200, 3))}
    predicted["lepton"] = predicted["visible"] - predicted["jet"]
    logits, vertex = rng.normal(size=(200, 2)), rng.normal(size=(200, 3))
    missing = np.hypot(*predicted["visible"][:, :2].T)
    statistics = {"vertex": {"mean": [1.0, 2.0, 3.0], "std": [10.0, 10.0, 100.0]}}
    processor = SimpleNamespace(spec=SimpleNamespace(event_labels={"charm": ("none", "some")}), statistics=statistics)
    labels = {"charm": charm, "visible_momentum": visible, "jet_momentum": jet, "is_cc": is_cc, "vertex": np.full((200, 3), np.nan)}
    labels["vertex"][5] = vertex[5] + [0, 0, 0.5]
    predictions = (logits, *predicted.values(), missing, vertex)
    result = metrics.reconstruction_metrics(processor)(EvalPrediction(predictions, labels))
    assert result["visible_energy_bias"] == pytest.approx(np.median(np.linalg.norm(visible * 1.1, axis=1) / np.linalg.norm(visible, axis=1) - 1))
    cc = is_cc & (np.arange(200) >= 10)
    residual = np.linalg.norm(predicted["lepton"][cc], axis=1) / np.linalg.norm((visible - jet)[cc], axis=1) - 1
    assert result["lepton_energy_bias"] == pytest.approx(np.median(residual))
    assert result["lepton_energy_sigma68"] == pytest.approx(np.diff(np.quantile(residual, [0.16, 0.84]))[0] / 2)
    assert result["jet_energy_bias"] == pytest.approx(np.median(np.linalg.norm(predicted["jet"][10:], axis=1) / np.linalg.norm(jet[10:], axis=1) - 1))
    assert (result["missing_pt_bias"], result["missing_pt_sigma68"]) == (pytest.approx(0.1), pytest.approx(0, abs=1e-12))
    known = charm >= 0
    assert result["charm_macro_auroc"] == pytest.approx(sklearn_metrics.roc_auc_score(charm[known], (logits[:, 1] - logits[:, 0])[known]))
    assert result["vertex_error_mean"] == pytest.approx(50.0)
    momenta = metrics.momentum_metrics(processor)(EvalPrediction((*predicted.values(), missing), labels))
    assert momenta.items() <= result.items()
    assert "flavour_accuracy" not in result


def test_groups_are_resampled_as_one():
    """Ten copies of an event say no more than one: intervals are those of the events behind them."""
    p, labels = toy(60, digits=2)
    copies = np.repeat(np.arange(60), 10)
    for metric in CLASSIFICATION:
        one = metric().compute(predictions=p, references=labels)
        grouped = metric().compute(predictions=p[copies], references=labels[copies], groups=copies)
        naive = metric().compute(predictions=p[copies], references=labels[copies])
        for key in (k for k, v in one.items() if f"{k}_low" in one and not isinstance(v, dict)):
            width, of_groups, of_copies = (r[f"{key}_high"] - r[f"{key}_low"] for r in (one, grouped, naive))
            assert grouped[key] == pytest.approx(one[key])
            assert of_groups == pytest.approx(width, rel=0.15)
            assert of_copies < 0.6 * width
    with pytest.raises(ValueError, match="groups are given for 3 events, but there are 60"):
        metrics.MacroAUROC().compute(predictions=p, references=labels, groups=[0, 1, 2])


def test_resamples_of_groups_differ_in_size():
    p, labels = toy(200)
    groups = np.repeat([0, 1, 2, 3, 4], [100, 50, 25, 15, 10])
    shares = np.array([(p.argmax(1) == labels)[groups == g].mean() for g in range(5)])
    result = metrics.BalancedAccuracy().compute(predictions=p, references=labels, groups=groups, num_resamples=2000)
    assert shares.min() <= result["accuracy_low"] < result["accuracy"] < result["accuracy_high"] <= shares.max()


def test_vertex_errors_along_the_axes_and_far_away():
    true = np.zeros((4, 3))
    predicted = np.array([[1.0, 0, 0], [0, -2.0, 0], [0, 0, 3.0], [0, 0, 150.0]])
    result = metrics.VertexError().compute(predictions=predicted, references=true, num_resamples=0)
    assert result["vertex_beyond_100mm"] == 0.25
    for i, axis in enumerate("xyz"):
        assert result[f"vertex_q68_{axis}"] == pytest.approx(np.quantile(np.abs(predicted[:, i]), 0.68))


def test_detection_above_a_threshold_is_the_auroc_and_no_scale_changes_it():
    rng = np.random.default_rng(0)
    true = rng.exponential(1.0, 200)
    predicted = true + rng.normal(0, 1, 200)
    result = metrics.ThresholdAUROC().compute(predictions=predicted, references=true, threshold=1.0, num_resamples=100)
    assert result["detection_auroc"] == pytest.approx(sklearn_metrics.roc_auc_score(true > 1, predicted))
    assert result["detection_auroc_low"] < result["detection_auroc"] < result["detection_auroc_high"]
    assert result["num_above"] == (true > 1).sum()
    scaled = metrics.ThresholdAUROC().compute(predictions=0.01 * predicted, references=true, threshold=1.0, num_resamples=0)
    assert scaled["detection_auroc"] == pytest.approx(result["detection_auroc"])
    assert metrics.ThresholdAUROC().compute(predictions=np.zeros(200), references=true, threshold=1.0, num_resamples=0)["detection_auroc"] == 0.5
    assert metrics.ThresholdAUROC().compute(predictions=predicted, references=true, threshold=99.0, num_resamples=0)["detection_auroc"] is None
