"""Task heads: losses, labels, and moving weights between the base and the heads."""

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModel

from nufm_hub import checkpoints
from nufm_hub.models import (
    AutoModelForFlavourClassification,
    AutoModelForParticleID,
    AutoModelForVertexRegression,
    NuFMConfig,
    NuFMForFlavourClassification,
    NuFMForParticleID,
    NuFMForVertexRegression,
    NuFMModel,
)

HEADS = [
    (NuFMForFlavourClassification, AutoModelForFlavourClassification, 3),
    (NuFMForParticleID, AutoModelForParticleID, 4),
    (NuFMForVertexRegression, AutoModelForVertexRegression, 3),
]


def test_classes_come_from_the_detector(toy):
    config = toy.config()
    flavour, particle, vertex = (cls(config) for cls, _, _ in HEADS)
    assert flavour.config.id2label == {0: "nue", 1: "numu", 2: "nc"}
    assert particle.config.label2id == {"e": 0, "mu": 1, "pi": 2, "p": 3}
    assert vertex.config.problem_type == "regression"
    assert config.num_labels == 2  # the caller's configuration is left alone
    assert NuFMForFlavourClassification(toy.config(num_labels=7)).head.output.out_features == 7


def test_head_starts_close_to_zero(toy):
    head = NuFMForFlavourClassification(toy.config(head_init_std=2e-5)).head
    assert 1e-5 < head.output.weight.std() < 3e-5
    assert not head.output.bias.any()


def test_cross_entropy(toy):
    torch.manual_seed(0)
    net = NuFMForFlavourClassification(toy.config(label_smoothing=0.1, head_init_std=1.0)).eval()
    batch, labels = toy.collate(toy.mixed_events()), torch.tensor([0, 2, -100, 1, 1, -100])
    out = net(**batch, labels=labels)
    known = labels >= 0
    log_p = out.logits[known].log_softmax(-1)
    target = 0.9 * F.one_hot(labels[known], 3) + 0.1 / 3
    torch.testing.assert_close(out.loss, -(target * log_p).sum(-1).mean())
    assert net(**batch, labels=torch.full((6,), -100)).loss == 0
    assert net(**batch, labels=torch.full((6,), -100), num_items_in_batch=0).loss == 0
    torch.testing.assert_close(net(**batch, labels=labels, num_items_in_batch=10).loss, out.loss * 4 / 10)  # a part of a batch
    assert net(**batch).loss is None


def test_distance_to_known_vertices(toy):
    torch.manual_seed(0)
    net = NuFMForVertexRegression(toy.config(head_init_std=1.0)).eval()
    labels = torch.randn(6, 3)
    labels[2] = float("nan")
    out = net(**toy.collate(toy.mixed_events()), labels=labels)
    known = torch.arange(6) != 2
    torch.testing.assert_close(out.loss, torch.linalg.vector_norm((out.logits - labels)[known], dim=1).sum() / 6)
    out.loss.backward()
    assert all(p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0, 1, 2, 3, 0, 0]), r"label 3 is none of the 3 classes \['nue', 'numu', 'nc'\]"),
        (torch.tensor([0, 1, -1, 0, 0, 0]), "label -1 is none"),
        (torch.zeros(6), "must be class indices"),
        (torch.zeros(6, 1, dtype=torch.long), "must be class indices"),
    ],
)
def test_refuses_labels(toy, labels, message):
    net = NuFMForFlavourClassification(toy.config())
    with pytest.raises(ValueError, match=message):
        net(**toy.collate(toy.mixed_events()), labels=labels)


def test_refuses_vertices(toy):
    with pytest.raises(ValueError, match="must be vertices"):
        NuFMForVertexRegression(toy.config())(**toy.collate(toy.mixed_events()), labels=torch.zeros(6))


def test_tuple_output(toy):
    net = NuFMForFlavourClassification(toy.config()).eval()
    batch, labels = toy.collate(toy.mixed_events()), torch.zeros(6, dtype=torch.long)
    loss, logits = net(**batch, labels=labels, return_dict=False)
    assert torch.equal(logits, net(**batch).logits)
    assert loss.ndim == 0


