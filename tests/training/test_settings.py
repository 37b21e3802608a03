"""What a recipe says is what a training does."""

import json
import math

import pytest

from nufm_hub.training import run, train
from nufm_hub.training.optimiser import encoder_depths


@pytest.fixture(scope="module")
def trained(toy_files, recipe, tmp_path_factory):
    """The trainer of a training, and the folder of its model."""
    kept = []

    class Kept(run.EventTrainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            kept.append(self)

    model = recipe["model"] | {"drop_path_rate": 0.4, "label_smoothing": 0.15, "window_depths": [2], "fusion_depth": 2}
    settings = recipe | {
        "model": model,
        "epochs": 3,
        "layer_decay": 0.5,
        "weight_decay": 0.3,
        "betas": (0.8, 0.9),
        "max_grad_norm": 0.7,
        "warmup": 0.25,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "EventTrainer", Kept)
        folder = train("flavour", settings, toy_files["train"], tmp_path_factory.mktemp("settings") / "run", use_cpu=True)
    return kept[0], folder


def test_optimiser(trained):
    trainer = trained[0]
    assert {tuple(group["betas"]) for group in trainer.optimizer.param_groups} == {(0.8, 0.9)}
    assert trainer.args.max_grad_norm == 0.7
    depths, peak = encoder_depths(trainer.model), 0.1 * 8 / 256
    assert set(depths.values()) == {0, 1, 2, 3, 4}  # embeddings, two window layers, two fusion rounds
    found = {id(p): (group["initial_lr"], group["weight_decay"]) for group in trainer.optimizer.param_groups for p in group["params"]}
    for name, parameter in trainer.model.named_parameters():
        rate, decay = found[id(parameter)]
        assert rate == pytest.approx(peak * 0.5 ** (5 - depths.get(name, 5))), name
        assert decay in (0, 0.3)
    assert found[id(trainer.model.head.output.weight)] == (pytest.approx(peak), 0.3)


def test_warm_up_and_cosine(trained):
    """24 steps, 6 of them with a rising rate; what is logged is the rate of the first group in the step before."""
    trainer, folder = trained
    peak = trainer.optimizer.param_groups[0]["initial_lr"]
    rates = {row["step"]: row["learning_rate"] for row in json.loads((folder / "training.json").read_text())["curves"] if "loss" in row}
    assert rates == {step: pytest.approx(peak * 0.5 * (1 + math.cos(math.pi * (step - 1 - 6) / 18))) for step in (8, 16, 24)}
    shape = trainer.lr_scheduler.lr_lambdas[0]
    assert [shape(step) for step in (0, 3, 6, 24)] == pytest.approx([0, 0.5, 1, 0])


def test_model(trained):
    trainer, folder = trained
    config = json.loads((folder / "config.json").read_text())
    assert (config["drop_path_rate"], config["label_smoothing"]) == (0.4, 0.15)
    assert trainer.model.config.label_smoothing == 0.15
    assert [layer.drop_path for layer in trainer.model.encoder.branches[0].layers] == pytest.approx([0, 0.08])
    assert [layer.drop_path for layer in trainer.model.encoder.self_layers] == pytest.approx([0.24, 0.4])
