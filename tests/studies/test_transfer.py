"""The whole transfer study on a toy chamber; its counts of steps and intervals by hand; crosstalk on simulated particles."""

import csv
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from nufm_hub import (
    EventDataset,
    NuFMConfig,
    NuFMForEventParticleID,
    NuFMForPreTraining,
    TransferReport,
    load_detector,
    read_events,
    sample_path,
    write_events,
)
from nufm_hub.cli import app
from nufm_hub.events.crop_files import CropSettings
from nufm_hub.studies import fine_tuning
from nufm_hub.studies.transfer import TransferPlan, outside_intervals, steps_to_reference

_LOADED = importlib.util.spec_from_file_location("chamber", Path(__file__).parents[1] / "training" / "chamber.py")
chamber = importlib.util.module_from_spec(_LOADED)
_LOADED.loader.exec_module(chamber)


def plan(folder, **changes):
    (folder / "recipe.json").write_text(json.dumps(chamber.RECIPE | {"model": chamber.SIZES | {"window_depths": [1]}}))
    data = {
        "task": "event-particles",
        "crops": {"shape": [16, 16, 16], "patch": [4, 4, 4], "window": [2, 2, 2], "fit": "scale", "group_by": "event"},
        "fractions": [0.5, 0.2, 0.3],
        "evaluations": 4,
        "training": {
            "recipe": str(folder / "recipe.json"),
            "epochs": {"5": 2, "20": 1},
            "tuning": {"base_learning_rates": [0.1, 0.3], "epoch_factors": [1], "budgets": [8], "seeds": [77]},
        },
    }
    (folder / "plan.json").write_text(json.dumps(data | changes))
    return str(folder / "plan.json")


@pytest.fixture
def command(tmp_path):
    rng = np.random.default_rng(0)
    write_events((chamber.image(rng, i) for i in range(40)), tmp_path / "images.parquet", chamber.SPEC)
    torch.manual_seed(1)
    NuFMForPreTraining(NuFMConfig(detector="fasercal", **chamber.SIZES)).save_pretrained(tmp_path / "encoder")
    return [
        *("study", "transfer", "chamber", "--cpu", "--plan", plan(tmp_path), "--events", str(tmp_path / "images.parquet")),
        *("--initialisation", "scratch", "--initialisation", f"mae={tmp_path / 'encoder'}", "--share", "25%", "--share", "100%", "--seed", "3"),
        *("--rival", "mean", "--out", str(tmp_path / "runs"), "--results", str(tmp_path / "results")),
    ]


