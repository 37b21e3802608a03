"""The example runs as it stands, on a detector that the package does not know."""

import os
import subprocess
import sys
from pathlib import Path

import torch

from nufm_hub.detectors import list_detectors
from nufm_hub.models import AutoModelForParticleID, NuFMConfig, NuFMForPreTraining, NuFMProcessor
from nufm_hub.transfer import TransferReport

SCRIPT = Path(__file__).parents[2] / "examples" / "new_detector.py"


def test_example(tmp_path):
    torch.manual_seed(0)
    NuFMForPreTraining(NuFMConfig.preset("nano", hidden_size=48)).save_pretrained(tmp_path / "source")
    command = [sys.executable, SCRIPT, "--source", tmp_path / "source", "--out", tmp_path / "out", "--steps", "40"]
    run = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path / "hf")}
    )
    assert run.returncode == 0, run.stderr
    accuracy = float(run.stdout.split("reloaded from ")[1].split(": ")[1])
    assert accuracy > 0.8, run.stdout  # two balanced classes
    folder = tmp_path / "out" / "model"
    report = TransferReport.load(folder)
    assert report.fraction == 1
    assert report.to_markdown() in (folder / "README.md").read_text()
    assert str(tmp_path) not in (folder / "README.md").read_text()
    model = AutoModelForParticleID.from_pretrained(folder)
    assert model.config.spec.name == "gasbox"
    assert model.config.spec.name not in list_detectors()
    assert model.config.id2label == {0: "track", 1: "shower"}
    assert NuFMProcessor.from_pretrained(folder).spec == model.config.spec
