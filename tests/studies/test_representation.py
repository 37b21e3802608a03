"""The study of frozen encoders on a toy detector whose vertex and class are where the hits are."""

import csv
import json
from itertools import product

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from nufm_hub import DetectorSpec, Event, EventDataset, NuFMConfig, NuFMModel, NuFMProcessor, Voxels, write_events
from nufm_hub.cli import app
from nufm_hub.metrics import VertexError
from nufm_hub.studies.features import Encoded, encode, encoder_sha256, random_encoder
from nufm_hub.studies.representation import embedding, probe, study_representation

SPEC = DetectorSpec.from_dict(
    {
        "name": "toy",
        "event_labels": {"flavour": ["low", "high"]},
        "branches": [
            {"kind": "voxels", "name": "cubes", "shape": [8, 8, 16], "voxel_size": [1, 1, 1], "origin": [-4, -4, 0],
             "patch": [4, 4, 4], "window": [2, 2, 2]},
        ],
    }
)  # fmt: skip


def toy_event(rng: np.random.Generator, index: int) -> Event:
    start = np.array([*rng.integers(2, 6, 2), rng.integers(0, 4) + 8 * (index % 2)])
    hits = np.unique(np.clip(start + rng.integers(0, (2, 2, 4), (12, 3)), 0, (7, 7, 15)), axis=0)
    truth = {"flavour": index % 2, "vertex": start + np.array([-3.5, -3.5, 0.5])}
    return Event("toy", {"cubes": Voxels(hits, rng.lognormal(0, 1, len(hits)))}, {}, {}, truth, provenance={"file": "toy", "index": index, "seed": 1})


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("toy"), np.random.default_rng(0)
    for name, count in (("train", 80), ("test", 30)):
        write_events((toy_event(rng, i) for i in range(count)), folder / f"{name}.parquet", SPEC)
    small = {"hidden_size": 24, "num_attention_heads": 2, "window_depths": [1], "fusion_depth": 1, "decoder_hidden_size": 12}
    model = random_encoder(NuFMModel(NuFMConfig.preset("nano", detector=SPEC, decoder_num_attention_heads=2, **small)), 11)
    model.save_pretrained(folder / "encoder")
    NuFMProcessor.fit((toy_event(rng, i) for i in range(20)), SPEC).save_pretrained(folder / "encoder")
    return folder


def test_features_are_the_pooled_output_of_each_event_alone(toy):
    model, processor = (kind.from_pretrained(toy / "encoder") for kind in (NuFMModel, NuFMProcessor))
    events = EventDataset(toy / "test.parquet")
    encoded = encode(model, processor, events, batch_size=7)
    assert encoded.features.shape == (30, 24)
    with torch.no_grad():
        alone = model(**processor(events[12])).pooler_output[0].numpy()
    np.testing.assert_allclose(encoded.features[12], alone, atol=1e-5)
    assert encoded.labels["flavour"].tolist() == [0, 1] * 15
    np.testing.assert_array_equal(encoded.vertex[5], events[5].truth["vertex"])


def test_random_encoders_differ_by_seed_only_and_leave_the_global_state_alone(toy):
    model = NuFMModel.from_pretrained(toy / "encoder")
    before = torch.get_rng_state()
    hashes = [encoder_sha256(random_encoder(model, seed)) for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), before)
    assert hashes[0] == hashes[1] != hashes[2]
    assert encoder_sha256(model) == encoder_sha256(random_encoder(model, 11))  # saved, loaded, the same


def test_probes_find_what_the_features_hold_and_nothing_in_noise():
    rng = np.random.default_rng(1)
    labels = {"flavour": rng.integers(0, 2, 300)}
    vertex = rng.normal(0, 50, (300, 3))
    known = np.concatenate([vertex @ rng.normal(size=(3, 8)) / 50, labels["flavour"][:, None]], axis=1).astype(np.float32)
    noise = rng.normal(size=(300, 9)).astype(np.float32)

    def judged(features):
        part = [Encoded(features[rows], {"flavour": labels["flavour"][rows]}, vertex[rows]) for rows in (slice(200), slice(200, None))]
        return probe(*part, SPEC, num_resamples=50)

    good, bad = judged(known), judged(noise)
    assert good["linear"]["flavour"]["macro_auroc"] > 0.99
    assert good["linear"]["vertex"]["vertex_error_mean"] < 1
    baseline = VertexError().compute(predictions=np.tile(vertex[:200].mean(0), (100, 1)), references=vertex[200:], num_resamples=0)
    assert good["linear"]["vertex_baseline"]["vertex_error_mean"] == pytest.approx(baseline["vertex_error_mean"])
    for kind in ("linear", "nearest"):
        assert 0.3 < bad[kind]["flavour"]["macro_auroc"] < 0.7
        assert bad[kind]["vertex"]["vertex_error_mean"] == pytest.approx(baseline["vertex_error_mean"], rel=0.1)
        assert good[kind]["vertex"]["vertex_error_mean_low"] < good[kind]["vertex"]["vertex_error_mean"] < 0.6 * baseline["vertex_error_mean"]