def test_from_images_to_figures(command, tmp_path, monkeypatch, printed):
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "4 of 4 trials, 6 of 6 runs" in result.output
    assert "mae: " in result.output
    assert "100.0% of the new encoder" in result.output

    summary = json.loads((tmp_path / "results" / "transfer-chamber.json").read_text())
    with open(tmp_path / "results" / "transfer-chamber.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    images = summary["data"]["train"]["events"]
    assert 10 < images < 30
    assert [(r["initialisation"], int(r["labels"])) for r in rows] == [
        (name, labels) for labels in (round(images / 4), images) for name in ("scratch", "mae", "mean")
    ]
    versus = {(e["initialisation"], e["rival"], e["labels"]) for e in summary["against_rivals"] if e["metric"] == "particle.macro_auroc"}
    assert versus == {(name, "mean", labels) for labels in (round(images / 4), images) for name in ("scratch", "mae")}
    rows = [row for row in rows if row["initialisation"] != "mean"]
    assert {"particle.accuracy", "particle.macro_auroc_low", "particle.efficiency.track", "particle.error_detection_auroc"} <= rows[0].keys()
    assert summary["carried"].keys() == {"mae"}
    assert summary["carried"]["mae"]["fraction"] == 1
    for row in rows:
        record = json.loads((tmp_path / "runs" / "study" / row["run"] / "result.json").read_text())
        assert len(record["result"]["training"]["curve"]) == min(4, int(row["steps"]))
        assert record["settings"].get("transfer", False) == (row["initialisation"] == "mae")
        model = tmp_path / "runs" / "study" / row["run"] / "model"
        assert NuFMForEventParticleID.from_pretrained(model).config.spec.name == "chamber-crop"
        assert (model / "transfer_report.json").exists() == (row["initialisation"] == "mae")
    assert TransferReport.load(model).source == "encoder"
    assert {p.name for p in (tmp_path / "results").glob("*.png")} == {f"transfer-chamber-{f}.png" for f in ("curves", "classes", "loss")}
    assert [e["labels"] for e in summary["steps_to_reference_loss"]] == [round(images / 4)] * 2 + [images] * 2

    # No image is in two splits; once more, nothing is trained and the same comes out.
    held = [{c.provenance["index"] for c in EventDataset(tmp_path / "runs" / "crops" / s)} for s in ("train", "validation", "test")]
    assert sum(map(len, held)) == len(set.union(*held)) == 40
    monkeypatch.setattr(fine_tuning, "train", None)
    before = (tmp_path / "results" / "transfer-chamber.json").read_text()
    assert CliRunner().invoke(app, command).exit_code == 0
    assert (tmp_path / "results" / "transfer-chamber.json").read_text() == before

    plan(tmp_path, fractions=[0.4, 0.3, 0.3])
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2
    assert "made with other fractions" in printed(result)

    # Events of the same name that come from another simulation are other events.
    plan(tmp_path)
    (events_of(command) / "provenance.json").write_text(json.dumps({"simulation": "chamber", "seed": 2}))
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2
    assert "made with other events" in printed(result)


def events_of(command: list[str]) -> Path:
    place = Path(command[command.index("--events") + 1])
    return place if place.is_dir() else place.parent


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "vertex"}, "task 'vertex' of a transfer is one of"),
        ({"evaluations": -1}, "evaluations=-1"),
        ({"fractions": [0.5, 0.5, 0]}, "must be the three positive shares"),
    ],
)
def test_plans_that_cannot_work_are_refused(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        TransferPlan.load(plan(tmp_path, **changes))


def test_trainings_without_a_look_at_the_validation_loss(command, tmp_path):
    plan(tmp_path, evaluations=0)
    result = CliRunner().invoke(app, [*command, "--tune-learning-rate", "0.1", "--seed", "0", "--share", "30%"])
    assert result.exit_code == 0, result.output
    summary = json.loads((tmp_path / "results" / "transfer-chamber.json").read_text())
    assert summary["steps_to_reference_loss"] == []
    assert not (tmp_path / "results" / "transfer-chamber-loss.png").exists()


def test_nothing_to_summarise(command, tmp_path, printed):
    result = CliRunner().invoke(app, [*command, "--summarise"])
    assert result.exit_code == 2
    assert "holds nothing that could be summarised" in printed(result)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--share", "200%"], "budget '200%'"),
        (["--initialisation", "b=nowhere/at-all"], "nowhere/at-all is neither"),
        (["--plan", "data-efficiency"], "does not hold what a plan of a transfer must"),
        (["--set", "colour=1"], "colour"),
        (["--events", "nowhere"], "nowhere matches no parquet file"),
    ],
)
def test_bad_input_is_named_before_anything_is_trained(options, message, command, tmp_path, printed):
    result = CliRunner().invoke(app, [*command, *options])
    assert result.exit_code == 2
    assert message in printed(result)
    assert not list((tmp_path / "runs").glob("study/*"))


@pytest.mark.parametrize("name", ["superfgd", "superfgd-voxels", "pilarnet"])
def test_packaged_plans(name):
    loaded = TransferPlan.load(f"transfer-{name}")
    detector = name.split("-")[0]
    crops = CropSettings.load(detector, **loaded.crops)
    assert crops.features == (name != "superfgd-voxels")
    assert sum(loaded.fractions) == pytest.approx(1)
    for labels in loaded.training.epochs:
        recipe = loaded.training.recipe_for("mae", labels, loaded.training.tuning.grid[0])
        assert recipe.epochs == loaded.training.epochs[labels]
    # What the recipe does to crops, their features can follow.
    event = next(
        c for e in read_events(sample_path(detector)) for c in crops.crops(e, load_detector(detector), crops.detector(load_detector(detector)))
    )
    spec = crops.detector(load_detector(detector))
    turned = [recipe.make_augmentation()(event, spec, np.random.default_rng(seed)) for seed in range(8)]
    assert len({t.voxels[spec.voxel_branches[0].name].coordinates.tobytes() for t in turned}) > 2


def run(initialisation, seed, curve):
    return {"settings": {"initialisation": initialisation, "labels": 10, "seed": seed}, "result": {"training": {"curve": curve}}}


