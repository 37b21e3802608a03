"""Particle identification on another detector than the encoder's: single crops, all particles of an event, with a record of what was carried."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from nufm_hub import EventDataset, NuFMConfig, NuFMForEventParticleID, NuFMForPreTraining, NuFMProcessor, TransferReport, write_events
from nufm_hub.cli import app
from nufm_hub.events.crop_files import write_crops
from nufm_hub.training import train
from nufm_hub.training.particles import ParticleCollator, ParticleEvents

_LOADED = importlib.util.spec_from_file_location("chamber", Path(__file__).with_name("chamber.py"))
chamber = importlib.util.module_from_spec(_LOADED)
_LOADED.loader.exec_module(chamber)
RECIPE = chamber.RECIPE


@pytest.fixture(scope="module")
def crops(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chamber")
    rng = np.random.default_rng(0)
    write_events((chamber.image(rng, i) for i in range(60)), folder / "images.parquet", chamber.SPEC)
    write_crops(folder / "images.parquet", folder / "crops", chamber.CROPS, (0.6, 0.2, 0.2))
    return folder / "crops"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """An encoder of FASERCal none of whose weights is at its start value."""
    torch.manual_seed(1)
    model = NuFMForPreTraining(NuFMConfig(detector="fasercal", **chamber.SIZES))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    folder = tmp_path_factory.mktemp("source") / "mae"
    model.save_pretrained(folder)
    return folder


def test_the_encoder_is_taken_along_and_the_report_is_saved(crops, source, tmp_path):
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps(RECIPE))
    files = ("--events", str(crops / "train"), "--out", str(tmp_path / "out"), "--recipe", str(recipe))
    still = ("--set", "base_learning_rate=1e-30", "--set", "epochs=1")
    result = CliRunner().invoke(app, ["finetune", "particle", "--cpu", "--source", str(source), "--transfer", *files, *still])
    assert result.exit_code == 0, result.output
    folder = tmp_path / "out" / "model"
    carried = TransferReport.load(folder).names("loaded")
    ours, theirs = (load_file(f / "model.safetensors") for f in (folder, source))
    assert set(carried) == {name for name in ours if name.startswith("encoder.")}
    assert all(torch.equal(ours[name], theirs[name]) for name in carried)
    record = json.loads((folder / "training.json").read_text())
    assert record["transfer"] is True
    processor = NuFMProcessor.from_pretrained(folder)
    assert processor.spec == EventDataset(crops / "train").spec
    assert processor.statistics["num_events"] == len(EventDataset(crops / "train"))
    # The new weights are those of the seed.
    train(
        "particle", RECIPE | {"base_learning_rate": 1e-30, "epochs": 1}, crops / "train", tmp_path / "again", str(source), transfer=True, use_cpu=True
    )
    again = load_file(tmp_path / "again" / "model" / "model.safetensors")
    assert all(torch.equal(ours[name], again[name]) for name in ours)


def test_carried_weights_learn_at_their_own_rate(crops, source, tmp_path):
    """At rate 0 they stay, and all else learns."""
    recipe = RECIPE | {"epochs": 1, "carried_rate": 0}
    folder = train("particle", recipe, crops / "train", tmp_path / "run", str(source), transfer=True, use_cpu=True)
    still = train("particle", recipe | {"base_learning_rate": 1e-30}, crops / "train", tmp_path / "still", str(source), transfer=True, use_cpu=True)
    ours, theirs = (load_file(f / "model.safetensors") for f in (folder, still))
    assert {name for name in ours if torch.equal(ours[name], theirs[name])} == set(TransferReport.load(folder).names("loaded"))


def test_particles_of_events_are_learnt_together(crops, source, tmp_path):
    options = {"validation": crops / "validation", "transfer": True, "use_cpu": True, "evaluations": 5, "seed": 2}
    folder = train("event-particles", RECIPE, crops / "train", tmp_path / "run", str(source), **options)
    curve = [entry for entry in json.loads((folder / "training.json").read_text())["curves"] if "eval_loss" in entry]
    steps = RECIPE["epochs"] * -(-len(ParticleEvents(EventDataset(crops / "train"))) // RECIPE["batch_size"])
    assert [entry["step"] for entry in curve] == [round(steps * i / 5) for i in range(1, 6)]
    assert curve[-1]["eval_loss"] < curve[0]["eval_loss"]
    model = NuFMForEventParticleID.from_pretrained(folder)
    events = ParticleEvents(EventDataset(crops / "test"))
    batch = ParticleCollator(NuFMProcessor.from_pretrained(folder))([events[i] for i in range(len(events))])
    labels = batch.pop("labels")
    with torch.no_grad():
        assert (model(**batch).logits.argmax(-1) == labels).float().mean() > 0.9


def test_events_with_few_and_many_particles_add_up_over_micro_batches(crops, source, tmp_path):
    def go(micro_batch_size, rate):
        model = RECIPE["model"] | {"context_dropout": 0}  # what is dropped depends on the shapes of the parts
        settings = RECIPE | {"model": model, "epochs": 1, "micro_batch_size": micro_batch_size, "base_learning_rate": rate}
        folder = train("event-particles", settings, crops / "train", tmp_path / f"{micro_batch_size}-{rate}", use_cpu=True, seed=2)
        # The keys' biases shift all scores of a query alike: they have no gradient, and Adam blows its rounding up.
        return {name: weight for name, weight in load_file(folder / "model.safetensors").items() if not name.endswith("key_value.bias")}

    size, rate = RECIPE["batch_size"], RECIPE["base_learning_rate"]
    whole, parts, still = go(size, rate), go(size // 2, rate), go(size, 1e-30)
    assert max((whole[name] - still[name]).abs().max().item() for name in whole) > 1e-3
    assert max((whole[name] - parts[name]).abs().max().item() for name in whole) < 1e-5


def test_a_subset_is_one_of_events(crops, source, tmp_path):
    folder = train(
        "event-particles", RECIPE | {"epochs": 1}, crops / "train", tmp_path / "run", str(source), transfer=True, max_events=3, use_cpu=True
    )
    record = json.loads((folder / "training.json").read_text())
    assert (record["data"]["train"]["events"], record["max_events"]) == (3, 3)
    assert 6 <= NuFMProcessor.from_pretrained(folder).statistics["num_events"] <= 12


def test_events_are_put_together_again(crops):
    data = EventDataset(crops / "train")
    events = ParticleEvents(data)
    assert sum(len(events[i]) for i in range(len(events))) == len(data)
    indices = [{c.provenance["index"] for c in events[i]} for i in range(len(events))]
    assert all(len(i) == 1 for i in indices)
    assert len(set.union(*indices)) == len(events)
    with pytest.raises(IndexError):
        events[len(events)]


def test_crops_out_of_order_are_refused(crops, tmp_path):
    data = EventDataset(crops / "train")
    write_events((data[i] for i in (0, len(data) - 1, 1)), tmp_path / "mixed.parquet", data.spec)
    with pytest.raises(ValueError, match=r"not next to each other in .*mixed\.parquet"):
        ParticleEvents(EventDataset(tmp_path / "mixed.parquet"))


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({}, {}, r"reads detector 'fasercal'.*'chamber-crop'.*--transfer"),
        ({}, {"source": None, "transfer": True}, "needs a source"),
        ({"augmentation": {}}, {"transfer": True}, "mirrors and rotations only"),
        ({}, {"transfer": True, "evaluations": 3}, "needs validation events"),
        ({"model": {"hidden_size": 48}}, {"transfer": True}, "less than min_loaded"),
    ],
)
def test_what_does_not_go_together_is_refused(changes, options, message, crops, source, tmp_path):
    NuFMProcessor("fasercal", {"voxels": {"3dcal": {"k": [1.0], "mean": [0.0], "std": [1.0]}}}).save_pretrained(source)
    options = {"source": str(source)} | options
    with pytest.raises(ValueError, match=message):
        train("event-particles", RECIPE | changes, crops / "train", tmp_path / "run", use_cpu=True, **options)
