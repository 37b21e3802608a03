"""Metrics of single voxels against scikit-learn, and intervals against a bootstrap over events written out."""

from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, precision_score, roc_auc_score

from nufm_hub.detectors import DetectorSpec, VoxelLabel
from nufm_hub.metrics import VoxelClassification, voxel_metrics

KIND = VoxelLabel("kind", ("a", "b", "c"))


def events(num_events: int, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """Logits and soft labels of the voxels of some events; how well they agree differs from event to event."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(num_events):
        shares = rng.dirichlet((0.5, 0.4, 0.3), rng.integers(3, 60))
        made.append((rng.uniform(0, 4) * shares + rng.normal(size=shares.shape), shares))
    return made


def test_values_against_scikit_learn():
    counted, made = VoxelClassification(KIND), events(30)
    for logits, shares in made:
        counted.add(logits, shares)
    result = counted.compute(num_resamples=0)
    logits, truth = np.concatenate([m[0] for m in made]), np.concatenate([m[1] for m in made]).argmax(1)
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    predicted = probabilities.argmax(1)
    for k, name in enumerate(KIND.classes):
        assert result["auroc"][name] == pytest.approx(roc_auc_score(truth == k, probabilities[:, k]), abs=1e-5)
    assert result["macro_auroc"] == pytest.approx(roc_auc_score(truth, probabilities, multi_class="ovr"), abs=1e-5)
    assert result["accuracy"] == pytest.approx(accuracy_score(truth, predicted))
    assert result["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(truth, predicted))
    assert list(result["purity"].values()) == pytest.approx(precision_score(truth, predicted, average=None))
    assert (result["num_events"], result["num_voxels"]) == (30, len(truth))
    assert result["macro_auroc_low"] is None


def test_intervals_are_those_of_events_not_of_voxels():
    made = events(25)
    counted = VoxelClassification(KIND)
    for logits, shares in made:
        counted.add(logits, shares)
    result = counted.compute(num_resamples=500, seed=1)
    rng, drawn = np.random.default_rng(2), []
    for _ in range(500):
        chosen = [made[i] for i in rng.integers(0, 25, 25)]
        logits, truth = np.concatenate([m[0] for m in chosen]), np.concatenate([m[1] for m in chosen]).argmax(1)
        drawn.append((accuracy_score(truth, logits.argmax(1)), roc_auc_score(truth, _softmax(logits), multi_class="ovr")))
    low, high = np.quantile(drawn, (0.025, 0.975), axis=0)
    for i, name in enumerate(("accuracy", "macro_auroc")):
        width = high[i] - low[i]
        assert [result[f"{name}_low"], result[f"{name}_high"]] == pytest.approx([low[i], high[i]], abs=0.15 * width)
    assert counted.compute(num_resamples=500, seed=1) == result


def _softmax(logits: np.ndarray) -> np.ndarray:
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


def test_a_binary_label_and_what_carries_none():
    counted = VoxelClassification(VoxelLabel("ghost", ("ghost",)))
    counted.add(np.array([[-1.0], [2.0], [0.5], [np.nan], [3.0]]), np.array([[0.2], [0.9], [0.4], [0.9], [-100.0]]))
    counted.add(np.array([[1.0]]), np.array([[-100.0]]))
    result = counted.compute(num_resamples=0)
    assert result["auroc"] == {"no ghost": 1.0, "ghost": 1.0}
    assert result["efficiency"] == {"no ghost": 0.5, "ghost": 1.0}
    assert result["purity"] == {"no ghost": 1.0, "ghost": 0.5}
    assert (result["num_events"], result["num_voxels"], result["num_true"]) == (1, 3, {"no ghost": 2, "ghost": 1})
    assert VoxelClassification(KIND).compute() is None


def test_compute_metrics_of_padded_batches():
    """The Trainer fills rows of shorter batches with -100, in predictions as in labels; the model leaves NaN where nothing is to be said."""
    branch = {
        "kind": "voxels", "name": "cubes", "shape": [8, 8, 8], "voxel_size": [1, 1, 1], "origin": [0, 0, 0], "patch": [4, 4, 4], "window": [2, 2, 2],
        "labels": [{"name": "ghost", "classes": ["ghost"]}, {"name": "kind", "classes": list(KIND.classes)}],
    }  # fmt: skip
    compute = voxel_metrics(SimpleNamespace(spec=DetectorSpec.from_dict({"name": "toy", "branches": [branch]})))
    made, counted = events(6, seed=3), VoxelClassification(KIND)
    logits, labels = (np.full((6, 70, 4), -100.0, dtype=np.float32) for _ in range(2))
    for i, (of_event, shares) in enumerate(made):
        counted.add(of_event.astype(np.float32), shares.astype(np.float32))
        logits[i, : len(shares), 1:], labels[i, : len(shares), 1:] = of_event, shares
        logits[i, len(shares) : 64] = np.nan
    expected = counted.compute(num_resamples=0)
    kept = ("macro_auroc", "accuracy", "balanced_accuracy")
    assert compute(SimpleNamespace(predictions=logits, label_ids=labels)) == {f"kind_{key}": expected[key] for key in kept}
