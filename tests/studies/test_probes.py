"""Probes against what scikit-learn or a formula says of the same numbers."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from nufm_hub.studies.probes import NEIGHBOURS, linear_classes, linear_values, nearest_classes, nearest_values


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_linear_probe_is_logistic_regression_on_standardised_features(rng):
    labels = rng.integers(0, 3, 200)
    x = rng.normal(size=(200, 5)) * [1, 1, 1000, 0.001, 1] + np.array([[0, 0, 0, 0, 0], [2, 0, 0, 0, 0], [0, 2, 0, 0, 0]])[labels]
    found = linear_classes(x[:150], labels[:150], x[150:], 4)
    scaler = StandardScaler().fit(x[:150])
    expected = LogisticRegression(C=found.chosen, max_iter=5000).fit(scaler.transform(x[:150]), labels[:150]).predict_proba(scaler.transform(x[150:]))
    np.testing.assert_allclose(found.predictions[:, :3], expected, atol=1e-6)
    assert (found.predictions[:, 3] == 0).all()  # no training event of this class
    assert (found.predictions.argmax(1) == labels[150:]).mean() > 0.7


def test_noise_asks_for_strong_regularisation_and_a_clear_rule_for_little(rng):
    """Labels that follow one of 60 columns a little, and labels that are a hyperplane through few columns."""
    x = rng.normal(size=(300, 60))
    noisy = (x[:, 0] * 0.7 + rng.normal(size=300) > 0).astype(int)
    exact = (x[:, :4].sum(1) > 0).astype(int)
    strong, weak = (linear_classes(x[:200], labels[:200], x[200:], 2).chosen for labels in (noisy, exact))
    assert strong <= 0.1 < weak


def test_ridge_finds_each_columns_own_penalty(rng):
    x = rng.normal(size=(300, 40))
    values = np.stack([x @ np.arange(40), x[:, 0] * 0.3 + 5 * rng.normal(size=300)], axis=1) + np.array([700.0, -20.0])
    found = linear_values(x[:200], values[:200], x[200:])
    assert found.chosen[0] < found.chosen[1]
    np.testing.assert_allclose(found.predictions[:, 0], values[200:, 0], atol=1.0)
    assert np.abs(found.predictions[:, 1] + 20).max() < 4  # no more than the mean and a little


def test_neighbours_vote_by_inverse_distance():
    """Events on a line: two groups, and a wave that only the nearest few resolve."""
    x = np.arange(60.0)[:, None]
    labels = np.arange(60) // 30
    found = nearest_classes(x, labels, np.array([[10.2], [50.4]]), 2)
    assert found.predictions.argmax(1).tolist() == [0, 1]
    assert found.chosen in NEIGHBOURS

    values = np.stack([np.sin(np.arange(60) / 3), np.zeros(60), np.zeros(60)], axis=1)
    found = nearest_values(x, values, np.array([[20.25]]))
    assert found.chosen == 3
    nearest = np.array([20, 21, 19])
    weights = 1 / np.abs(nearest - 20.25)
    assert found.predictions[0, 0] == pytest.approx((weights * values[nearest, 0]).sum() / weights.sum())


def test_smooth_values_in_noise_want_many_neighbours(rng):
    x = np.linspace(0, 1, 400)[:, None]
    values = np.concatenate([x + rng.normal(0, 1, (400, 1)), np.zeros((400, 2))], axis=1)
    assert nearest_values(x, values, x[:3]).chosen >= 50


def test_a_class_of_two_events_is_no_obstacle(rng):
    labels = np.array([0] * 60 + [1] * 58 + [2] * 2)
    x = rng.normal(size=(120, 3)) + 5 * np.eye(3)[labels]
    for fit in (linear_classes, nearest_classes):
        probabilities = fit(x, labels, x, 3).predictions
        np.testing.assert_allclose(probabilities.sum(1), 1)
        assert probabilities[-1].argmax() == 2


def test_the_seed_decides_the_folds(rng):
    x, labels = rng.normal(size=(80, 4)), rng.integers(0, 2, 80)
    first, second = (nearest_classes(x, labels, x[:5], 2, seed=3) for _ in range(2))
    assert first.chosen == second.chosen
    assert (first.predictions == second.predictions).all()
