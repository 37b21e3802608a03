"""The moving average: its definition, what is evaluated, saved and kept, and that processes agree."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import TrainerState, TrainingArguments

from nufm_hub.models import NuFMForFlavourClassification
from nufm_hub.training import run, train
from nufm_hub.training.ema import TRAINING_WEIGHTS, ExponentialMovingAverage


def test_average_by_hand(tmp_path):
    model, ema = nn.Linear(1, 1, bias=False), ExponentialMovingAverage(0.3)
    arguments, state = TrainingArguments(output_dir=str(tmp_path), use_cpu=True), TrainerState()
    model.weight.data.fill_(1.0)
    ema.on_train_begin(arguments, state, None, model=model)
    want = 1.0
    for step, value in enumerate((2.0, -3.0, 5.0, 7.0), start=1):
        model.weight.data.fill_(value)
        state.global_step = step
        ema.on_step_end(arguments, state, None, model=model)
        kept = (2 / 11, 3 / 12, 0.3, 0.3)[step - 1]  # (1 + t) / (10 + t) until it exceeds the decay: 4 / 13 does
        want = kept * want + (1 - kept) * value
    with ema.averaged(model):
        assert model.weight.item() == pytest.approx(want)
        with ema.averaged(model):
            assert model.weight.item() == 7.0
    assert model.weight.item() == 7.0
    ema.on_train_end(arguments, state, None, model=model)
    assert model.weight.item() == pytest.approx(want)
    with ema.averaged(model):  # nothing is left to exchange
        assert model.weight.item() == pytest.approx(want)


@pytest.mark.parametrize("decay", [0, 1, -0.1, float("nan")])
def test_a_decay_that_is_none_is_refused(decay):
    with pytest.raises(ValueError, match="between 0 and 1"):
        ExponentialMovingAverage(decay)


class Spy(ExponentialMovingAverage):
    """Recomputes the average from the weights after each step, and keeps what was evaluated."""

    last: "Spy"

    def __init__(self, *args):
        super().__init__(*args)
        Spy.last, self.weights, self.evaluated = self, [], []

    def flat(self, model):
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    def on_train_begin(self, args, state, control, model, **kwargs):
        super().on_train_begin(args, state, control, model, **kwargs)
        self.weights.append(self.flat(model))

    def on_step_end(self, args, state, control, model, **kwargs):
        super().on_step_end(args, state, control, model, **kwargs)
        self.weights.append(self.flat(model))

    def on_evaluate(self, args, state, control, model, **kwargs):
        self.evaluated.append(self.flat(model))

    def averages(self):
        out = [self.weights[0].double()]
        for step, now in enumerate(self.weights[1:], start=1):
            kept = min(self.decay, (1 + step) / (10 + step))
            out.append(kept * out[-1] + (1 - kept) * now.double())
        return out


def flat_file(path, names):
    weights = load_file(path)
    return torch.cat([weights[name].flatten() for name in names])


def test_the_average_is_evaluated_and_saved_and_training_goes_on_without_it(toy_files, recipe, tmp_path, monkeypatch):
    settings = recipe | {"augmentation": None, "ema_decay": 0.7, "epochs": 3}
    plain = train("flavour", settings | {"ema_decay": 0}, toy_files["train"], tmp_path / "plain", seed=4, use_cpu=True)
    monkeypatch.setattr(run, "ExponentialMovingAverage", Spy)
    kept = train("flavour", settings, toy_files["train"], tmp_path / "last", seed=4, use_cpu=True, save_every=1)
    spy, names = Spy.last, list(load_file(plain / "model.safetensors"))
    order = [name for name, _ in NuFMForFlavourClassification.from_pretrained(kept).named_parameters()]
    assert sorted(order) == sorted(names)
    averages = spy.averages()
    assert len(averages) == 25  # 3 epochs of 8 steps
    assert torch.equal(spy.weights[-1], flat_file(plain / "model.safetensors", order))  # the average did not touch the training
    torch.testing.assert_close(flat_file(kept / "model.safetensors", order).double(), averages[-1], atol=1e-6, rtol=1e-5)
    checkpoint = tmp_path / "last" / "checkpoint-16"
    torch.testing.assert_close(flat_file(checkpoint / "model.safetensors", order).double(), averages[16], atol=1e-6, rtol=1e-5)
    assert torch.equal(flat_file(checkpoint / TRAINING_WEIGHTS, order), spy.weights[16])
    assert not (kept / TRAINING_WEIGHTS).exists()

    best = train("flavour", settings, toy_files["train"], tmp_path / "best", None, toy_files["validation"], seed=4, use_cpu=True)
    spy = Spy.last
    record = json.loads((best / "training.json").read_text())
    losses = [entry["eval_loss"] for entry in record["curves"] if "eval_loss" in entry]
    saved = flat_file(best / "model.safetensors", order).double()
    torch.testing.assert_close(saved, spy.averages()[8 * (1 + losses.index(min(losses)))], atol=1e-6, rtol=1e-5)
    for epoch, seen in enumerate(spy.evaluated, start=1):
        torch.testing.assert_close(seen.double(), spy.averages()[8 * epoch], atol=1e-6, rtol=1e-5)
    assert len(spy.evaluated) == 3


TWO_PROCESSES = """
import json, sys
import torch
from torch import distributed
from nufm_hub.training import train
from nufm_hub.training.ema import ExponentialMovingAverage
distributed.init_process_group("gloo")
assert distributed.get_world_size() == 2
ended = ExponentialMovingAverage.on_train_end

def compare(self, *args, **kwargs):
    mine = torch.cat([value.flatten() for value in self.average.values()])
    both = [torch.empty_like(mine) for _ in range(2)]
    distributed.all_gather(both, mine)
    assert torch.equal(*both)
    print("equal averages")
    return ended(self, *args, **kwargs)

ExponentialMovingAverage.on_train_end = compare
train("flavour", json.loads(sys.argv[1]), sys.argv[2], sys.argv[3], seed=5, use_cpu=True)
"""


@pytest.mark.slow
def test_two_processes_have_the_average_of_one(toy_files, recipe, tmp_path):
    one = recipe | {"epochs": 1, "augmentation": None, "ema_decay": 0.8}
    single = train("flavour", one, toy_files["train"], tmp_path / "one", seed=5, use_cpu=True)
    (tmp_path / "two.py").write_text(TWO_PROCESSES)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "ACCELERATE_USE_CPU": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(tmp_path / "two.py")]
    arguments = [json.dumps(one | {"micro_batch_size": 4}), str(toy_files["train"]), str(tmp_path / "two")]
    done = subprocess.run([*command, *arguments], check=True, timeout=240, env=environment, capture_output=True, text=True)
    assert done.stdout.count("equal averages") == 2
    first, second = (load_file(folder / "model.safetensors") for folder in (single, tmp_path / "two" / "model"))
    assert max((first[name] - second[name]).abs().max().item() for name in first) < 1e-4
