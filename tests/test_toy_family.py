"""A family that only a test knows goes all the way through the public doors: nothing in the package names it."""

import importlib.util
import json
import os
import subprocess
import sys
import types
from importlib.metadata import EntryPoint
from pathlib import Path

import hub_server
import numpy as np
import pytest
import torch
import toy_family
from safetensors.torch import load_file
from toy_detector import SPEC, toy_event

import nufm_hub
from nufm_hub import (
    AutoConfig,
    AutoModel,
    AutoModelForFlavourClassification,
    AutoModelForVertexRegression,
    AutoProcessor,
    FlavourPipeline,
    NuFMForFlavourClassification,
    NuFMModel,
    list_families,
    register_family,
    train,
    transfer_encoder,
)
from nufm_hub.cards import make_card, write_card
from nufm_hub.detectors import load_detector
from nufm_hub.evaluation import evaluate
from nufm_hub.events import read_events, write_events
from nufm_hub.events.samples import sample_path
from nufm_hub.models import families
from nufm_hub.training.optimiser import encoder_depths

RECIPE = {
    "family": "toy", "preset": "nano", "epochs": 8, "batch_size": 8, "micro_batch_size": 8, "base_learning_rate": 0.5, "layer_decay": 0.9,
    "ema_decay": 0.5, "augmentation": {"mirror_axes": [0], "rotate_axes": []},
}  # fmt: skip
ID = "my-name/toy-flavour"
# Another process, which has only the id and the module of the family.
DOWNLOAD = """
import sys
import toy_family, transformers
from nufm_hub import AutoModelForFlavourClassification, FlavourPipeline, read_events

name, events = sys.argv[1:]
assert type(transformers.AutoModel.from_pretrained(name)) is toy_family.ToyModel
assert type(transformers.AutoFeatureExtractor.from_pretrained(name)) is toy_family.ToyProcessor
AutoModelForFlavourClassification.from_pretrained(name).push_to_hub(name + "-again")
held = list(read_events(events))
right = [p["label"] == ("low", "high")[e.truth["flavour"]] for p, e in zip(FlavourPipeline.from_pretrained(name)(held), held)]
print(sum(right) / len(right))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Events, a pre-training and a fine-tuning from it."""
    folder = tmp_path_factory.mktemp("family")
    for seed, (name, count) in enumerate({"train": 64, "test": 60}.items()):
        rng = np.random.default_rng(seed)
        write_events((toy_event(rng, i) for i in range(count)), folder / f"{name}.parquet", SPEC)
    encoder = train("pretraining", RECIPE, folder / "train.parquet", folder / "encoder", use_cpu=True)
    train("flavour", RECIPE, folder / "train.parquet", folder / "flavour", encoder, use_cpu=True, validation=folder / "test.parquet")
    return folder


def test_training_starts_from_the_encoder_and_learns(folder):
    encoder, flavour = (load_file(folder / run / "model" / "model.safetensors") for run in ("encoder", "flavour"))
    assert {"decoder.weight", "decoder.bias"} <= encoder.keys()
    assert not any(name.startswith("decoder.") for name in flavour)
    record = json.loads((folder / "flavour" / "model" / "training.json").read_text())
    assert record["source"] == str(folder / "encoder" / "model")
    model = AutoModelForFlavourClassification.from_pretrained(folder / "flavour" / "model")
    assert type(model) is toy_family.ToyForFlavourClassification
    assert sorted(set(encoder_depths(model).values())) == [0, 1, 2]
    assert type(AutoModel.from_pretrained(folder / "flavour" / "model")) is toy_family.ToyModel
    assert type(AutoConfig.from_pretrained(folder / "flavour" / "model")) is toy_family.ToyConfig
    assert type(AutoProcessor.from_pretrained(folder / "flavour" / "model")) is toy_family.ToyProcessor


def test_evaluation_and_pipeline_agree(folder):
    result = evaluate(folder / "flavour" / "model", folder / "test.parquet", num_resamples=50, use_cpu=True)
    assert result["architecture"] == "ToyForFlavourClassification"
    assert result["metrics"]["flavour"]["accuracy"] > 0.9  # 0.5 by chance
    held = list(read_events(folder / "test.parquet"))
    predicted = FlavourPipeline.from_pretrained(folder / "flavour" / "model")(held)
    right = [p["label"] == ("low", "high")[e.truth["flavour"]] for p, e in zip(predicted, held)]
    assert np.mean(right) == pytest.approx(result["metrics"]["flavour"]["accuracy"])
    losses = evaluate(folder / "encoder" / "model", folder / "test.parquet", num_resamples=0, use_cpu=True)["metrics"]["pretraining"]
    assert losses.keys() == {"loss", "mean", "num_events"}
    with pytest.raises(ValueError, match="take no branch_mask"):
        evaluate(folder / "flavour" / "model", folder / "test.parquet", absent=["towers"], use_cpu=True)


