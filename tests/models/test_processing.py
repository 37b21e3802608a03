"""The processor: statistics that are fitted, saved and checked; packing; predictions back in physical units."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoFeatureExtractor, AutoProcessor

from nufm_hub import models  # registers the classes  # noqa: F401
from nufm_hub.detectors import DetectorSpec, load_detector
from nufm_hub.events import Event, Voxels
from nufm_hub.models.common.processing import IGNORED
from nufm_hub.models.nufm import NuFMProcessor

SPEC = load_detector("fasercal")


def make_event(rng: np.random.Generator, voxels: int = 50, tracks: int = 2, index: int = 0) -> Event:
    cubes = np.unique(rng.integers(0, (48, 48, 200), (voxels, 3)), axis=0)
    tiles = np.unique(rng.integers(0, (18, 18, 40), (voxels // 5 + 1, 3)), axis=0)
    labels = {
        "ghost": (rng.random(len(cubes)) < 0.3).astype(np.float32),
        "hierarchy": np.eye(3, dtype=np.float32)[rng.integers(0, 3, len(cubes))],
        "category": np.eye(3, dtype=np.float32)[rng.integers(0, 3, len(cubes))],
    }
    return Event(
        "fasercal",
        {"3dcal": Voxels(cubes, rng.lognormal(0.5, 1.0, len(cubes)), labels), "ahcal": Voxels(tiles, rng.lognormal(1.0, 1.0, len(tiles)))},
        {"ecal": rng.lognormal(3.0, 1.0, (5, 5)).astype(np.float32)},
        {"muon": rng.normal(0.0, 30.0, (tracks, 11)).astype(np.float32)},
        {"flavour": int(rng.integers(6)), "vertex": rng.normal(0, (20, 30, 400))},
        provenance={"seed": 7, "index": index},
    )


@pytest.fixture(scope="module")
def events() -> list[Event]:
    rng = np.random.default_rng(0)
    return [make_event(rng, voxels=20 + 40 * i, tracks=i % 4, index=i) for i in range(20)]


@pytest.fixture(scope="module")
def processor(events) -> NuFMProcessor:
    return NuFMProcessor.fit(iter(events), "fasercal")


def test_fitted_features_have_zero_mean_and_unit_width_in_every_branch(events, processor):
    batch = processor(events)
    for branch in (0, 1):
        z = batch["voxel_features"][batch["voxel_branch"] == branch][:, 0]
        assert z.mean().abs() < 1e-4
        assert z.std(unbiased=False) == pytest.approx(1, abs=1e-3)
    assert batch["image_features"].mean(0).abs().max() < 1e-4
    tracks = batch["track_features"][batch["track_mask"]]
    assert tracks.mean(0).abs().max() < 1e-4
    assert tracks.std(0, unbiased=False).sub(1).abs().max() < 1e-3


def test_transform_is_the_published_formula(events, processor):
    s = processor.statistics["voxels"]["3dcal"]
    energies = np.concatenate([e.voxels["3dcal"].energy for e in events]).astype(np.float64)
    assert s["k"][0] == pytest.approx(np.median(energies))
    u = np.log1p(energies / s["k"][0])
    assert (s["mean"][0], s["std"][0]) == (pytest.approx(u.mean()), pytest.approx(u.std()))
    z = processor(events[3])["voxel_features"][0, :5, 0].numpy()
    q = events[3].voxels["3dcal"].energy[:5]
    assert z == pytest.approx((np.log1p(q / s["k"][0]) - s["mean"][0]) / s["std"][0], abs=1e-5)


def test_packing(events, processor):
    batch = processor(events[:3])
    longest = max(sum(len(v) for v in e.voxels.values()) for e in events[:3])
    assert batch["voxel_coordinates"].shape == (3, longest, 3)
    assert batch["branch_mask"].all()
    for row, event in enumerate(events[:3]):
        n, m = len(event.voxels["3dcal"]), len(event.voxels["ahcal"])
        assert batch["voxel_branch"][row].tolist() == [0] * n + [1] * m + [-1] * (longest - n - m)
        assert (batch["voxel_coordinates"][row, :n].numpy() == event.voxels["3dcal"].coordinates).all()
        assert batch["track_mask"][row].sum() == len(event.tracks["muon"])
    columns = [SPEC.track_branch.features.index(n) for n in SPEC.track_branch.model_features]
    s = processor.statistics["tracks"]["muon"]
    raw = events[1].tracks["muon"][0, columns]
    k, mean, std = (np.asarray(s[key])[columns] for key in ("k", "mean", "std"))
    expected = (np.sign(raw) * np.log1p(np.abs(raw) / k) - mean) / std
    assert batch["track_features"][1, 0].numpy() == pytest.approx(expected, abs=1e-5)


def test_absent_is_not_empty(events, processor):
    bare = Event("fasercal", {"3dcal": events[0].voxels["3dcal"]})
    nothing = Voxels(np.zeros((0, 3)), np.zeros((0, 1)))
    empty = Event("fasercal", {"3dcal": events[0].voxels["3dcal"], "ahcal": nothing}, tracks={"muon": np.zeros((0, 11))})
    batch = processor([bare, empty])
    assert batch["branch_mask"].tolist() == [[True, False, False, False], [True, True, False, True]]
    assert not batch["track_mask"].any()
    nothing = processor(Event("fasercal"))
    assert nothing["voxel_branch"].tolist() == [[-1]]
    assert not nothing["branch_mask"].any()


def test_labels(events, processor):
    assert processor(events, labels="flavour")["labels"].tolist() == [e.truth["flavour"] for e in events]
    vertices = processor(events, labels="vertex")["labels"]
    assert vertices.mean(0).abs().max() < 1e-5
    back = processor.post_process_vertex(SimpleNamespace(logits=vertices))
    assert np.abs(back - np.stack([e.truth["vertex"] for e in events])).max() < 1e-3
    voxel = processor(events[:2], labels="voxels")["voxel_labels"]
    held = events[0].voxels["3dcal"]
    n = len(held)
    assert (voxel[0, :n, 0].numpy() == held.labels["ghost"][:, 0]).all()
    assert (voxel[0, :n, 4:7].numpy() == held.labels["category"]).all()
    assert (voxel[0, n:] == IGNORED).all()  # AHCAL and padding
    unlabelled = Event("fasercal", {"3dcal": Voxels(held.coordinates, held.values, {"ghost": np.full(n, np.nan), "hierarchy": np.zeros((n, 3))})})
    assert (processor(unlabelled, labels="voxels")["voxel_labels"] == IGNORED).all()


def test_predictions_go_back_to_the_raw_hits(processor):
    voxels = Voxels([[1, 2, 3], [4, 5, 6]], [1.0, 2.0], voxel_of_hit=np.array([1, 0, 1]))
    event = Event("fasercal", {"3dcal": voxels, "ahcal": Voxels([[0, 0, 0]], [3.0])})
    values = torch.tensor([[[10.0], [20.0], [30.0], [0.0]]])
    back = processor.post_process_voxels(values, [event])[0]
    assert back["3dcal"].ravel().tolist() == [20.0, 10.0, 20.0]
    assert back["ahcal"].ravel().tolist() == [30.0]


def test_classification_names_classes(processor):
    result = processor.post_process_classification(SimpleNamespace(logits=torch.tensor([[0.0, 3.0, 0, 0, 0, 0]])))[0]
    assert result["label"] == "numu_cc"
    assert sum(result["probabilities"].values()) == pytest.approx(1, abs=1e-6)
    with pytest.raises(ValueError, match="4 logits"):
        processor.post_process_classification(SimpleNamespace(logits=torch.zeros(1, 4)))


def test_save_and_load(processor, events, tmp_path):
    processor.save_pretrained(tmp_path)
    for loaded in (NuFMProcessor.from_pretrained(tmp_path), AutoFeatureExtractor.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)):
        assert loaded.to_dict() == processor.to_dict()
        for key, value in processor(events[:2], labels="voxels").items():
            assert torch.equal(loaded(events[:2], labels="voxels")[key], value)


def test_altered_detector_is_refused_on_loading(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    data = json.loads(path.read_text())
    data["detector"]["branches"][0]["voxel_size"] = [5, 5, 5]
    data["detector"]["branches"][0]["blocks"] = None
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match="fit again"):
        NuFMProcessor.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda s: s.clear(), "no statistics"),
        (lambda s: s["voxels"].clear(), "first branch '3dcal'"),
        (lambda s: s["voxels"]["3dcal"].update(std=[0.0]), "std for branch '3dcal'"),
        (lambda s: s["voxels"]["3dcal"].update(mean=[float("nan")]), "mean for branch '3dcal'"),
        (lambda s: s["image"]["ecal"].update(k=[1.0]), "k for branch 'ecal'"),
        (lambda s: s["tracks"]["muon"].pop("mean"), "mean for branch 'muon'"),
    ],
)
def test_bad_statistics_are_refused(processor, damage, message):
    statistics = json.loads(json.dumps(processor.statistics))
    damage(statistics)
    with pytest.raises(ValueError, match=message):
        NuFMProcessor("fasercal", statistics)


def test_bad_events_are_named(processor, events):
    good = events[2]

    def changed(**voxels):
        v = good.voxels["3dcal"]
        new = Voxels(voxels.get("coordinates", v.coordinates), voxels.get("values", v.values))
        return Event("fasercal", {"3dcal": new}, provenance=good.provenance)

    values = good.voxels["3dcal"].values.copy()
    values[4] = np.nan
    with pytest.raises(ValueError, match=r"seed 7 index 2, branch '3dcal': nan at row 4"):
        processor(changed(values=values))
    values[4] = -1
    with pytest.raises(ValueError, match=r"energy -1.0 MeV \(row 4\)"):
        processor(changed(values=values))
    outside = good.voxels["3dcal"].coordinates.copy()
    outside[3, 2] = 200
    with pytest.raises(ValueError, match=r"row 3, 1 in all.*outside the grid \(48, 48, 200\)"):
        processor(changed(coordinates=outside))
    with pytest.raises(ValueError, match="'superfgd'"):
        processor(Event("superfgd"))
    with pytest.raises(ValueError, match="no events"):
        processor([])
    with pytest.raises(ValueError, match="no truth 'flavour'"):
        processor(Event("fasercal"), labels="flavour")
    with pytest.raises(ValueError, match="'nonsense'"):
        processor(Event("fasercal", truth={"nonsense": 1}))
    with pytest.raises(ValueError, match="return_tensors"):
        processor(good, return_tensors="np")


def test_fit_needs_events_and_an_unfilled_branch_is_refused_later(events):
    with pytest.raises(ValueError, match="no events"):
        NuFMProcessor.fit([], "fasercal")
    with pytest.raises(ValueError, match="branch '3dcal'"):
        NuFMProcessor.fit([Event("fasercal")], "fasercal")
    only_cubes = NuFMProcessor.fit([Event("fasercal", {"3dcal": e.voxels["3dcal"]}) for e in events], "fasercal")
    only_cubes(Event("fasercal", {"3dcal": events[0].voxels["3dcal"]}))
    with pytest.raises(ValueError, match="'ahcal' has no statistics"):
        only_cubes(events[0])
    with pytest.raises(ValueError, match="no vertex statistics"):
        only_cubes(Event("fasercal", {"3dcal": events[0].voxels["3dcal"]}, truth=events[0].truth), labels="vertex")


def test_any_detector(events):
    data = SPEC.to_dict() | {"name": "mine", "event_labels": {}}
    data["branches"] = [{**data["branches"][0], "channels": ["energy", "time"], "labels": []}]
    spec = DetectorSpec.from_dict(data)
    rng = np.random.default_rng(1)
    mine = [Event("mine", {"3dcal": Voxels(rng.integers(0, 48, (30, 3)), rng.random((30, 2)))}) for _ in range(5)]
    batch = NuFMProcessor.fit(mine, spec)(mine)
    assert batch["voxel_features"].shape == (5, 30, 2)
    assert "image_features" not in batch
    assert "track_features" not in batch


def with_momenta(events: list[Event]) -> list[Event]:
    rng = np.random.default_rng(5)
    for i, event in enumerate(events):
        visible, jet = rng.normal((0, 0, 300)), rng.normal((0, 0, 100))
        yield replace(event, truth=event.truth | {"is_cc": i % 4 > 0, "visible_momentum": visible, "jet_momentum": jet, "charm": i % 4})


def test_reconstruction_labels_carry_units_and_mark_what_is_unknown(events, processor):
    given = list(with_momenta(events))
    del given[2].truth["jet_momentum"], given[3].truth["vertex"], given[4].truth["charm"], given[5].truth["is_cc"]
    labels = processor(given, labels="reconstruction")["labels"]
    assert labels["flavour"].tolist() == [e.truth["flavour"] for e in given]
    assert labels["charm"].tolist() == [-100 if i == 4 else i % 4 for i in range(20)]
    assert labels["is_cc"].tolist() == [i % 4 > 0 and i != 5 for i in range(20)]
    assert labels["jet_momentum"][2].isnan().all()
    assert labels["vertex"][3].isnan().all()
    np.testing.assert_allclose(labels["visible_momentum"][7], given[7].truth["visible_momentum"], rtol=1e-6)
    assert torch.equal(labels["vertex"][7:], processor(given[7:], labels="vertex")["labels"])


def test_momentum_scales_come_with_the_fit_or_later(events, processor, tmp_path):
    assert processor.momentum_scales is None
    given = list(with_momenta(events))
    fitted, later = NuFMProcessor.fit(given, "fasercal"), processor.with_targets(given)
    assert fitted.statistics == later.statistics
    assert set(fitted.momentum_scales) == {"visible", "jet", "lepton"}
    lepton = np.stack([e.truth["visible_momentum"] - e.truth["jet_momentum"] for e in given if e.truth["is_cc"]])
    assert fitted.momentum_scales["lepton"]["k"] == pytest.approx(np.median(np.abs(lepton[:, 2])))
    assert {k: v for k, v in fitted.statistics.items() if k != "momentum"} == processor.statistics
    fitted.save_pretrained(tmp_path)
    assert NuFMProcessor.from_pretrained(tmp_path).momentum_scales == fitted.momentum_scales
    broken = fitted.statistics | {"momentum": {"jet": fitted.momentum_scales["jet"] | {"std": 0}}}
    with pytest.raises(ValueError, match="std=0 of the jet momentum"):
        NuFMProcessor("fasercal", broken)