def test_steps_to_the_loss_of_the_reference_by_hand():
    records = [
        run("scratch", 0, [[10, 2.0], [20, 1.0], [30, 0.5], [40, 0.8]]),  # gets worse again
        run("scratch", 1, [[10, 2.0], [20, 1.5], [30, 1.2], [40, 1.0]]),
        run("mae", 0, [[10, 0.7], [20, 0.6], [30, 0.6], [40, 0.6]]),
        run("mae", 1, [[10, 1.5], [20, 0.9], [30, None], [40, 0.7]]),
        run("mae", 2, [[10, 0.1]]),  # nothing to compare with
    ]
    final, lowest = steps_to_reference(records)
    assert (final["target"], final["runs"], final["reached"]) == ("final", 2, 2)
    # Seed 0: 0.8 at step 10, for scratch first at 30. Seed 1: 1.0 at step 20, for scratch at 40.
    assert final["steps"]["mean"] == 15
    assert final["reference_steps"]["mean"] == 35
    assert final["share"]["mean"] == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert (lowest["target"], lowest["reached"], lowest["share"]["mean"]) == ("lowest", 1, 0.5)


def test_seeds_outside_the_interval_of_the_reference_by_hand():
    def row(initialisation, seed, low, high, error=(0.1, 0.2)):
        values = {"particle.accuracy": (low + high) / 2, "particle.accuracy_low": low, "particle.accuracy_high": high}
        keys = ("particle.expected_calibration_error", "particle.expected_calibration_error_low", "particle.expected_calibration_error_high")
        return {"initialisation": initialisation, "labels": 10, "seed": seed} | values | dict(zip(keys, (sum(error) / 2, *error)))

    rows = [row("scratch", 0, 0.5, 0.6), row("scratch", 1, 0.5, 0.6), row("mae", 0, 0.61, 0.7, (0.3, 0.4)), row("mae", 1, 0.59, 0.7)]
    accuracy, calibration = outside_intervals(rows)
    assert accuracy == {"initialisation": "mae", "labels": 10, "metric": "particle.accuracy", "seeds": 2, "better": 1, "worse": 0}
    assert (calibration["better"], calibration["worse"]) == (0, 1)


def test_crosstalk_without_models(tmp_path, printed):
    result = CliRunner().invoke(app, ["study", "crosstalk", "--models", str(tmp_path), "--out", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert "no finished models: run nufm study transfer superfgd first" in printed(result)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_crosstalk_of_simulated_particles(tmp_path, printed):
    def invoke(*options):
        result = CliRunner().invoke(app, list(options))
        assert result.exit_code == 0, result.output
        return result.output

    invoke("simulate", "superfgd", "--events", "60", "--seed", "5", "--shard-size", "30", "--out", str(tmp_path / "events"))
    training = {
        "recipe": str(tmp_path / "recipe.json"),
        "epochs": {"30": 1},
        "tuning": {"base_learning_rates": [0.1], "epoch_factors": [1], "budgets": [8], "seeds": [77]},
    }
    crops = {"shape": [48, 48, 40], "features": False}
    path = plan(tmp_path, task="particle", crops=crops, evaluations=1, training=training)
    study = ("--plan", path, "--events", str(tmp_path / "events"), "--share", "5", "--share", "100%", "--seed", "0", "--initialisation", "scratch")
    places = ("--results", str(tmp_path / "results"), "--cpu")
    invoke("study", "transfer", "superfgd", *study, "--out", str(tmp_path / "runs"), *places)
    command = ["study", "crosstalk", "--models", str(tmp_path / "runs"), "--level", "0.03", "--level", "0.3", "--out", str(tmp_path / "crosstalk")]
    assert "2 of 2 runs" in invoke(*command, *places)
    summary = json.loads((tmp_path / "results" / "crosstalk.json").read_text())
    assert summary["same_as_test_set_at_training_level"] is True
    most = len(EventDataset(tmp_path / "runs" / "crops" / "train"))
    assert {(e["labels"], e["crosstalk"]) for e in summary["summary"]} == {(most, 0.03), (most, 0.3)}
    assert (tmp_path / "results" / f"crosstalk-n{most}.png").exists()

    few, many = (list(EventDataset(tmp_path / "crosstalk" / "crops" / "*" / f"crosstalk-{c}.parquet")) for c in ("0.03", "0.3"))
    same = {c.provenance["index"]: c for c in many}
    pairs = [(c, same[c.provenance["index"]]) for c in few if c.provenance["index"] in same]
    assert len(pairs) > 10
    assert all(np.array_equal(a.truth["particle_momentum"], b.truth["particle_momentum"]) for a, b in pairs)
    assert sum(len(b.voxels["cubes"]) for _, b in pairs) > 1.5 * sum(len(a.voxels["cubes"]) for a, _ in pairs)
    result = CliRunner().invoke(app, [*command, "--labels", "7", *places])
    assert result.exit_code == 2
    assert f"no finished models with [7] labels, only with [5, {most}]" in printed(result)