def test_transfer_to_another_detector(folder, tmp_path):
    source = folder / "encoder" / "model"
    model, report = transfer_encoder(source, AutoModelForFlavourClassification, load_detector("fasercal"))
    weights = load_file(source / "model.safetensors")
    assert type(model) is toy_family.ToyForFlavourClassification
    assert model.config.num_labels == 6
    assert report.fraction == 1
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items() if name.startswith("encoder."))
    assert not torch.equal(model.embeddings.weight, weights["embeddings.weight"])  # of the same shape
    model.save_pretrained(tmp_path)
    assert "from `model`" in (tmp_path / "README.md").read_text()
    fasercal = tmp_path / "fasercal.parquet"
    events = [e for e, _ in zip(read_events(sample_path("fasercal")), range(8))]
    write_events(events, fasercal, load_detector("fasercal"))
    carried = train("flavour", RECIPE | {"epochs": 1, "augmentation": None}, fasercal, tmp_path / "run", source, transfer=True, use_cpu=True)
    assert type(AutoModelForFlavourClassification.from_pretrained(carried)) is toy_family.ToyForFlavourClassification


def test_cards(folder, tmp_path):
    model = folder / "flavour" / "model"
    result = evaluate(model, folder / "test.parquet", num_resamples=20, use_cpu=True)
    (tmp_path / "model.json").write_text(json.dumps(result))
    text = write_card(model, tmp_path, tmp_path).read_text()
    assert make_card(model, tmp_path).data.tags[:2] == ["toy", "neutrino"]
    assert "FlavourPipeline.from_pretrained" in text
    assert "arXiv" not in text  # it follows no paper


@pytest.mark.slow
def test_it_is_published_and_used_from_there(folder, tmp_path):
    with hub_server.Hub() as hub:
        environment = os.environ | {
            "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": "any", "HF_HOME": str(tmp_path),
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
        }  # fmt: skip

        def python(code, *arguments):
            done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], env=environment, capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, done.stderr[-3000:]
            return done.stdout

        publish = (
            "import sys; from huggingface_hub import HfApi; name, folder = sys.argv[1:]; HfApi().create_repo(name); "
            "HfApi().upload_folder(repo_id=name, folder_path=folder)"
        )
        python(publish, ID, folder / "flavour" / "model")
        assert float(python(DOWNLOAD, ID, folder / "test.parquet").split()[-1]) > 0.9
        assert {"config.json", "model.safetensors"} <= hub.files(f"{ID}-again").keys()


