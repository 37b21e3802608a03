"""Whole trainings on toy events: they learn, resume exactly, refuse what they must, and agree on one and two processes."""

import csv
import json
import shutil
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback
from typer.testing import CliRunner

from nufm_hub import (
    FlavourPipeline,
    NuFMForEventReconstruction,
    NuFMForVoxelClassification,
    NuFMModel,
    NuFMProcessor,
    VertexPipeline,
    read_events,
    sample_path,
)
from nufm_hub.cli import app
from nufm_hub.training import run, train
from nufm_hub.training.logs import LOG_FILE


@pytest.fixture(scope="module")
def pretrained(toy_files, recipe, tmp_path_factory):
    return train("pretraining", recipe, toy_files["train"], tmp_path_factory.mktemp("run") / "pretraining", use_cpu=True)


def test_fine_tuning_learns_on_unseen_events(toy_files, recipe, pretrained, tmp_path):
    settings = recipe | {"epochs": 40, "augmentation": None}
    flavour = train("flavour", settings, toy_files["train"], tmp_path / "f", str(pretrained), toy_files["validation"], use_cpu=True)
    vertex = train("vertex", settings, toy_files["train"], tmp_path / "v", str(pretrained), toy_files["validation"], use_cpu=True)
    events = list(read_events(toy_files["validation"]))
    predicted = FlavourPipeline.from_pretrained(str(flavour))(events)
    correct = [p["label"] == ("low", "high")[e.truth["flavour"]] for p, e in zip(predicted, events)]
    assert np.mean(correct) > 0.9
    true = np.stack([e.truth["vertex"] for e in events])
    error = np.linalg.norm(np.stack(VertexPipeline.from_pretrained(str(vertex), batch_size=7)(events)) - true, axis=1).mean()
    assert error < 0.6 * np.linalg.norm(true - true.mean(0), axis=1).mean()


def test_all_quantities_of_an_event_are_learnt_jointly(toy_files, recipe, pretrained, tmp_path):
    """From a checkpoint whose processor knows nothing of momenta, as older ones do."""
    source = tmp_path / "source"
    shutil.copytree(pretrained, source)
    saved = json.loads((source / "preprocessor_config.json").read_text())
    del saved["statistics"]["momentum"]
    (source / "preprocessor_config.json").write_text(json.dumps(saved))
    settings = recipe | {"epochs": 30, "augmentation": None}
    out = train("reconstruction", settings, toy_files["train"], tmp_path / "r", str(source), toy_files["validation"], use_cpu=True)
    processor, model = NuFMProcessor.from_pretrained(out), NuFMForEventReconstruction.from_pretrained(out)
    assert processor.momentum_scales == NuFMProcessor.from_pretrained(pretrained).momentum_scales == model.config.momentum_scales
    curves = json.loads((out / "training.json").read_text())["curves"]
    assert {"loss_flavour", "loss_visible_momentum", "loss_lepton_momentum", "loss_vertex"} <= set(curves[0])
    last = [entry for entry in curves if "eval_loss" in entry][-1]
    assert last["eval_flavour_macro_auroc"] > 0.9
    assert last["eval_visible_energy_sigma68"] < 0.3  # of about 0.5 for the same answer to all
    assert {"eval_missing_pt_sigma68", "eval_lepton_energy_bias", "eval_vertex_error_median"} <= set(last)

    events = list(read_events(toy_files["validation"]))
    with torch.no_grad():
        outputs = model(**processor(events))
    found = processor.post_process_reconstruction(outputs)
    for row, one in enumerate(found):
        assert one.keys() == {"flavour", "visible_momentum", "jet_momentum", "lepton_momentum", "missing_pt", "vertex"}
        np.testing.assert_allclose(one["lepton_momentum"], one["visible_momentum"] - one["jet_momentum"], atol=1e-4)
        assert one["missing_pt"] == pytest.approx(np.hypot(*one["visible_momentum"][:2]), rel=1e-5)
        assert one["flavour"]["label"] == ("low", "high")[int(outputs.flavour_logits[row].argmax())]
    true = np.stack([e.truth["visible_momentum"] for e in events])
    error = np.abs(np.stack([one["visible_momentum"] for one in found]) - true)
    assert np.median(error[:, 2] / true[:, 2]) < 0.2
    vertices = np.stack([e.truth["vertex"] for e in events])
    distance = np.linalg.norm(np.stack([one["vertex"] for one in found]) - vertices, axis=1).mean()
    assert distance < 0.7 * np.linalg.norm(vertices - vertices.mean(0), axis=1).mean()
    momenta = train("momentum", recipe | {"epochs": 1}, toy_files["train"], tmp_path / "m", str(out), toy_files["validation"], use_cpu=True)
    assert "eval_jet_energy_sigma68" in json.loads((momenta / "training.json").read_text())["curves"][1]