def test_events_without_a_truth_are_left_out():
    rng = np.random.default_rng(2)
    features, labels, vertex = rng.normal(size=(60, 4)).astype(np.float32), np.arange(60) % 2, rng.normal(size=(60, 3))
    labels[:10], vertex[5:20] = -1, np.nan
    result = probe(Encoded(features, {"flavour": labels}, vertex), Encoded(features, {"flavour": labels}, vertex), SPEC, num_resamples=0)
    assert result["linear"]["flavour"]["num_train"] == result["linear"]["flavour"]["num_events"] == 50
    assert result["nearest"]["vertex"]["num_events"] == 45
    nothing = Encoded(features, {"flavour": np.full(60, -1)}, np.full((60, 3), np.nan))
    assert probe(nothing, nothing, SPEC)["linear"] == {}


def test_the_picture_separates_what_is_separate():
    rng = np.random.default_rng(3)
    labels = np.arange(90) % 3
    features = (rng.normal(size=(90, 6)) + 12 * np.eye(6)[labels]).astype(np.float32)
    flat = embedding(Encoded(features, {"flavour": labels}, np.zeros((90, 3))))
    assert (flat["label_flavour"] == labels).all()
    assert 0.5 < flat["explained"].sum() < 1
    for kind in ("pca", "tsne"):
        centres = np.stack([flat[kind][labels == k].mean(0) for k in range(3)])
        nearest = np.linalg.norm(flat[kind][:, None] - centres, axis=2).argmin(1)
        assert (nearest == labels).mean() > 0.95


def test_command_line(toy, tmp_path):
    arguments = ["study", "representation", "--initialisation", "scratch", "--initialisation", f"mae={toy / 'encoder'}"]
    arguments += ["--events", str(toy / "train.parquet"), "--test", str(toy / "test.parquet"), "--scratch-seeds", "2", "--cpu"]
    arguments += ["--out", str(tmp_path / "runs"), "--results", str(tmp_path / "results"), "--num-resamples", "20"]
    arguments += ["--budget", "40", "--budget", "all", "--seed", "0", "--seed", "1"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert {p.name for p in (tmp_path / "results").iterdir()} == {"representation.csv", "representation.json", "representation.png"}
    assert (tmp_path / "results" / "representation.png").read_bytes().startswith(b"\x89PNG")
    with (tmp_path / "results" / "representation.csv").open() as file:
        rows = list(csv.DictReader(file))
    encoders = (("scratch", "0"), ("scratch", "1"), ("mae", ""))
    subsets = (("40", "0"), ("40", "1"), ("80", "0"))  # of all there is one
    assert [tuple(row[key] for key in ("initialisation", "seed", "features", "labels", "subset", "probe")) for row in rows] == [
        (*encoder, features, *subset, probe)
        for encoder, kinds in (*((encoder, ("vector", "vector + summary")) for encoder in encoders), (("summary", ""), ("summary",)))
        for features, subset, probe in product(kinds, subsets, ("linear", "nearest"))
    ]
    record = json.loads((tmp_path / "runs" / "mae" / "result.json").read_text())
    mae = next(row for row in rows if (row["initialisation"], row["labels"]) == ("mae", "80"))
    found = next(f for f in record["result"] if (f["features"], f["labels"]) == ("vector", 80))
    assert float(mae["vertex.vertex_error_mean"]) == found["probes"]["linear"]["vertex"]["vertex_error_mean"]
    summary = json.loads((tmp_path / "results" / "representation.json").read_text())["summary"]
    wanted = {"initialisation": "scratch", "features": "vector", "labels": 40, "probe": "nearest"}
    scratch = next(s for s in summary if wanted.items() <= s.items())
    values = [float(r["flavour.macro_auroc"]) for r in rows if all(r[key] == str(value) for key, value in wanted.items())]
    assert scratch["runs"] == len(values) == 4
    assert scratch["metrics"]["flavour.macro_auroc"]["mean"] == pytest.approx(np.mean(values))
    assert str(tmp_path) not in (tmp_path / "results" / "representation.json").read_text()

    before = (tmp_path / "results" / "representation.csv").read_bytes()
    again = CliRunner().invoke(app, arguments)  # nothing is computed twice, the tables come out the same
    assert again.exit_code == 0, again.output
    assert (tmp_path / "results" / "representation.csv").read_bytes() == before


def test_features_side_by_side_and_parts_of_the_events():
    rng = np.random.default_rng(4)
    encoded = Encoded(rng.normal(size=(6, 2)), {"flavour": np.arange(6)}, rng.normal(size=(6, 3)))
    part = encoded.beside(np.arange(6.0)[:, None]).select(np.array([4, 1]))
    assert part.features.shape == (2, 3)
    assert part.features[:, 2].tolist() == part.labels["flavour"].tolist() == [4, 1]
    np.testing.assert_array_equal(part.vertex, encoded.vertex[[4, 1]])


def test_bad_arguments_are_named(toy, tmp_path):
    with pytest.raises(ValueError, match=r"test\.parquet is among both events and test"):
        study_representation({"mae": str(toy / "encoder")}, [toy / "test.parquet"], [toy / "test.parquet"], toy / "r", toy / "results")
    with pytest.raises(ValueError, match="none for 'scratch'"):
        study_representation({"summary": str(toy / "encoder")}, [toy / "train.parquet"], [toy / "test.parquet"], tmp_path, tmp_path)
    with pytest.raises(ValueError, match="at least one"):
        study_representation({}, [toy / "train.parquet"], [toy / "test.parquet"], tmp_path, tmp_path)
    for wrong in ("mae", "=x", "scratch=x"):
        result = CliRunner().invoke(app, ["study", "representation", "--initialisation", wrong, "--events", "a", "--test", "b"])
        assert result.exit_code == 2
        assert "initialisation" in result.output
