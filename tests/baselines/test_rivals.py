"""Geometry finds the start of a track, summary numbers say what they claim, and trees learn from them; none of them looks at the truth."""

import dataclasses
import json

import numpy as np
import pytest
from toy_detector import SPEC, toy_event
from typer.testing import CliRunner

from nufm_hub import Event, Voxels, load_detector, read_events, sample_path, write_events
from nufm_hub.baselines import RIVALS
from nufm_hub.baselines.trees import GEOMETRY, MEAN, TREES, momentum_sizes, predict, tabulate
from nufm_hub.cli import app
from nufm_hub.events import geometric_vertex, summary_features
from nufm_hub.events.crop_files import CropSettings
from nufm_hub.events.start import find_start, first_layer

FASERCAL = load_detector("fasercal")


def track(slope=(0.05, -0.1), start=(24, 20, 75), length=60):
    """Voxel indices (N, 3) of a straight track in FASERCal, and where it starts in mm."""
    branch = FASERCAL.voxel_branches[0]
    z = np.arange(start[2], start[2] + length)
    depth = branch.to_mm(np.column_stack([np.zeros((length, 2), int), z]))[:, 2]
    origin = branch.to_mm(np.array([start]))[0]
    places = origin + np.column_stack([*(np.array(slope)[:, None] * (depth - depth[0])), depth - depth[0]])
    index, inside = branch.to_voxel(places)
    return index[inside], origin


def event(coordinates, energy, **truth):
    return Event("fasercal", {"3dcal": Voxels(coordinates, energy)}, truth=truth)


def test_the_first_of_several_layers():
    energy = np.zeros(20)
    energy[[2, 8, 9, 10, 11, 12]] = 7.0
    assert first_layer(energy) == 8  # a single layer before is passed over
    assert first_layer(energy, threshold=8.0) == 2  # no layer is on: the first with any energy
    energy[19] = 7.0
    energy[17:19] = 7.0
    energy[8:13] = 0.0
    assert first_layer(energy) == 2  # the last three layers are no four
    assert first_layer(np.zeros(20)) == 0


@pytest.mark.parametrize("slope", [(0.0, 0.0), (0.05, -0.1), (-0.2, 0.15)])
def test_the_start_of_a_track(slope):
    coordinates, origin = track(slope)
    start = find_start(coordinates, np.full(len(coordinates), 10.0), FASERCAL.voxel_branches[0])
    assert np.abs(start.position - origin).max() < 5.1  # half a voxel
    assert np.abs(start.slope - slope).max() < 0.02
    stray = np.array([[2, 2, 76], [3, 45, 80], [45, 3, 85]])
    energy = np.full(len(coordinates) + 3, 10.0)
    disturbed = find_start(np.concatenate([coordinates, stray]), energy, FASERCAL.voxel_branches[0])
    assert np.abs(disturbed.position - origin).max() < 5.1
    np.testing.assert_array_equal(geometric_vertex(event(coordinates, np.full(len(coordinates), 10.0)), FASERCAL), start.position)


def test_events_without_a_start():
    assert np.isnan(geometric_vertex(Event("fasercal"), FASERCAL)).all()
    assert np.isnan(geometric_vertex(event(np.zeros((0, 3)), np.zeros((0, 1))), FASERCAL)).all()
    assert np.isfinite(geometric_vertex(event([[3, 4, 199]], [1.0]), FASERCAL)).all()


def test_summary_numbers_of_a_track():
    coordinates, origin = track((0.0, 0.0))
    numbers = summary_features(event(coordinates, np.full(len(coordinates), 10.0)), FASERCAL)
    assert numbers["3dcal.energy"] == pytest.approx(np.log1p(600.0))
    assert numbers["3dcal.voxels"] == pytest.approx(np.log1p(60))
    assert numbers["3dcal.share>3"] == 1
    assert numbers["3dcal.share>30"] == 0
    assert numbers["3dcal.middle_x"] == pytest.approx(origin[0])
    assert numbers["3dcal.slice3"] == pytest.approx(np.log1p(5 * 10.0))  # layers 75 to 79 of the block from 60
    assert numbers["3dcal.start.block"] == 3
    assert numbers["3dcal.start.layer_in_block"] == 15
    assert numbers["3dcal.start.z>5"] == pytest.approx(origin[2])
    assert numbers["3dcal.start.radius"] == pytest.approx(0, abs=1e-9)
    assert numbers["3dcal.start.within15"] == pytest.approx(1)
    assert numbers["3dcal.start.energy_from4"] == pytest.approx(np.log1p(10.0))
    assert np.isnan(numbers["muon.p_0"])
    assert numbers["ecal.energy"] == 0


def test_summaries_of_all_events_have_the_same_names_and_no_truth():
    sample = [e for e, _ in zip(read_events(sample_path("fasercal")), range(10))]
    lacking = [Event("fasercal"), event(np.zeros((0, 3)), np.zeros((0, 1))), event([[0, 0, 0]], [0.0])]
    rows = [summary_features(e, FASERCAL) for e in [*sample, *lacking]]
    assert len({tuple(row) for row in rows}) == 1
    assert len(rows[0]) > 180
    assert all(np.isscalar(value) and not np.isinf(value) for row in rows for value in row.values())
    blind = [dataclasses.replace(e, truth={}, particles={}) for e in sample]
    blind = [dataclasses.replace(e, voxels={n: Voxels(v.coordinates, v.values) for n, v in e.voxels.items()}) for e in blind]
    for row, same in zip(rows, (summary_features(e, FASERCAL) for e in blind)):
        np.testing.assert_array_equal(list(row.values()), list(same.values()))
    first = sample[0].voxels["3dcal"]
    order = np.random.default_rng(0).permutation(len(first))
    shuffled = dataclasses.replace(sample[0], voxels=sample[0].voxels | {"3dcal": Voxels(first.coordinates[order], first.values[order])})
    np.testing.assert_allclose(list(summary_features(shuffled, FASERCAL).values()), list(rows[0].values()), rtol=1e-6, atol=1e-9)


