"""Steps in parts: losses and gradients add up over micro-batches and processes, also where only some events have a truth."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from safetensors.torch import load_file

from nufm_hub.events import Voxels, read_detector, read_events, write_events
from nufm_hub.training import train

NEED_ALL = ("flavour", "vertex")  # truth of every event
TASKS = (*NEED_ALL, "momentum", "reconstruction", "voxels")


@pytest.fixture
def files(toy_files, tmp_path):
    """Events of each task: with few or many voxels and, where the task allows it, some without flavour, vertex or jet."""
    rng = np.random.default_rng(0)

    def event(whole, droppable):
        kept = {name: value for name, value in whole.truth.items() if name not in droppable or rng.random() < 0.6}
        cubes = whole.voxels["cubes"]
        some = slice(rng.integers(1, len(cubes.values)))
        fewer = Voxels(cubes.coordinates[some], cubes.values[some], {name: values[some] for name, values in cubes.labels.items()})
        return replace(whole, truth=kept, voxels={"cubes": fewer})

    made = {}
    for name, droppable in {"all": (), "some": ("flavour", "vertex", "jet_momentum")}.items():
        made[name] = tmp_path / f"{name}.parquet"
        write_events((event(e, droppable) for e in read_events(toy_files["train"])), made[name], read_detector(toy_files["train"]))
    return {task: made["all" if task in NEED_ALL else "some"] for task in TASKS}


def distance(first, second):
    """Length of the step between two sets of weights but the biases of keys, whose gradient is nothing but rounding, of which AdamW makes a step."""
    first, second = (load_file(folder / "model.safetensors") for folder in (first, second))
    assert first.keys() == second.keys()
    return sum((first[name] - second[name]).square().sum().item() for name in first if not name.endswith("key_value.bias")) ** 0.5


@pytest.mark.parametrize("task", TASKS)
def test_gradient_accumulation_changes_nothing_but_rounding(task, files, recipe, tmp_path):
    def go(micro_batch_size, rate):
        settings = recipe | {"epochs": 1, "augmentation": None, "base_learning_rate": rate, "micro_batch_size": micro_batch_size}
        return train(task, settings, files[task], tmp_path / f"{micro_batch_size}-{rate}", seed=2, use_cpu=True)

    whole = go(8, 0.006)
    assert distance(whole, go(2, 0.006)) < 0.01 * distance(whole, go(8, 1e-30))


TWO_PROCESSES = """
import json, sys
import torch
from nufm_hub.training import train
torch.distributed.init_process_group("gloo")
assert torch.distributed.get_world_size() == 2
for task, file in json.loads(sys.argv[2]).items():
    train(task, json.loads(sys.argv[1]), file, f"{sys.argv[3]}/two-{task}", seed=5, use_cpu=True)
"""


@pytest.mark.slow
def test_two_processes_learn_what_one_does(files, recipe, tmp_path):
    """One epoch with the same global batch: the average of two half batches is the whole batch, up to rounding."""
    one = recipe | {"epochs": 1, "augmentation": None}
    (tmp_path / "two.py").write_text(TWO_PROCESSES)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "ACCELERATE_USE_CPU": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(tmp_path / "two.py")]
    arguments = [json.dumps(one | {"micro_batch_size": 4}), json.dumps({task: str(file) for task, file in files.items()}), str(tmp_path)]
    subprocess.run([*command, *arguments], check=True, timeout=240, env=environment)
    for task in TASKS:
        single = train(task, one, files[task], tmp_path / task, seed=5, use_cpu=True)
        start = train(task, one | {"base_learning_rate": 1e-30}, files[task], tmp_path / f"{task}-start", seed=5, use_cpu=True)
        assert distance(single, tmp_path / f"two-{task}" / "model") < 0.01 * distance(single, start), task
