"""Taking an encoder to another detector: every tensor accounted for, nothing inherited by accident, nothing left uninitialised."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Trainer, TrainingArguments

from nufm_hub.detectors import load_detector
from nufm_hub.events import Event, Voxels
from nufm_hub.events.crops import crop_detector, crop_particle, particle_crops
from nufm_hub.events.parquet import read_events
from nufm_hub.events.samples import sample_path
from nufm_hub.models import (
    NuFMConfig,
    NuFMForFlavourClassification,
    NuFMForParticleID,
    NuFMForPreTraining,
    NuFMForVertexRegression,
    NuFMModel,
    NuFMProcessor,
)
from nufm_hub.training.optimiser import parameter_groups
from nufm_hub.transfer import TransferReport, WarmUpNewWeights, freeze_carried, transfer_encoder, unfreeze

SIZES = {
    "hidden_size": 24, "num_attention_heads": 2, "window_depths": [2, 1], "fusion_depth": 2,
    "decoder_hidden_size": 12, "decoder_num_attention_heads": 2, "decoder_depth": 1,
}  # fmt: skip


def box(name: str, shape: tuple[int, int, int] = (8, 8, 16), channels: tuple[str, ...] = ("energy",)) -> dict:
    return {
        "kind": "voxels", "name": name, "shape": shape, "voxel_size": [10, 10, 10], "origin": [0, 0, 0],
        "patch": [4, 4, 4], "window": [2, 2, 2], "channels": channels,
    }  # fmt: skip


def detector(*branches: dict, name: str = "mine") -> dict:
    return {"name": name, "event_labels": {"particle": ["a", "b", "c"]}, "branches": branches or (box("cubes"),)}


def random_source(cls=NuFMForPreTraining, **overrides):
    """A model none of whose weights is at its start value."""
    torch.manual_seed(1)
    model = cls(NuFMConfig(**({"detector": "fasercal"} | SIZES | overrides)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def source():
    return random_source()


@pytest.fixture(scope="module")
def folder(source, tmp_path_factory):
    path = tmp_path_factory.mktemp("source")
    source.save_pretrained(path)
    return path


def role(name: str) -> str:
    return name.split(".")[0]


def test_three_lines(source, folder):
    model, report = transfer_encoder(str(folder), NuFMForParticleID, detector="superfgd", num_labels=4)
    assert model.config.id2label == {0: "proton", 1: "pion", 2: "muon", 3: "electron"}
    assert model.config.spec == load_detector("superfgd")
    assert report.source_detector == "fasercal"
    assert report.source == folder.name  # a published report says nothing of the machine
    theirs, ours = source.state_dict(), model.state_dict()
    for name, tensor in ours.items():
        if role(name) == "encoder":
            assert torch.equal(tensor, theirs[name]), name
    assert set(report.names("loaded")) == {n for n in ours if role(n) == "encoder"}
    assert report.fraction == 1
    skipped = set(report.names("skipped"))
    assert skipped == set(theirs) - set(report.names("loaded"))
    assert {role(n) for n in skipped} == {"embeddings", "encoder", "decoder"}
    text = str(report)
    for words in ("encoder.cross_layers", "belongs to the detector", "branch 'ahcal' has no counterpart", "100.0%"):
        assert words in text


def test_nothing_moves_because_shapes_happen_to_match(source):
    # the same detector, so that every shape matches; the source's weights have a standard deviation of 1
    model, report = transfer_encoder(source, NuFMForPreTraining, detector="fasercal")
    theirs = source.state_dict()
    for row in report.rows:
        if row.status == "re-initialised":
            mine = model.state_dict()[row.name]
            assert mine.shape == theirs[row.name].shape
            assert not torch.equal(mine, theirs[row.name]), row.name
    new = set(report.names("re-initialised"))
    assert new == {n for n in theirs if role(n) != "encoder" or n.startswith("encoder.branches.1.")}
    assert set(report.names("loaded")) | new == set(theirs)
    per_branch = sum(p.numel() for n, p in source.named_parameters() if n.startswith("encoder.branches.1."))
    total = sum(p.numel() for n, p in source.named_parameters() if role(n) == "encoder")
    assert report.fraction == pytest.approx(1 - per_branch / total)


@pytest.mark.parametrize("cls", [NuFMModel, NuFMForFlavourClassification, NuFMForVertexRegression, NuFMForParticleID, NuFMForPreTraining])
def test_new_weights_start_as_in_a_fresh_model(source, cls):
    """Means and widths of new tensors are those of a model made from scratch: nothing is left uninitialised."""
    target = detector(box("cubes"), box("bars", channels=("energy", "time")), {"kind": "image", "name": "towers", "shape": [2, 3]})
    if cls is NuFMForPreTraining:
        target["branches"][0]["labels"] = [{"name": "ghost", "classes": ["ghost"]}]
    extra = {"num_labels": 3} if cls is NuFMForFlavourClassification else {}
    torch.manual_seed(0)
    model, report = transfer_encoder(source, cls, target, **extra)
    fresh = cls(model.config).state_dict()
    state = model.state_dict()
    for row in report.rows:
        if row.status in ("re-initialised", "missing"):
            mine, other = state[row.name].float(), fresh[row.name].float()
            assert abs(mine.mean() - other.mean()) <= 6 * other.std(unbiased=False) / row.parameters**0.5 + 1e-6, row.name
            if row.parameters > 1:
                assert mine.std() <= 2 * other.std() + 1e-6, row.name
    buffers, same = dict(model.named_buffers()), dict(cls(model.config).named_buffers())
    assert all(torch.equal(buffers[n], same[n]) for n in same)


def test_source_in_memory_is_left_alone(source):
    before = {k: v.clone() for k, v in source.state_dict().items()}
    model, report = transfer_encoder(source, NuFMForParticleID, detector())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert all(torch.equal(v, before[k]) for k, v in source.state_dict().items())
    assert report.detector == "mine"


def test_heads_and_base_models_are_sources_too():
    for cls in (NuFMModel, NuFMForFlavourClassification):
        model = random_source(cls)
        new, report = transfer_encoder(model, NuFMForFlavourClassification, "fasercal")
        assert not torch.equal(new.state_dict()["head.output.weight"], model.state_dict().get("head.output.weight", torch.zeros(1)))
        assert len(report.names("loaded")) == sum(n.startswith("encoder.") and ".branches.1." not in n for n in model.state_dict())


def test_half_precision_source_becomes_float32(source, tmp_path):
    model = random_source(NuFMModel).to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    new, _ = transfer_encoder(tmp_path, NuFMForParticleID, detector())
    assert {p.dtype for p in new.parameters()} == {torch.float32}
    assert torch.equal(new.encoder.tokens_norm.weight, model.encoder.tokens_norm.weight.float())


def test_sizes_come_from_the_source_and_the_rest_from_the_detector(source):
    model, _ = transfer_encoder(source, NuFMForPreTraining, detector(box("a"), box("b"), box("c")), drop_path_rate=0.3)
    config = model.config
    assert (config.hidden_size, config.num_attention_heads, config.fusion_depth) == (24, 2, 2)
    assert config.window_depths == [2, 1, 1]
    assert config.relational is False  # this detector has no voxel labels
    assert config.drop_path_rate == 0.3
    assert source.config.relational is True


def test_depths_may_differ(source):
    model, report = transfer_encoder(source, NuFMForParticleID, detector(), min_loaded=0.4, window_depths=[1], fusion_depth=4)
    state, theirs = model.state_dict(), source.state_dict()
    for name in report.names("loaded"):
        assert torch.equal(state[name], theirs[name])
    missing = report.names("missing")
    assert {n.split(".")[1:3][1] for n in missing} == {"2", "3"}
    assert {n.split(".")[1] for n in missing} == {"cross_layers", "self_layers"}
    assert any(n.startswith("encoder.branches.0.layers.0.") for n in report.names("loaded"))
    unused = [r for r in report.rows if r.name.startswith("encoder.branches.0.layers.1.")]
    assert unused
    assert all(r.status == "skipped" and r.reason == "the target has fewer layers" for r in unused)
    assert 0.4 < report.fraction < 1


def test_nothing_of_another_width_is_carried(source):
    with pytest.raises(ValueError, match=r"only 0\.0% of the encoder") as error:
        transfer_encoder(source, NuFMForParticleID, detector(), hidden_size=12)
    assert "encoder.self_layers" in str(error.value)
    assert "shape differs" in str(error.value)
    model, report = transfer_encoder(source, NuFMForParticleID, detector(), min_loaded=0, hidden_size=12)
    assert report.fraction == 0
    assert all(p.isfinite().all() for p in model.parameters())


def test_attention_of_another_number_of_heads_is_another_thing(source):
    _, report = transfer_encoder(source, NuFMForParticleID, detector(), min_loaded=0.3, num_attention_heads=4)
    loaded = report.names("loaded")
    assert loaded
    assert not any(".attention." in n for n in loaded)
    assert {r.reason for r in report.rows if ".attention." in r.name and r.status == "re-initialised"} == {"number of heads differs"}


def test_min_loaded_is_a_threshold_on_the_share(source):
    _, report = transfer_encoder(source, NuFMForParticleID, detector(), min_loaded=0, fusion_depth=6)
    share = report.fraction
    transfer_encoder(source, NuFMForParticleID, detector(), min_loaded=share, fusion_depth=6)
    with pytest.raises(ValueError, match="min_loaded"):
        transfer_encoder(source, NuFMForParticleID, detector(), min_loaded=share + 1e-6, fusion_depth=6)


def test_report_round_trip(source, tmp_path):
    model, report = transfer_encoder(source, NuFMForParticleID, detector())
    model.save_pretrained(tmp_path)  # takes the report along
    assert json.loads((tmp_path / "transfer_report.json").read_text())["fraction"] == 1
    again = TransferReport.load(tmp_path)
    assert again == report
    assert str(again) == str(report)
    modules = [line.split("|")[1].strip() for line in report.to_markdown().splitlines()[2:-2]]
    assert modules == [f"`{m}`" for m, *_ in report.summary()]
    assert sum(n for _, _, n, _, _ in report.summary()) == len(report.rows)
    assert NuFMForParticleID.from_pretrained(tmp_path).config.num_labels == 3
    (tmp_path / "transfer_report.json").write_text("[]")
    with pytest.raises(ValueError, match="not a transfer report"):
        TransferReport.load(tmp_path)


def test_card(source, tmp_path):
    """A card is made where there is none; of a card that is there only the section of the table changes."""
    model, report = transfer_encoder(source, NuFMForParticleID, detector())
    model.save_pretrained(tmp_path)
    card = tmp_path / "README.md"
    made = card.read_text()
    assert made.startswith("---\nlibrary_name: transformers\ntags: [nufm, neutrino]\n---\n\n# NuFMForParticleID for mine\n")
    assert made.endswith(f"## What was carried over\n\n{report.to_markdown()}\n")
    replace(report, source="nufm/fasercal-mae").save(tmp_path / "from-id")
    assert "\nbase_model: nufm/fasercal-mae\n" in (tmp_path / "from-id" / "README.md").read_text()

    card.write_text(f"# Mine\n\nFirst.\n\n{made.split('# NuFMForParticleID for mine')[1].strip()}\n\n## What was carried over later\n\nLast.\n")
    other, second = transfer_encoder(source, NuFMForParticleID, detector(), min_loaded=0, fusion_depth=4)
    other.save_pretrained(tmp_path)
    text = card.read_text()
    assert text == f"# Mine\n\nFirst.\n\n## What was carried over\n\n{second.to_markdown()}\n\n## What was carried over later\n\nLast.\n"
    assert second.to_markdown() != report.to_markdown()
    again = NuFMForParticleID.from_pretrained(tmp_path)
    assert again.transfer_report is None  # what is saved next may be anything


def test_bad_sources(source, folder, tmp_path):
    broken = random_source()
    with torch.no_grad():
        broken.encoder.self_layers[1].mlp[0].bias[3] = float("nan")
    with pytest.raises(ValueError, match=r"encoder\.self_layers\.1\.mlp\.0\.bias"):
        transfer_encoder(broken, NuFMForParticleID, "superfgd")
    broken.save_pretrained(tmp_path / "broken")
    with pytest.raises(ValueError, match=r"broken: 1 tensors hold NaN or infinity, the first is 'encoder\.self_layers\.1\.mlp\.0\.bias'"):
        transfer_encoder(tmp_path / "broken", NuFMForParticleID, "superfgd")
    with pytest.raises(ValueError, match="no encoder"):
        transfer_encoder(torch.nn.Linear(2, 2), NuFMForParticleID, "superfgd")
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match=r"of the family 'bert', which this version of nufm_hub does not know"):
        transfer_encoder(tmp_path / "bert", NuFMForParticleID, "superfgd")
    shutil.copytree(folder, tmp_path / "cut")
    weights = load_file(tmp_path / "cut" / "model.safetensors")
    del weights["encoder.tokens_norm.bias"]
    save_file(weights, tmp_path / "cut" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"incomplete.*encoder\.tokens_norm\.bias"):
        transfer_encoder(tmp_path / "cut", NuFMForParticleID, "superfgd")
    for name in [n for n in weights if n.startswith("encoder.")]:
        del weights[name]
    save_file(weights, tmp_path / "cut" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="no encoder"):
        transfer_encoder(tmp_path / "cut", NuFMForParticleID, "superfgd")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"detector": "hyperk"}, "unknown detector 'hyperk'"),
        ({"detector": "nowhere.json"}, "cannot read a detector spec"),
        ({"detector": detector(), "num_attention_heads": 5}, "num_attention_heads=5 divides"),
        ({"detector": detector(), "hiden_size": 24}, "hiden_size"),
        ({"detector": detector(), "min_loaded": 2}, "min_loaded=2"),
        ({"detector": detector(), "head_class": torch.nn.Linear}, "is no class of models"),
        ({"detector": detector(), "head_class": NuFMForFlavourClassification}, r"names no classes for 'flavour'.*: add event_labels"),
        ({"detector": detector(), "num_labels": 2}, "num_labels=2, but detector 'mine' names 3 classes for 'particle'"),
        ({"detector": detector(), "num_labels": 7}, "num_labels=7, but detector 'mine' names 3 classes for 'particle'"),
    ],
)
def test_bad_arguments(source, arguments, message):
    with pytest.raises(ValueError, match=message):
        transfer_encoder(source, **({"head_class": NuFMForParticleID} | arguments))


def events(count: int, seed: int) -> list[Event]:
    rng = np.random.default_rng(seed)
    out = []
    for i in range(count):
        cells = np.unique(rng.integers(0, (8, 8, 16), (20, 3)), axis=0)
        out.append(Event("mine", {"cubes": Voxels(cells, rng.lognormal(0, 1, len(cells)))}, truth={"particle": i % 3}, provenance={"index": i}))
    return out


def test_labels_outside_the_classes(source):
    model, _ = transfer_encoder(source, NuFMForParticleID, detector(), num_labels=2, id2label={0: "x", 1: "y"})
    sample = events(3, 0)
    batch = NuFMProcessor.fit(sample, detector())(sample, labels="particle")
    with pytest.raises(ValueError, match="label 2 is none of the 2 classes"):
        model(**batch)


def test_freezing(source):
    model, report = transfer_encoder(source, NuFMForParticleID, detector())
    assert freeze_carried(model, report) == report.names("loaded")
    assert {role(n) for n, p in model.named_parameters() if p.requires_grad} == {"embeddings", "head"}
    # depths: embeddings 0, two window layers 1 and 2, two rounds of fusion 3 and 4
    assert {n.split(".")[1] + n.split(".")[2] for n in unfreeze(model, depth=4)} == {"cross_layers1", "self_layers1"}
    unfreeze(model, depth=2)
    assert not model.encoder.branches[0].layers[0].mlp[0].weight.requires_grad
    assert model.encoder.branches[0].layers[1].mlp[0].weight.requires_grad
    unfreeze(model)
    assert all(p.requires_grad for p in model.parameters())
    with pytest.raises(ValueError, match="another model"):
        freeze_carried(torch.nn.Linear(2, 2), report)


def test_new_weights_warm_up_first(source, tmp_path):
    model, report = transfer_encoder(source, NuFMForParticleID, detector())
    sample = events(12, 0)
    processor = NuFMProcessor.fit(sample, detector())
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    carried = set(report.names("loaded"))
    changed = []

    class Watch(WarmUpNewWeights):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            changed.append({n for n, p in model.named_parameters() if not torch.equal(p, start[n])})

    Trainer(
        model=model,
        args=TrainingArguments(
            str(tmp_path), max_steps=3, per_device_train_batch_size=4, use_cpu=True, remove_unused_columns=False, disable_tqdm=True
        ),
        train_dataset=sample,
        data_collator=lambda batch: dict(processor(batch, labels="particle")),
        optimizers=(torch.optim.AdamW(parameter_groups(model, 1e-2, 0.05)), None),
        callbacks=[Watch(report, steps=2)],
    ).train()
    assert changed[0]
    assert not (changed[0] | changed[1]) & carried
    assert carried <= changed[2]
    with pytest.raises(ValueError, match="steps=-1"):
        WarmUpNewWeights(report, -1)


@pytest.mark.parametrize(
    ("name", "shape", "window", "fit", "classes"),
    [("superfgd", (120, 120, 120), (2, 2, 2), "clamp", 4), ("pilarnet", (168, 168, 180), (2, 2, 3), "scale", 5)],
)
def test_crops_of_particles(source, name, shape, window, fit, classes):
    """The published transfers: crops with 31 features as one more token, from a FASERCal source."""
    spec = load_detector(name)
    crop_spec = crop_detector(spec, shape, (12, 12, 10), window, fit)
    model, report = transfer_encoder(source, NuFMForParticleID, crop_spec)
    assert report.fraction == 1
    assert model.config.num_labels == classes
    assert model.embeddings.tracks.projection.in_features == 31
    some = []
    for _, event in zip(range(4), read_events(sample_path(name))):
        some += [crop_particle(event, spec, crop_spec)] if fit == "clamp" else list(particle_crops(event, spec, crop_spec))
    some = some[:6]
    batch = NuFMProcessor.fit(some, crop_spec)(some, labels="particle")
    out = model(**batch)
    assert out.logits.shape == (len(some), classes)
    assert torch.isfinite(out.loss)
    # the features matter: they are a token of their own
    changed = model(**{**batch, "track_features": batch["track_features"].flip(-1)})
    assert not torch.allclose(out.logits, changed.logits, atol=1e-7, rtol=0)