def test_voxel_labels_are_learnt_from_a_relational_start(toy_files, recipe, pretrained, tmp_path):
    """Voxels of the toy are ghosts in every second pair of layers along x; an answer by the share of ghosts alone would score 0.69."""
    settings = recipe | {"epochs": 25, "augmentation": None}
    out = train("voxels", settings, toy_files["train"], tmp_path / "voxels", str(pretrained), toy_files["validation"], use_cpu=True)
    curves = json.loads((out / "training.json").read_text())["curves"]
    assert min(entry["eval_loss"] for entry in curves if "eval_loss" in entry) < 0.4
    assert "loss_ghost" in curves[0]
    events = list(read_events(toy_files["validation"]))[:5]
    processor, model = NuFMProcessor.from_pretrained(out), NuFMForVoxelClassification.from_pretrained(out)
    per_event = processor.post_process_voxels(model(**processor(events)).logits, events)
    right = [((p["cubes"][:, 0] > 0) == (e.voxels["cubes"].labels["ghost"][:, 0] > 0.5)).mean() for p, e in zip(per_event, events)]
    assert np.mean(right) > 0.8


def test_a_head_stays_with_its_task(toy_files, recipe, pretrained, tmp_path):
    """Encoder and decoder are taken along between tasks; a head starts anew."""
    still = recipe | {"base_learning_rate": 1e-30, "epochs": 1}

    def go(task, source):
        return train(task, still, toy_files["train"], tmp_path / f"{task}-{source.parent.name}", source, use_cpu=True)

    flavour = go("flavour", pretrained)
    for task, source in (("vertex", flavour), ("momentum", go("reconstruction", flavour)), ("voxels", pretrained)):
        ours, theirs = (load_file(folder / "model.safetensors") for folder in (go(task, source), source))
        taken = {name for name in ours if name in theirs and torch.equal(ours[name], theirs[name])}
        assert {n for n in ours if not n.startswith("head.")} <= taken
        assert not [n for n in taken if n.startswith("head.") and n.endswith("output.weight")]


def test_the_record_says_what_was_done(toy_files, recipe, pretrained):
    record = json.loads((pretrained / "training.json").read_text())
    assert record["task"] == "pretraining"
    assert record["data"]["train"] == {
        "detector": "toy",
        "detector_hash": record["data"]["train"]["detector_hash"],
        "events": 64,
        "files": ["train.parquet"],
        "simulations": [],
    }
    losses = [entry for entry in record["curves"] if "loss" in entry]
    assert len(losses) == recipe["epochs"]
    assert {"loss_occupancy_cubes", "loss_charge_cubes", "loss_towers", "loss_muon", "loss_ghost"} <= set().union(*losses)
    assert str(toy_files["train"].parent) not in (pretrained / "training.json").read_text()


def test_the_record_says_what_limits_the_training(toy_files, recipe, tmp_path, monkeypatch):
    collate = run.EventCollator.__call__
    monkeypatch.setattr(run.EventCollator, "__call__", lambda self, events: time.sleep(0.2) or collate(self, events))
    folder = train("flavour", recipe | {"epochs": 1}, toy_files["train"], tmp_path / "run", use_cpu=True)
    record = json.loads((folder / "training.json").read_text())
    last = record["curves"][-1]
    for name in ("events_per_second", "loader_events_per_second"):
        assert record[name] == last[name]
    assert 64 / record["seconds"] <= record["events_per_second"] < record["loader_events_per_second"] < 8 / 0.2
    assert record["loader_events_per_second"] < 2 * record["events_per_second"]  # most of the time went into waiting


class StopAfter(TrainerCallback):
    def __init__(self, epoch):
        self.epoch = epoch

    def on_epoch_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.epoch >= self.epoch