@pytest.mark.slow
def test_a_family_of_an_installed_package_is_found_by_commands(folder, tmp_path):
    source = Path(toy_family.__file__).read_text(encoding="utf-8").replace("Toy", "Mine").replace('"toy"', '"mine"')
    (tmp_path / "mine_models.py").write_text(source.split("register_family(")[0])
    record = tmp_path / "mine_models-1.0.dist-info"
    record.mkdir()
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: mine-models\nVersion: 1.0\n")
    (record / "entry_points.txt").write_text("[nufm_hub.families]\nmine = mine_models:Mine\n")
    (tmp_path / "recipe.json").write_text(json.dumps(RECIPE | {"family": "mine", "epochs": 1}))

    def nufm(*arguments, status=0):
        environment = os.environ | {"PYTHONPATH": str(tmp_path)}
        command = [sys.executable, "-c", "from nufm_hub.cli import app; app()", *map(str, arguments)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == status, done.stderr[-3000:]
        return done.stdout + done.stderr

    train_on = ("--events", folder / "train.parquet", "--recipe", tmp_path / "recipe.json", "--cpu")
    nufm("pretrain", *train_on, "--out", tmp_path / "encoder")
    nufm("finetune", "flavour", *train_on, "--source", tmp_path / "encoder" / "model", "--out", tmp_path / "flavour")
    nufm("evaluate", tmp_path / "flavour" / "model", "--events", folder / "test.parquet", "--out", tmp_path / "model.json", "--cpu")
    assert json.loads((tmp_path / "model.json").read_text())["architecture"] == "MineForFlavourClassification"
    record.rename(tmp_path / "gone")
    refused = nufm("evaluate", tmp_path / "flavour" / "model", "--events", folder / "test.parquet", "--cpu", status=2)
    assert "is of the family 'mine', which this version of nufm_hub does not know" in " ".join(refused.replace("│", " ").split())


def test_nothing_in_the_package_names_it():
    root = Path(nufm_hub.__file__).parent
    assert not [path for path in root.rglob("*.py") if "toy_family" in (text := path.read_text(encoding="utf-8")) or "ToyModel" in text]


def test_what_the_family_lacks_and_what_is_of_another_one_is_refused(folder, tmp_path):
    encoder = folder / "encoder" / "model"
    with pytest.raises(ValueError, match="the family 'toy' has no ToyForVertexRegression"):
        AutoModelForVertexRegression.from_pretrained(encoder)
    with pytest.raises(ValueError, match="the family 'toy' has no ToyForVertexRegression"):
        train("vertex", RECIPE, folder / "train.parquet", tmp_path / "run", encoder, use_cpu=True)
    with pytest.raises(ValueError, match="is of the family 'toy', not 'nufm'"):
        NuFMModel.from_pretrained(encoder)
    with pytest.raises(ValueError, match="of the family 'toy': its encoder does not fit into a NuFMForFlavourClassification"):
        transfer_encoder(encoder, NuFMForFlavourClassification, "fasercal")
    with pytest.raises(ValueError, match="unknown configuration fields \\['num_window_cls'\\]"):
        train("flavour", RECIPE | {"model": {"num_window_cls": 3}}, folder / "train.parquet", tmp_path / "run", use_cpu=True)
    assert not (tmp_path / "run").exists()


def test_families_that_nobody_knows(folder, tmp_path):
    unknown = tmp_path / "unknown"
    unknown.mkdir()
    for name in ("config.json", "preprocessor_config.json"):
        text = (folder / "flavour" / "model" / name).read_text()
        (unknown / name).write_text(text.replace('"toy"', '"later"').replace("ToyProcessor", "LaterProcessor"))
    for load in (AutoConfig, AutoModel, AutoModelForFlavourClassification, FlavourPipeline):
        with pytest.raises(ValueError, match=r"unknown is of the family 'later', which this version .* not know: it has \['nufm', 'toy'\]"):
            load.from_pretrained(unknown)
    with pytest.raises(ValueError, match=r"the processor 'LaterProcessor', which this version of nufm_hub does not know"):
        AutoProcessor.from_pretrained(unknown)
    with pytest.raises(ValueError, match="the recipe is of the family 'later'"):
        train("flavour", RECIPE | {"family": "later"}, folder / "train.parquet", tmp_path / "run", use_cpu=True)


def test_backends_of_sparse_operations(folder):
    model = AutoModel.from_pretrained(folder / "encoder" / "model", sparse_backend="torch")
    assert {layer.backend for layer in model.encoder["layers"]} == {"torch"}
    with pytest.raises(ValueError, match="sparse_backend='cuda' is none of torch, minkowski, spconv"):
        AutoModel.from_pretrained(folder / "encoder" / "model", sparse_backend="cuda")
    for backend, library in {"minkowski": "MinkowskiEngine", "spconv": "spconv"}.items():
        if importlib.util.find_spec(library) is None:
            with pytest.raises(ImportError, match=rf'pip install "nufm-hub\[{backend}\]"'):
                toy_family.ToyConfig(sparse_backend=backend)


def test_registration_is_checked(monkeypatch):
    def own(model_type):
        module = types.ModuleType("own_family")
        module.__all__ = ["OwnConfig", "OwnModel", "OwnProcessor"]
        module.OwnConfig = type("OwnConfig", (toy_family.ToyConfig,), {"model_type": model_type})
        monkeypatch.setitem(sys.modules, "own_family", module)
        return "own_family"

    assert list_families() == ["nufm", "toy"]
    with monkeypatch.context() as patch, pytest.raises(ValueError, match=r"called 'nufm': that of nufm_hub\.models\.nufm and that of mine"):
        patch.setattr(families, "entry_points", lambda group: [EntryPoint("nufm", "mine:Mine", group)])
        list_families()
    assert register_family("toy", toy_family.__name__, "Toy").prefix == "Toy"  # again: nothing
    with pytest.raises(ValueError, match=r"the name 'nufm' is taken by the family in nufm_hub\.models\.nufm"):
        register_family("nufm", toy_family.__name__, "Toy")
    with pytest.raises(ValueError, match="the prefix 'Toy' is that of the family 'toy'"):
        register_family("other", toy_family.__name__, "Toy")
    with pytest.raises(ValueError, match="taken by a model of transformers"):
        register_family("bert", own("bert"), "Own")
    with pytest.raises(ValueError, match=r"toy_family\.__all__ does not name \['OtherConfig', 'OtherProcessor', 'OtherModel'\]"):
        register_family("other", toy_family.__name__, "Other")
    with pytest.raises(ValueError, match=r"OwnConfig\.model_type is 'bert', not 'other'"):
        register_family("other", own("bert"), "Own")
    assert list_families() == ["nufm", "toy"]
