"""Trainings of a given number of steps: shorter and longer than an epoch, with and without validation, interrupted, and from the command line."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback
from typer.testing import CliRunner

from nufm_hub.cli import app
from nufm_hub.training import run, train

PER_EPOCH = 8  # steps; of 64 events, 8 a batch


def in_steps(recipe, steps):
    return {name: value for name, value in recipe.items() if name != "epochs"} | {"steps": steps}


def curves(model):
    found = json.loads((model / "training.json").read_text())["curves"]
    return [[(row["step"], row[name]) for row in found if name in row] for name in ("loss", "eval_loss")]


def test_whole_epochs_in_steps_are_the_same_training(toy_files, recipe, tmp_path):
    models = [
        train("flavour", settings, toy_files["train"], tmp_path / str(i), None, toy_files["validation"], use_cpu=True, evaluations=2)
        for i, settings in enumerate((recipe | {"epochs": 2}, in_steps(recipe, 2 * PER_EPOCH)))
    ]
    first, second = (load_file(folder / "model.safetensors") for folder in models)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert curves(models[0])[1] == curves(models[1])[1]


@pytest.mark.parametrize(
    ("steps", "logged"),
    [
        (3, [1, 2, 3]),
        (21, [3, 6, 9, 12, 15, 18, 21]),
        (25, [3, 6, 9, 12, 15, 18, 21, 24, 25]),
        (81, [8, 16, 24, 32, 40, 48, 56, 64, 72, 80, 81]),
    ],
)
def test_the_last_step_is_logged_and_evaluated(steps, logged, toy_files, recipe, tmp_path):
    model = train("flavour", in_steps(recipe, steps), toy_files["train"], tmp_path / "run", None, toy_files["validation"], use_cpu=True)
    losses, evaluated = curves(model)
    assert [step for step, _ in losses] == [step for step, _ in evaluated] == logged
    best = json.loads((model / "training.json").read_text())["best_checkpoint_metric"]
    assert best == pytest.approx(min(loss for _, loss in evaluated))


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop |= state.global_step == self.step


def test_a_run_that_was_interrupted_within_an_epoch_ends_with_the_same_weights(toy_files, recipe, tmp_path, monkeypatch):
    def go(folder):
        return train("pretraining", in_steps(recipe, 20), toy_files["train"], tmp_path / folder, seed=3, use_cpu=True, save_every=1)

    whole, finished, trainer = go("whole"), run.save_checkpoint, run.EventTrainer

    def interrupted(*args, **kwargs):
        made = trainer(*args, **kwargs)
        made.add_callback(StopAt(11))
        return made

    monkeypatch.setattr(run, "EventTrainer", interrupted)
    monkeypatch.setattr(run, "save_checkpoint", lambda *args: None)
    go("halves")
    assert (tmp_path / "halves" / "checkpoint-10").exists()
    monkeypatch.setattr(run, "EventTrainer", trainer)
    monkeypatch.setattr(run, "save_checkpoint", finished)
    halves = go("halves")
    assert json.loads((halves / "training.json").read_text())["resumed"]
    first, second = (load_file(folder / "model.safetensors") for folder in (whole, halves))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_length_on_the_command_line(toy_files, recipe, tmp_path, printed):
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    command = ["--events", str(toy_files["train"]), "--recipe", str(tmp_path / "recipe.json"), "--cpu", "--out"]
    for task, options, steps in ((["pretrain"], ["--steps", "2"], 2), (["finetune", "flavour"], ["--epochs", "1"], PER_EPOCH)):
        out = tmp_path / task[0]
        result = CliRunner().invoke(app, [*task, *command, str(out), *options])
        assert result.exit_code == 0, result.output
        assert curves(out / "model")[0][-1][0] == steps
        result = CliRunner().invoke(app, [*task, *command, str(tmp_path / "both"), "--steps", "2", "--epochs", "1"])
        assert result.exit_code == 2
        assert "give one of them" in printed(result)
        assert not (tmp_path / "both").exists()
