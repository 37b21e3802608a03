"""Learning from some of the events: which ones, and that nothing is taken from the others."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from nufm_hub import NuFMForEventReconstruction, NuFMProcessor
from nufm_hub.cli import app
from nufm_hub.events import EventDataset
from nufm_hub.training import train
from nufm_hub.training.data import EventSubset


def test_subsets_of_one_seed_are_nested_and_differ_between_seeds(toy_files):
    events = EventDataset(toy_files["train"])
    small, large, other = EventSubset(events, 10, 3), EventSubset(events, 30, 3), EventSubset(events, 30, 4)
    index = [[subset[i].provenance["index"] for i in range(len(subset))] for subset in (small, large, other)]
    assert [len(set(i)) for i in index] == [10, 30, 30]
    assert index[0] == index[1][:10]
    assert set(index[1]) != set(index[2])
    assert small.spec == events.spec
    for count in (0, 65):
        with pytest.raises(ValueError, match=f"cannot take {count} of 64 events"):
            EventSubset(events, count, 0)


@pytest.mark.parametrize("pretrained", [False, True])
def test_statistics_are_those_of_the_subset(pretrained, toy_files, recipe, tmp_path):
    short = recipe | {"epochs": 1}
    source = str(train("pretraining", short, toy_files["train"], tmp_path / "source", use_cpu=True)) if pretrained else None
    model = train("reconstruction", short, toy_files["train"], tmp_path / "run", source, seed=5, use_cpu=True, max_events=12)
    subset = EventSubset(EventDataset(toy_files["train"]), 12, 5)
    fitted = NuFMProcessor.fit((subset[i] for i in range(12)), subset.spec)
    processor = NuFMProcessor.from_pretrained(model)
    vertices = np.stack([subset[i].truth["vertex"] for i in range(12)])
    np.testing.assert_allclose(processor.statistics["vertex"]["mean"], vertices.mean(0))
    assert processor.momentum_scales == fitted.momentum_scales == NuFMForEventReconstruction.from_pretrained(model).config.momentum_scales
    # The inputs of a pretrained encoder stay what it knows: they come from events without labels.
    inputs = NuFMProcessor.from_pretrained(source) if pretrained else fitted
    assert processor.statistics["voxels"] == inputs.statistics["voxels"]
    record = json.loads((model / "training.json").read_text())
    assert record["max_events"] == record["data"]["train"]["events"] == 12
    assert max(entry["step"] for entry in record["curves"]) == 2


def test_another_number_of_events_is_another_run(toy_files, recipe, tmp_path):
    command = ["finetune", "flavour", "--events", str(toy_files["train"]), "--out", str(tmp_path / "run"), "--cpu"]
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    command += ["--recipe", str(tmp_path / "recipe.json"), "--set", "epochs=1"]
    assert CliRunner().invoke(app, [*command, "--max-events", "9"]).exit_code == 0
    assert json.loads((tmp_path / "run" / "run.json").read_text())["max_events"] == 9
    result = CliRunner().invoke(app, [*command[:5], str(tmp_path / "more"), *command[6:], "--max-events", "90"])
    assert result.exit_code == 2
    assert not (tmp_path / "more").exists()