def test_features_of_crops_are_taken_as_they_are():
    whole = next(read_events(sample_path("superfgd")))
    spec = load_detector("superfgd")
    settings = CropSettings.load("superfgd")
    own = settings.detector(spec)
    crop = next(iter(settings.crops(whole, spec, own)))
    numbers, branch = summary_features(crop, own), own.track_branch
    row = crop.tracks[branch.name][0]
    assert [numbers[f"{branch.name}.{name}_0"] for name in branch.features] == row.tolist()


@pytest.fixture(scope="module")
def tables():
    rng = np.random.default_rng(0)
    return tuple(tabulate([toy_event(rng, i) for i in range(count)], SPEC) for count in (80, 60))


@pytest.mark.parametrize("rival", list(TREES))
def test_trees_learn(rival, tables):
    train, test = tables
    found, sizes = predict(rival, train, test, SPEC), momentum_sizes(test.truth)
    assert (found["flavour"].argmax(axis=1) == test.truth["flavour"]).mean() > 0.9  # 0.5 by chance
    distance, constant = (np.linalg.norm(p - test.truth["vertex"], axis=1).mean() for p in (found["vertex"], train.truth["vertex"].mean(axis=0)))
    assert distance < 0.5 * constant
    error, spread = (np.abs(p - sizes["visible_momentum"]).mean() for p in (found["visible_momentum"], sizes["visible_momentum"].mean()))
    assert error < 0.5 * spread
    again = predict(rival, train, dataclasses.replace(test, truth={}), SPEC)  # the truth of test events is not looked at
    assert all(np.array_equal(found[name], again[name]) for name in found)


def test_always_the_same_and_no_training(tables):
    train, test = tables
    found = predict(MEAN, train, test, SPEC)
    np.testing.assert_allclose(found["flavour"], np.full((60, 2), 0.5))
    np.testing.assert_allclose(found["vertex"], np.tile(train.truth["vertex"].mean(axis=0), (60, 1)))
    nothing = train.select(np.zeros(0, dtype=int))
    geometry = predict(GEOMETRY, nothing, test, SPEC)
    assert geometry.keys() == {"vertex"}
    np.testing.assert_array_equal(geometry["vertex"], test.start)
    with pytest.raises(ValueError, match="unknown rival 'oracle': give one of mean, geometry"):
        predict("oracle", train, test, SPEC)


@pytest.mark.parametrize("rival", [r for r in RIVALS if r != GEOMETRY])
def test_what_training_events_lack(rival, tables):
    train, test = tables
    one = train.select(np.flatnonzero(train.truth["flavour"] == 1))
    np.testing.assert_array_equal(predict(rival, one, test, SPEC)["flavour"], np.tile([0.0, 1.0], (60, 1)))
    unknown = dict.fromkeys(("vertex", "visible_momentum", "jet_momentum"), np.full((80, 3), np.nan)) | {"flavour": np.full(80, -1)}
    assert predict(rival, dataclasses.replace(train, truth=train.truth | unknown), test, SPEC) == {}


def test_events_that_cannot_be_summarised():
    with pytest.raises(ValueError, match="no events of 'toy'"):
        tabulate([], SPEC)
    with pytest.raises(ValueError, match="belongs to detector 'fasercal'"):
        tabulate([Event("fasercal")], SPEC)


def test_study(tmp_path):
    rng = np.random.default_rng(1)
    for name, count in (("train", 60), ("test", 40)):
        write_events((toy_event(rng, i) for i in range(count)), tmp_path / f"{name}.parquet", SPEC)
    command = [
        "study", "baselines", "--events", tmp_path / "train.parquet", "--test", tmp_path / "test.parquet", "--out", tmp_path / "runs",
        "--results", tmp_path, "--num-resamples", "50", "--seed", "0", "--seed", "1", "--rival", "mean", "--rival", "geometry",
        "--rival", "boosted-trees",
    ]  # fmt: skip

    def go(*more):
        return CliRunner().invoke(app, list(map(str, [*command, *more])))

    done = go("--budget", "30", "--budget", "all")
    assert done.exit_code == 0, done.output
    held = json.loads((tmp_path / "baselines.json").read_text())
    assert held["labels"] == [30, 60]
    assert [(e["rival"], e["labels"], e["runs"]) for e in held["summary"]] == [
        ("mean", 30, 2), ("mean", 60, 2), ("boosted-trees", 30, 2), ("boosted-trees", 60, 2), ("geometry", 0, 1),
    ]  # fmt: skip
    most = held["summary"][3]["metrics"]
    assert most["flavour.macro_auroc"]["mean"] > 0.9
    assert most["missing_pt_above_1gev.detection_auroc"]["mean"] is not None
    assert held["data"]["train"]["events"] == 60
    runs = sorted(path.stat().st_mtime for path in (tmp_path / "runs").glob("*/result.json"))
    assert go("--budget", "30", "--budget", "all").exit_code == 0
    assert sorted(path.stat().st_mtime for path in (tmp_path / "runs").glob("*/result.json")) == runs  # nothing is done twice
    for wrong, message in (
        (("--budget", "61"), "from 1 to 60"),
        (("--rival", "oracle"), "unknown rivals ['oracle']"),
        (("--test", tmp_path / "train.parquet"), "among both events and test"),
    ):
        refused = go(*wrong)
        assert refused.exit_code == 2
        assert message in " ".join(refused.output.replace("│", " ").split())
