"""Bundled checkpoints: complete, small, honest about their origin, and loadable every way without a network."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel

from nufm_hub import (
    AutoModelForFlavourClassification,
    AutoModelForVertexRegression,
    Event,
    FlavourPipeline,
    NuFMForFlavourClassification,
    NuFMForPreTraining,
    NuFMForVertexRegression,
    NuFMModel,
    NuFMProcessor,
    checkpoint_path,
    list_checkpoints,
    read_events,
    sample_path,
)
from nufm_hub.detectors import load_detector

ENCODER, FLAVOUR, VERTEX = "nufm/fasercal-mae-rel", "nufm/fasercal-mae-rel-flavour", "nufm/fasercal-mae-rel-vertex"


@pytest.fixture(scope="module")
def batch():
    events = [e for e, _ in zip(read_events(sample_path("fasercal")), range(4))]
    return NuFMProcessor.from_pretrained(ENCODER)(events)


def test_they_are_there_complete_and_small():
    assert {ENCODER, FLAVOUR, VERTEX} <= set(list_checkpoints())
    for name in list_checkpoints():
        held = {p.name for p in checkpoint_path(name).iterdir()}
        assert {"config.json", "model.safetensors", "preprocessor_config.json", "training.json"} <= held
    assert sum(p.stat().st_size for name in list_checkpoints() for p in checkpoint_path(name).iterdir()) <= 40e6


@pytest.mark.parametrize("name", [ENCODER, FLAVOUR, VERTEX])
def test_the_record_tells_where_the_weights_come_from(name):
    record = json.loads((checkpoint_path(name) / "training.json").read_text())
    data = record["data"]["train"]
    assert data["events"] >= 3000
    assert data["detector_hash"] == load_detector("fasercal").hash
    sample_seed = json.loads(sample_path("fasercal").with_suffix(".json").read_text())["seed"]
    seeds = {s["seed"] for part in record["data"].values() if part for s in part["simulations"]}
    assert seeds
    assert sample_seed not in seeds
    assert record["git_revision"]
    assert not record["git_revision"].endswith("-dirty")
    assert record["recipe"]["epochs"] > 0
    assert any("loss" in entry for entry in record["curves"])


@pytest.mark.parametrize(
    ("name", "cls"),
    [(ENCODER, NuFMForPreTraining), (ENCODER, NuFMModel), (FLAVOUR, NuFMForFlavourClassification), (VERTEX, NuFMForVertexRegression)],
)
def test_saving_and_loading_is_bit_equal(name, cls, tmp_path):
    model, report = cls.from_pretrained(name, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["mismatched_keys"]
    assert model.name_or_path == name
    stored = load_file(checkpoint_path(name) / "model.safetensors")
    model.save_pretrained(tmp_path)
    again = cls.from_pretrained(tmp_path).state_dict()
    for key, value in model.state_dict().items():
        assert torch.equal(value, stored[key])
        assert torch.equal(value, again[key])


def test_base_to_head_and_back(batch, tmp_path):
    head = AutoModelForFlavourClassification.from_pretrained(FLAVOUR)
    base = NuFMModel.from_pretrained(FLAVOUR)
    base.save_pretrained(tmp_path)
    fresh = NuFMForFlavourClassification.from_pretrained(tmp_path)
    for key, value in base.state_dict().items():
        assert torch.equal(value, head.state_dict()[key])
        assert torch.equal(value, fresh.state_dict()[key])
    assert all(torch.isfinite(p).all() for p in fresh.parameters())
    with torch.inference_mode():
        assert torch.equal(head.head(base(**batch)), head(**batch).logits)


def test_auto_classes(batch):
    assert type(AutoModelForFlavourClassification.from_pretrained(FLAVOUR)) is NuFMForFlavourClassification
    assert type(AutoModelForVertexRegression.from_pretrained(VERTEX)) is NuFMForVertexRegression
    folder = checkpoint_path(ENCODER)
    assert type(AutoModel.from_pretrained(folder)) is NuFMModel
    assert AutoConfig.from_pretrained(folder).spec == load_detector("fasercal")
    assert AutoFeatureExtractor.from_pretrained(folder).to_dict() == NuFMProcessor.from_pretrained(ENCODER).to_dict()
    id_output, folder_output = (AutoModelForVertexRegression.from_pretrained(n)(**batch).logits for n in (VERTEX, checkpoint_path(VERTEX)))
    assert torch.equal(id_output, folder_output)


def test_an_event_is_predicted_alike_whatever_it_is_batched_with():
    events = [e for e, _ in zip(read_events(sample_path("fasercal")), range(9))]
    alone, together = (FlavourPipeline.from_pretrained(FLAVOUR, batch_size=n)(events) for n in (1, 9))
    for a, b in zip(alone, together):
        assert a["probabilities"] == pytest.approx(b["probabilities"], abs=1e-5)


def test_damage_is_named(tmp_path):
    shutil.copytree(checkpoint_path(FLAVOUR), tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000])
    with pytest.raises(ValueError, match=r"cut.*truncated"):
        NuFMForFlavourClassification.from_pretrained(tmp_path / "cut")
    model = NuFMForFlavourClassification.from_pretrained(FLAVOUR)
    with torch.no_grad():
        model.head.norm.weight[0] = float("nan")
    model.save_pretrained(tmp_path / "diverged")
    with pytest.raises(ValueError, match=r"diverged: 1 tensors hold NaN.*'head\.norm\.weight'"):
        AutoModelForFlavourClassification.from_pretrained(tmp_path / "diverged")
    NuFMModel.from_pretrained(tmp_path / "diverged")  # the encoder alone is sound
    with pytest.raises(ValueError, match="nufm/unknown"):
        NuFMModel.from_pretrained("nufm/unknown")
    with pytest.raises(ValueError, match="nufm/unknown"):
        FlavourPipeline.from_pretrained("nufm/unknown")


def test_events_of_another_detector_are_refused():
    predict = FlavourPipeline.from_pretrained(FLAVOUR)
    with pytest.raises(ValueError, match="'superfgd'"):
        predict(Event("superfgd"))