@pytest.mark.parametrize(("head_class", "auto_class", "outputs"), HEADS)
def test_save_and_load(toy, tmp_path, head_class, auto_class, outputs):
    torch.manual_seed(0)
    head = head_class(toy.config(head_init_std=1.0)).eval()
    head.save_pretrained(tmp_path)
    batch = toy.collate(toy.mixed_events())
    want = head(**batch).logits
    assert want.shape == (6, outputs)
    for loader in (head_class, auto_class):
        again, report = loader.from_pretrained(tmp_path, output_loading_info=True)
        assert type(again) is head_class
        assert not any(report[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        assert not again.training
        assert again.name_or_path == again.config.name_or_path == str(tmp_path)
        assert torch.equal(again(**batch).logits, want)


@pytest.mark.parametrize(("head_class", "auto_class", "outputs"), HEADS)
def test_base_to_head_and_back(toy, tmp_path, head_class, auto_class, outputs):
    torch.manual_seed(0)
    base = NuFMModel(toy.config()).eval()
    base.save_pretrained(tmp_path / "base")
    for loader in (head_class, auto_class):
        head, report = loader.from_pretrained(tmp_path / "base", output_loading_info=True)
        assert set(report["missing_keys"]) == {"head.norm.weight", "head.norm.bias", "head.output.weight", "head.output.bias"}
        assert not report["unexpected_keys"]
        for name, value in [*head.named_parameters(), *head.named_buffers()]:
            assert value.isfinite().all(), name
            assert value.device.type == "cpu", name
        assert head.head.output.weight.abs().max() < 1e-3
        for name, value in base.state_dict().items():
            assert torch.equal(head.state_dict()[name], value), name
    head.save_pretrained(tmp_path / "head")
    again = NuFMModel.from_pretrained(tmp_path / "head")
    batch = toy.collate(toy.mixed_events())
    assert torch.equal(again(**batch).pooler_output, base(**batch).pooler_output)


def test_missing_weights_start_as_in_a_new_model(toy, tmp_path):
    """Loading builds on the meta device: every kind of weight needs a rule, or it comes back as uninitialised memory."""
    NuFMForFlavourClassification(toy.config()).save_pretrained(tmp_path)
    kept = {"encoder.tokens_norm.weight": torch.full((24,), 3.0)}
    config = NuFMConfig.from_pretrained(tmp_path)
    loaded = NuFMForFlavourClassification.from_pretrained(None, config=config, state_dict=kept)
    fresh = NuFMForFlavourClassification(toy.config())
    assert torch.equal(loaded.encoder.tokens_norm.weight, kept["encoder.tokens_norm.weight"])
    for (name, a), (_, b) in zip(loaded.named_parameters(), fresh.named_parameters()):
        if name not in kept:
            assert a.isfinite().all(), name
            assert a.abs().max() <= 2.5 * b.abs().max() + 1e-6, name
            assert a.any() == b.any(), name
    for (name, a), (_, b) in zip(loaded.named_buffers(), fresh.named_buffers()):
        assert torch.equal(a, b), name


def test_library_auto_classes(toy, tmp_path):
    NuFMForFlavourClassification(toy.config()).save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is NuFMConfig
    assert type(AutoModel.from_pretrained(tmp_path)) is NuFMModel


def test_bundled_id(toy, tmp_path, monkeypatch):
    NuFMForFlavourClassification(toy.config()).save_pretrained(tmp_path / "weights")
    asked = []

    def resolve(name, revision=None):
        asked.append((str(name), revision))
        return str(tmp_path / "weights") if name == "nufm/toy" and revision is None else str(name)

    monkeypatch.setattr(checkpoints, "resolve", resolve)
    monkeypatch.setattr("nufm_hub.models.auto.resolve", resolve)
    assert NuFMConfig.from_pretrained("nufm/toy").name_or_path == "nufm/toy"
    for loader in (NuFMModel, NuFMForFlavourClassification, AutoModelForFlavourClassification):
        net = loader.from_pretrained("nufm/toy")
        assert net.name_or_path == net.config.name_or_path == "nufm/toy"
    asked.clear()
    with pytest.raises(OSError, match="couldn't find them"):
        NuFMModel.from_pretrained("nufm/toy", revision="v9", local_files_only=True)
    assert ("nufm/toy", "v9") in asked


def test_transfer_to_another_detector_keeps_names(toy):
    other = toy.spec.to_dict()
    other["branches"][0] |= {"shape": [24, 24, 20], "patch": [12, 12, 10], "window": [2, 2, 1]}
    a = {n for n in NuFMForFlavourClassification(toy.config()).state_dict() if n.startswith("encoder.")}
    b = {n for n in NuFMForFlavourClassification(toy.config(detector=other)).state_dict() if n.startswith("encoder.")}
    assert a == b


@pytest.mark.parametrize("load", [NuFMForParticleID.from_pretrained, AutoModelForParticleID.from_pretrained])
def test_a_head_stays_with_its_task(toy, tmp_path, load):
    """All heads have the same names; one of another task gives neither weights nor classes, whatever its shape."""
    source = NuFMForFlavourClassification(toy.config(head_init_std=1.0, num_labels=4))
    source.config.id2label = dict(enumerate("abcd"))
    source.save_pretrained(tmp_path)
    net, info = load(tmp_path, output_loading_info=True)
    assert type(net) is NuFMForParticleID
    assert net.config.id2label == {0: "e", 1: "mu", 2: "pi", 3: "p"}
    assert set(info["missing_keys"]) == {n for n in net.state_dict() if n.startswith("head.")}
    assert not torch.equal(net.head.output.weight, source.head.output.weight)
    assert all(torch.equal(w, source.state_dict()[n]) for n, w in net.state_dict().items() if not n.startswith("head."))
    assert list(load(tmp_path, num_labels=4, id2label=dict(enumerate("wxyz"))).config.id2label.values()) == list("wxyz")
    assert load(tmp_path, num_labels=3, dtype=torch.bfloat16).head.output.weight.shape[0] == 3
    net.save_pretrained(tmp_path / "own")
    assert torch.equal(load(tmp_path / "own").head.output.weight, net.head.output.weight)


@pytest.mark.parametrize("load", [NuFMForVertexRegression.from_pretrained, AutoModelForVertexRegression.from_pretrained])
@pytest.mark.parametrize("saved", [NuFMForVertexRegression, NuFMForParticleID])
def test_values_that_do_not_fit_a_checkpoint_are_refused(toy, tmp_path, load, saved):
    config = toy.config()
    saved(config).save_pretrained(tmp_path)
    heads = config.num_attention_heads
    assert load(tmp_path, num_attention_heads=heads, drop_path_rate=0.3).config.drop_path_rate == 0.3
    with pytest.raises(ValueError, match=r"drop_path_rate=1\.5"):
        load(tmp_path, drop_path_rate=1.5)
    with pytest.raises(ValueError, match=f"num_attention_heads={heads // 2} cannot change what was trained with {heads}"):
        load(tmp_path, num_attention_heads=heads // 2)
