"""Sub-detectors taken away from a model: the same numbers as when each variant is evaluated by itself."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from nufm_hub import NuFMConfig, NuFMForEventReconstruction, NuFMForPreTraining, NuFMProcessor, read_events
from nufm_hub.cli import app
from nufm_hub.evaluation import evaluate
from nufm_hub.events import read_detector
from nufm_hub.studies.ablation import ABSENT, EMPTIED, Variant, emptied, study_ablation, variants
from nufm_hub.studies.tables import flatten


@pytest.fixture(scope="module")
def processor(toy_files):
    return NuFMProcessor.fit(read_events(toy_files["train"]), read_detector(toy_files["train"]))


@pytest.fixture(scope="module")
def checkpoint(processor, recipe, tmp_path_factory):
    """A model that was never trained, whose head starts large, so that its answers depend on every branch."""
    folder, options = tmp_path_factory.mktemp("model"), {"momentum_scales": processor.momentum_scales, "head_init_std": 0.5}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        NuFMForEventReconstruction(NuFMConfig.preset("nano", detector=processor.spec, **recipe["model"], **options)).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def study(checkpoint, toy_files, tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    rows = study_ablation(checkpoint, [toy_files["test"]], folder, batch_size=9, num_resamples=40)
    return folder, {(row["removed"], row["how"]): row for row in rows}


def test_every_branch_is_removed_and_what_differs_when_empty_is_emptied(processor, study):
    assert variants(processor.spec) == [Variant(), *map(Variant, ("cubes", "towers", "muon")), *(Variant(b, EMPTIED) for b in ("towers", "muon"))]
    assert list(study[1]) == [("nothing", ""), *((b, ABSENT) for b in ("cubes", "towers", "muon")), ("towers", EMPTIED), ("muon", EMPTIED)]


def test_each_row_is_the_evaluation_of_its_variant(checkpoint, toy_files, study):
    events = list(read_events(toy_files["test"]))
    without_voxels = [replace(e, voxels={"cubes": e.voxels["cubes"].select(np.zeros(0, dtype=np.int64))}) for e in events]
    expected = {
        ("nothing", ""): evaluate(checkpoint, toy_files["test"], num_resamples=40),
        ("towers", ABSENT): evaluate(checkpoint, toy_files["test"], num_resamples=40, absent=["towers"]),
        ("muon", EMPTIED): evaluate(checkpoint, [emptied(e, "muon") for e in events], num_resamples=40),
        # to a model, a voxel branch without voxels is one that is not there
        ("cubes", ABSENT): evaluate(checkpoint, without_voxels, num_resamples=40),
    }
    for key, result in expected.items():
        for name, value in flatten(result["metrics"]).items():
            found = study[1][key][name]
            assert found is None if value is None else found == pytest.approx(value, rel=1e-4, abs=1e-4), (key, name)


def test_changes_are_differences_with_paired_intervals(study):
    rows = study[1]
    whole = rows["nothing", ""]
    assert not any("_change" in name for name in whole)
    for key in (("cubes", ABSENT), ("towers", EMPTIED)):
        changed = {name: value for name, value in rows[key].items() if "_change" in name and value is not None}
        assert {"flavour.macro_auroc_change", "flavour.auroc_change_low.low", "vertex.vertex_error_mean_change_high"} <= changed.keys()
        for name in changed:
            if "_change_" not in name:
                metric = name.replace("_change", "")
                assert changed[name] == pytest.approx(rows[key][metric] - whole[metric], abs=1e-9)
    assert abs(rows["cubes", ABSENT]["vertex.vertex_error_mean_change"]) > 1e-3
    low, high = (rows["cubes", ABSENT][f"vertex.vertex_error_mean_change_{end}"] for end in ("low", "high"))
    assert low < rows["cubes", ABSENT]["vertex.vertex_error_mean_change"] < high


def test_share_of_empty_events(toy_files, study):
    events = list(read_events(toy_files["test"]))
    without = sum(not len(e.tracks["muon"]) for e in events) / len(events)
    assert 0 < without < 1
    assert study[1]["muon", ABSENT]["empty_share"] == study[1]["muon", EMPTIED]["empty_share"] == without
    assert study[1]["cubes", ABSENT]["empty_share"] == 0
    assert study[1]["nothing", ""]["empty_share"] is None


def test_files(checkpoint, study):
    folder, rows = study
    assert (folder / "ablation.png").read_bytes().startswith(b"\x89PNG")
    with (folder / "ablation.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == len(rows)
    assert float(table[1]["flavour.macro_auroc"]) == rows["cubes", ABSENT]["flavour.macro_auroc"]
    record = json.loads((folder / "ablation.json").read_text())
    assert record["checkpoint"] == checkpoint.name
    assert record["data"]["events"] == 24
    assert [(entry["removed"], entry["how"]) for entry in record["summary"]] == list(rows)
    change = record["summary"][1]["metrics"]["vertex.vertex_error_mean_change"]
    assert change["mean"] == rows["cubes", ABSENT]["vertex.vertex_error_mean_change"]
    assert change["low"] == [rows["cubes", ABSENT]["vertex.vertex_error_mean_change_low"]]
    assert record["empty_share"] == {name: rows[name, ABSENT]["empty_share"] for name in ("cubes", "towers", "muon")}
    assert str(checkpoint.parent) not in (folder / "ablation.json").read_text()


def test_models_without_events_are_refused(processor, recipe, toy_files, tmp_path):
    NuFMForPreTraining(NuFMConfig.preset("nano", detector=processor.spec, **recipe["model"])).save_pretrained(tmp_path / "p")
    processor.save_pretrained(tmp_path / "p")
    result = CliRunner().invoke(app, ["study", "ablation", str(tmp_path / "p"), "--test", str(toy_files["test"]), "--results", str(tmp_path / "r")])
    assert result.exit_code == 2
    assert "predicts" in result.output
    assert not (tmp_path / "r").exists()
