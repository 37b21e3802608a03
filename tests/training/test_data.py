"""Augmented training data: which change an event gets depends on seed, epoch and index, and on nothing else."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from nufm_hub import EventDataset
from nufm_hub.events.augmentation import Augmentation
from nufm_hub.tasks import get_task
from nufm_hub.training import train
from nufm_hub.training.data import AugmentedEvents, open_events


def test_every_epoch_changes_every_event_anew_and_repeatably(toy_files):
    events = EventDataset(toy_files["train"])
    augmented = AugmentedEvents(events, Augmentation(max_shift=0), events.spec, seed=4)
    seen = {}
    for epoch in (0, 1, 0):
        augmented.set_epoch(epoch)
        for index in (3, 5):
            event = augmented[index]
            assert event.truth["flavour"] == events[index].truth["flavour"]
            energies = np.sort(event.voxels["cubes"].energy)
            if (epoch, index) in seen:
                np.testing.assert_array_equal(energies, seen[epoch, index])
            seen[epoch, index] = energies
    assert not np.array_equal(seen[0, 3], seen[1, 3])
    other = AugmentedEvents(events, Augmentation(max_shift=0), events.spec, seed=5)
    assert not np.array_equal(np.sort(other[3].voxels["cubes"].energy), seen[0, 3])
    assert len(augmented) == len(events) == 64
    assert (events[3].voxels["cubes"].energy == EventDataset(toy_files["train"])[3].voxels["cubes"].energy).all()  # the events themselves stay


def test_labels_of_voxels_are_read_where_they_are_learnt(toy_files):
    for task, read in (("pretraining", True), ("voxels", True), ("flavour", False), ("reconstruction", False)):
        opened = open_events(get_task(task), toy_files["train"], toy_files["validation"], max_events=5, seed=0)
        assert [bool(events[0].voxels["cubes"].labels) for events in opened] == [read, read]


def test_a_training_goes_through_the_epochs_of_its_augmentation(toy_files, recipe, tmp_path, monkeypatch):
    asked, get = [], AugmentedEvents.__getitem__
    monkeypatch.setattr(AugmentedEvents, "__getitem__", lambda self, index: asked.append((self.epoch, index)) or get(self, index))
    train("vertex", recipe | {"epochs": 2}, toy_files["train"], tmp_path / "run", use_cpu=True)
    assert sorted(asked) == [(epoch, index) for epoch in range(2) for index in range(64)]


@pytest.mark.slow
def test_worker_processes_change_nothing(toy_files, recipe, tmp_path):
    settings = recipe | {"epochs": 2}
    weights = [
        load_file(train("vertex", settings, toy_files["train"], tmp_path / str(n), use_cpu=True, workers=n) / "model.safetensors") for n in (0, 1)
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
