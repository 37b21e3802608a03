"""Steps in parts: the losses of whole events, added up over micro-batches."""

from dataclasses import replace

import pytest
from safetensors.torch import load_file

from nufm_hub.events import read_detector, read_events, write_events
from nufm_hub.training import train


@pytest.fixture
def charged_current(toy_files, tmp_path):
    """Events that all carry all truth."""
    events = (replace(e, truth=e.truth | {"is_cc": True}) for e in read_events(toy_files["train"]))
    write_events(events, tmp_path / "cc.parquet", read_detector(toy_files["train"]))
    return tmp_path / "cc.parquet"


def test_joint_losses_add_up(charged_current, recipe, tmp_path):
    """Where every event has every quantity. A loss that only some events have (the lepton's, of charged-current ones) is a mean over those of a
    micro-batch, and weighs them by how many there are."""

    def go(micro_batch_size, rate):
        settings = recipe | {"epochs": 1, "augmentation": None, "base_learning_rate": rate, "micro_batch_size": micro_batch_size}
        folder = train("reconstruction", settings, charged_current, tmp_path / f"{micro_batch_size}-{rate}", seed=2, use_cpu=True)
        return load_file(folder / "model.safetensors")

    whole, parts, start = go(8, 0.006), go(2, 0.006), go(8, 1e-30)
    assert max((whole[name] - start[name]).abs().max().item() for name in whole) > 5e-4
    assert max((whole[name] - parts[name]).abs().max().item() for name in whole) < 1e-5
