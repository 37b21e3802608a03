"""The example runs as it stands, on a detector that the package does not know, and publishes to a Hub on this machine."""

import os
import subprocess
import sys
from pathlib import Path

import hub_server
import pytest
import torch
from safetensors.torch import load

from nufm_hub.detectors import list_detectors
from nufm_hub.models import AutoModelForParticleID, NuFMConfig, NuFMForPreTraining, NuFMProcessor
from nufm_hub.transfer import TransferReport

ROOT = Path(__file__).parents[2]
ID = "my-name/gasbox-tracks"

# Another machine: nothing in its cache, and only the id.
DOWNLOAD = """
import sys, torch
from huggingface_hub import HfApi, ModelCard, snapshot_download
from transformers import AutoModel
from nufm_hub import AutoModelForParticleID, EventDataset, NuFMForParticleID, NuFMProcessor, ParticlePipeline, TransferReport

name, folder, test = sys.argv[1:]
local = NuFMForParticleID.from_pretrained(folder).state_dict()

def same(model):
    theirs = model.state_dict()
    return all(torch.equal(theirs[k], local[k]) for k in theirs)

model = AutoModelForParticleID.from_pretrained(name)
assert type(model) is NuFMForParticleID and model.name_or_path == name and set(model.state_dict()) == set(local) and same(model)
assert same(AutoModel.from_pretrained(name))
assert NuFMProcessor.from_pretrained(name).to_dict() == NuFMProcessor.from_pretrained(folder).to_dict()
assert TransferReport.load(snapshot_download(name)) == TransferReport.load(folder)
card = ModelCard.load(name)
assert card.data.tags == ["nufm", "neutrino"] and TransferReport.load(folder).to_markdown() in card.text
events = EventDataset(test)
predict = ParticlePipeline.from_pretrained(name)
right = sum(p["label"] == ("track", "shower")[events[i].truth["particle"]] for i, p in enumerate(predict(events[i] for i in range(len(events)))))
print("accuracy", right / len(events))

HfApi().create_tag(name, tag="v1")
changed = NuFMForParticleID.from_pretrained(name)
with torch.no_grad():
    changed.head.output.bias += 1
changed.push_to_hub(name)
assert not same(NuFMForParticleID.from_pretrained(name))
assert same(NuFMForParticleID.from_pretrained(name, revision="v1"))
assert TransferReport.load(folder).to_markdown() in ModelCard.load(name).text  # a further push leaves the card alone
try:
    NuFMForParticleID.from_pretrained(name, revision="v9")
except OSError as error:
    assert "v9" in str(error)
"""


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The Hub after the example, its output, and how to run a program against that Hub."""
    place = tmp_path_factory.mktemp("example")
    torch.manual_seed(0)
    NuFMForPreTraining(NuFMConfig.preset("nano", hidden_size=48)).save_pretrained(place / "source")
    with hub_server.Hub() as hub:

        def run(name, *command):
            settings = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
            environment = {**os.environ, **settings, "HF_TOKEN": "hf_of_nobody", "HF_HOME": str(place / name), "OMP_NUM_THREADS": "1"}
            done = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=900, env=environment)
            assert done.returncode == 0, done.stderr
            return done.stdout

        script = ROOT / "examples" / "new_detector.py"
        output = run("author", script, "--source", place / "source", "--out", place / "out", "--steps", "40", "--push", ID)
        yield hub, place / "out", output, run


def test_what_the_example_leaves(published):
    _, out, output, _ = published
    assert float(output.split(f"reloaded from {ID}: ")[1]) > 0.8, output  # two balanced classes
    folder = out / "model"
    report = TransferReport.load(folder)
    assert report.fraction == 1
    card = (folder / "README.md").read_text()
    assert report.to_markdown() in card
    assert "held-out simulated events" in card
    assert str(out.parent) not in card
    model = AutoModelForParticleID.from_pretrained(folder)
    assert model.config.spec.name == "gasbox"
    assert model.config.spec.name not in list_detectors()
    assert model.config.id2label == {0: "track", 1: "shower"}
    assert NuFMProcessor.from_pretrained(folder).spec == model.config.spec


def test_what_is_published(published):
    hub, out, _, run = published
    folder = out / "model"
    assert set(hub.repositories) == {ID}  # and nothing but this was asked for: the source is a folder, ids of ours are bundled
    files = hub.files(ID)
    assert files == {p.name: p.read_bytes() for p in folder.iterdir()}
    assert {"README.md", "config.json", "model.safetensors", "preprocessor_config.json", "transfer_report.json"} <= set(files)
    weights, model = load(files["model.safetensors"]), AutoModelForParticleID.from_pretrained(folder).state_dict()
    assert all(torch.equal(weights[name], model[name]) for name in weights)

    reported = float((folder / "README.md").read_text().rsplit(": ", 1)[1].rstrip(".\n"))
    assert float(run("reader", "-c", DOWNLOAD, ID, folder, out / "test.parquet").split("accuracy ")[1]) == pytest.approx(reported)
    strangers = [path for _, path in hub.requests if ID not in path and path not in ("/api/repos/create", "/api/validate-yaml", "/large")]
    assert not [path for path in strangers if not path.startswith(("/large/", "/api/whoami"))]