@pytest.mark.parametrize(("task", "ema_decay"), [("pretraining", 0), ("flavour", 0), ("flavour", 0.9)])
def test_an_interrupted_run_ends_with_the_same_weights(task, ema_decay, toy_files, recipe, tmp_path, monkeypatch):
    def go(folder, **kwargs):
        settings = recipe | {"ema_decay": ema_decay}
        return train(task, settings, toy_files["train"], tmp_path / folder, seed=3, use_cpu=True, save_every=1, report_to="csv", **kwargs)

    whole = go("whole")
    finished = run.save_checkpoint
    trainer = run.EventTrainer

    def interrupted(*args, **kwargs):
        made = trainer(*args, **kwargs)
        made.add_callback(StopAfter(2))
        return made

    monkeypatch.setattr(run, "EventTrainer", interrupted)
    monkeypatch.setattr(run, "save_checkpoint", lambda *args: None)
    go("halves")
    assert not (tmp_path / "halves" / "model").exists()
    for step, state in (("98", '{"epoch": 1.0, "log_his'), ("99", None)):  # that were being written when the lights went out
        (tmp_path / "halves" / f"checkpoint-{step}").mkdir()
        if state is not None:
            (tmp_path / "halves" / f"checkpoint-{step}" / "trainer_state.json").write_text(state)
    monkeypatch.setattr(run, "EventTrainer", trainer)
    monkeypatch.setattr(run, "save_checkpoint", finished)
    halves = go("halves")
    first, second = (load_file(folder / "model.safetensors") for folder in (whole, halves))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    resumed = json.loads((halves / "training.json").read_text())
    assert resumed["resumed"]
    last = resumed["curves"][-1]
    assert last["events_per_second"] * last["train_runtime"] == pytest.approx(2 * 64, rel=0.2)  # of the two epochs that were left
    logs = []
    for folder in (whole, halves):
        with (folder.parent / LOG_FILE).open(newline="") as file:
            logs.append([(row["step"], row["loss"]) for row in csv.DictReader(file) if row["loss"]])
    assert len(logs[0]) == recipe["epochs"]
    assert logs[0] == logs[1]


@pytest.mark.parametrize("task", ["flavour", "pretraining"])
def test_gradient_checkpointing_changes_nothing(task, toy_files, recipe, tmp_path):
    """Also with dropped paths, and with masks drawn outside of what is computed twice."""
    settings = recipe | {"epochs": 1, "model": recipe["model"] | {"drop_path_rate": 0.3, "window_depths": [2], "head_dropout": 0.2}}
    kept, again = (
        train(task, settings, toy_files["train"], tmp_path / str(on), seed=2, use_cpu=True, gradient_checkpointing=on) for on in (False, True)
    )
    first, second = (load_file(folder / "model.safetensors") for folder in (kept, again))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert (kept / "config.json").read_text() == (again / "config.json").read_text()


def test_the_seed_decides(toy_files, recipe, tmp_path):
    short = recipe | {"epochs": 1}
    weights = [
        load_file(train("flavour", short, toy_files["train"], tmp_path / str(i), seed=seed, use_cpu=True) / "model.safetensors")["head.output.weight"]
        for i, seed in enumerate((1, 1, 2))
    ]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_what_exists_is_refused_and_kept(toy_files, recipe, pretrained, tmp_path):
    before = (pretrained / "model.safetensors").read_bytes()
    with pytest.raises(FileExistsError, match="finished run"):
        train("pretraining", recipe, toy_files["train"], pretrained.parent, use_cpu=True)
    assert (pretrained / "model.safetensors").read_bytes() == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("precious")
    with pytest.raises(FileExistsError, match="other files"):
        train("pretraining", recipe, toy_files["train"], tmp_path / "other", use_cpu=True)
    (tmp_path / "started").mkdir()
    (tmp_path / "started" / "run.json").write_text(json.dumps({"task": "flavour"}))
    with pytest.raises(FileExistsError, match="other settings"):
        train("pretraining", recipe, toy_files["train"], tmp_path / "started", use_cpu=True)


def test_wrong_input_is_named(toy_files, recipe, pretrained, tmp_path):
    with pytest.raises(ValueError, match="unknown task 'colour'"):
        train("colour", recipe, toy_files["train"], tmp_path / "a")
    with pytest.raises(ValueError, match=r"no parquet file|matches no"):
        train("flavour", recipe, tmp_path / "nothing", tmp_path / "a")
    with pytest.raises(ValueError, match=r"reads detector 'toy'.*the events are of 'fasercal'"):
        train("flavour", recipe, sample_path("fasercal"), tmp_path / "a", source=str(pretrained), use_cpu=True)
    result = CliRunner().invoke(app, ["finetune", "flavour", "--events", str(tmp_path / "nothing"), "--out", str(tmp_path / "b")])
    assert result.exit_code == 2
    result = CliRunner().invoke(
        app, ["finetune", "flavour", "--events", str(toy_files["train"]), "--out", str(tmp_path / "b"), "--set", "epochs=many"]
    )
    assert result.exit_code == 2
    assert "not JSON" in result.output
    assert not (tmp_path / "a").exists()
    assert not (tmp_path / "b").exists()


