"""Rivals in a study: the events of a training with the same labels and seed, and differences event by event."""

import json

import numpy as np
import pytest
from toy_detector import SPEC

from nufm_hub.baselines.trees import predict
from nufm_hub.evaluation.scores import event_differences, event_scores, load_predictions, save_predictions
from nufm_hub.studies.comparison import Study
from nufm_hub.studies.fine_tuning import Events
from nufm_hub.studies.plan import load_plan
from nufm_hub.studies.rivals import Tables, compare_with_rivals, predict_and_score
from nufm_hub.studies.runs import StudyRun, execute
from nufm_hub.tasks import get_task
from nufm_hub.training.data import EventSubset, open_task


@pytest.fixture
def tables(toy_files):
    return Tables("reconstruction", *(Events.open([toy_files[name]], "reconstruction") for name in ("train", "test")))


def test_rivals_see_the_events_that_a_training_has(tables, toy_files):
    data = EventSubset(open_task(get_task("reconstruction"), [toy_files["train"]]), 10, seed=3)
    wanted = [data[i].truth["vertex"] for i in range(10)]
    np.testing.assert_array_equal(tables.subset(10, 3).truth["vertex"], wanted)
    assert len(tables.test()) == 24


@pytest.mark.parametrize(("task", "quantities"), [("flavour", {"flavour"}), ("vertex", {"vertex", "vertex_baseline"})])
def test_rivals_answer_what_the_task_asks(task, quantities, tables, tmp_path):
    run = StudyRun("n10-seed0-mean", {"task": task, "rival": "mean", "labels": 10, "seed": 0})
    (record,) = execute([run], tmp_path, predict_and_score(tables, SPEC, 10), ["predictions.npz"])
    assert set(record["result"]["evaluation"]["metrics"]) == quantities
    assert set(load_predictions(tmp_path / run.name / "predictions.npz")) == quantities - {"vertex_baseline"}


def test_differences_are_those_of_the_scores(tables):
    train, test = tables.subset(40, 0), tables.test()
    trees, mean = (predict(name, train, test, SPEC) for name in ("extra-trees", "mean"))
    scores = [event_scores(p, test.truth, SPEC, np.zeros(3), num_resamples=0) for p in (trees, mean)]
    found = event_differences(trees, mean, test.truth, SPEC, num_resamples=50)
    assert set(found) == set(scores[0]) - {"vertex_baseline"} >= {"flavour", "vertex", "visible_momentum", "missing_pt_above_1gev"}
    same = event_differences(mean, mean, test.truth, SPEC, num_resamples=50)
    for column in ("flavour.macro_auroc", "vertex.vertex_error_mean", "visible_momentum.resolution68", "missing_pt_above_1gev.detection_auroc"):
        quantity, metric = column.split(".")
        assert found[quantity][metric] == pytest.approx(scores[0][quantity][metric] - scores[1][quantity][metric])
        assert found[quantity][f"{metric}_low"] <= found[quantity][metric] <= found[quantity][f"{metric}_high"]
        assert {same[quantity][metric + end] for end in ("", "_low", "_high")} == {0}


def test_trainings_against_rivals_of_the_same_labels_and_seed(tables, tmp_path):
    test, records = tables.test(), []
    for seed, rival, offset in ((0, None, 0.0), (0, "geometry", 3.0), (1, "geometry", 0.0)):
        name = f"seed{seed}-{rival}"
        (tmp_path / name).mkdir()
        save_predictions(tmp_path / name / "predictions.npz", {"vertex": test.truth["vertex"] + offset})
        settings = {"labels": 10, "seed": seed, "initialisation": rival or "scratch"} | ({"rival": rival} if rival else {})
        records.append({"name": name, "settings": settings, "result": {"evaluation": {}}})
    found = {entry["metric"]: entry for entry in compare_with_rivals(records, tmp_path, tables, SPEC, 20)}
    mean = found["vertex.vertex_error_mean"]
    assert (mean["initialisation"], mean["rival"], mean["labels"], mean["seeds"]) == ("scratch", "geometry", 10, [0])
    assert mean["difference"] == pytest.approx([-3 * 3**0.5])
    assert (mean["better_outside"], mean["worse_outside"]) == (1, 0)
    json.dumps(list(found.values()), allow_nan=False)


def test_unfit_rivals_are_named():
    plan = load_plan("data-efficiency")
    with pytest.raises(ValueError, match=r"rivals \['stars'\]: give some of mean, geometry"):
        Study("flavour", "x", {"scratch": None}, [8], [0], plan, rivals=["stars"])
    with pytest.raises(ValueError, match="none of them the name of an initialisation"):
        Study("flavour", "x", {"mean": None}, [8], [0], plan, rivals=["mean"])
    with pytest.raises(ValueError, match="say nothing of what 'voxels' learns"):
        Study("voxels", "x", {"scratch": None}, [8], [0], plan, rivals=["mean"])