def test_several_gpus_in_one_process_are_refused(toy_files, recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(run.TrainingArguments, "n_gpu", 2)
    with pytest.raises(ValueError, match=r"torchrun --no-python --nproc-per-node 2 nufm .* CUDA_VISIBLE_DEVICES"):
        train("flavour", recipe, toy_files["train"], tmp_path / "run", use_cpu=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--source", "nope/nope"], "nope/nope"),
        (["--set", "model=5"], "model=5 must be a dictionary"),
        (["--set", 'model={"hiden_size": 24}'], "hiden_size"),
        (["--set", 'model={"hidden_size": 48}'], "cannot be changed by the recipe"),
        (["--set", 'model={"fusion_depth": 2}'], "cannot be changed by the recipe"),
        (["--set", 'model={"num_attention_heads": 4}'], "num_attention_heads=4 cannot change"),
        (["--set", 'model={"drop_path_rate": 1.5}'], "drop_path_rate=1.5"),
    ],
)
def test_what_was_refused_leaves_its_folder_free(options, message, toy_files, recipe, pretrained, tmp_path, printed):
    small = json.dumps(recipe | {"epochs": 1, "model": {}})
    (tmp_path / "recipe.json").write_text(small)
    files = ["--events", str(toy_files["train"]), "--recipe", str(tmp_path / "recipe.json"), "--out", str(tmp_path / "run")]
    start = ["finetune", "flavour", "--cpu", "--source", str(pretrained), *files]
    result = CliRunner().invoke(app, [*start, *options])
    assert result.exit_code == 2, result.output
    assert message in printed(result)
    assert not (tmp_path / "run").exists()


def test_encoder_of_a_pretraining_checkpoint_loads_bit_equal(pretrained):
    weights = load_file(pretrained / "model.safetensors")
    encoder = NuFMModel.from_pretrained(pretrained).state_dict()
    assert encoder
    assert all(torch.equal(value, weights[name]) for name, value in encoder.items())


@pytest.mark.parametrize("steps", [2, 7])
def test_steps_decide_whatever_the_number_of_events(steps, toy_files, recipe, tmp_path):
    """Less than an epoch and more; the last evaluation is that of the last step, and the schedule ends there."""
    settings = {name: value for name, value in recipe.items() if name != "epochs"} | {"steps": steps, "batch_size": 16, "micro_batch_size": 16}
    out = train("flavour", settings, toy_files["train"], tmp_path / "r", validation=toy_files["validation"], use_cpu=True)
    record = json.loads((out / "training.json").read_text())
    assert record["recipe"]["steps"] == steps
    evaluated = [entry["step"] for entry in record["curves"] if "eval_loss" in entry]
    assert evaluated[-1] == steps
    assert record["curves"][-1]["step"] == steps


def test_precision_of_a_gpu_is_refused_where_there_is_none(toy_files, recipe, tmp_path, monkeypatch):
    options = {"events": toy_files["train"], "output_dir": tmp_path / "r"}
    with pytest.raises(ValueError, match="needs a GPU: on a CPU it is slower"):
        train("flavour", recipe, **options, use_cpu=True, precision="bf16")
    with pytest.raises(ValueError, match="none of float32, bf16, fp16"):
        train("flavour", recipe, **options, precision="half")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)  # slower than float32
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "an old GPU")
    with pytest.raises(ValueError, match="an old GPU has no bfloat16"):
        run._mixed_precision("bf16", use_cpu=False)
    assert run._mixed_precision("fp16", use_cpu=False) == {"fp16": True}
    assert not (tmp_path / "r").exists()


class Told(Exception):
    """Ends a training once the Trainer's arguments are there: without a GPU it could not go on."""


@pytest.mark.parametrize(("precision", "told"), [("float32", {}), ("bf16", {"bf16": True}), ("fp16", {"fp16": True})])
def test_the_trainer_is_told_the_precision(precision, told, toy_files, recipe, tmp_path, monkeypatch):
    arguments = run.TrainingArguments

    def tell(**options):
        if "learning_rate" not in options:  # only who takes part
            return arguments(**options | {"use_cpu": True})
        raise Told({name: value for name, value in options.items() if name in ("bf16", "fp16")})

    monkeypatch.setattr(run, "TrainingArguments", tell)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    with pytest.raises(Told) as raised:
        train("flavour", recipe, toy_files["train"], tmp_path / "run", precision=precision)
    assert raised.value.args == (told,)
    settings = json.loads((tmp_path / "run" / "run.json").read_text())
    assert settings.get("precision", "float32") == precision
    assert ("precision" in settings) == bool(told)  # runs in float32 stay comparable with those from before there was a choice
