"""Joint heads: what they give, what they learn from, and that they learn."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from nufm_hub.models import (
    AutoModelForCharmClassification,
    AutoModelForEventReconstruction,
    AutoModelForMomentumRegression,
    NuFMForCharmClassification,
    NuFMForEventReconstruction,
    NuFMForMomentumRegression,
    NuFMForPreTraining,
)
from nufm_hub.models.common.kinematics import momentum_loss

SCALES = {
    "visible": {"transverse": 1.5, "longitudinal": 300.0, "k": 500.0, "mean": 0.7, "std": 0.4},
    "jet": {"transverse": 4.0, "longitudinal": 150.0, "k": 200.0, "mean": 0.6, "std": 0.5},
    "lepton": {"transverse": 3.5, "longitudinal": 200.0, "k": 250.0, "mean": 0.7, "std": 0.5},
}
QUANTITIES = {"flavour_logits": 3, "visible_momentum": 3, "jet_momentum": 3, "lepton_momentum": 3, "vertex": 3}


def model(toy, cls=NuFMForEventReconstruction, **overrides):
    torch.manual_seed(0)
    return cls(toy.config(**{"momentum_scales": SCALES, "head_init_std": 0.3} | overrides)).eval()


def labels(count=6, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def momentum():
        return torch.randn(count, 3, generator=generator) * torch.tensor([3.0, 3.0, 100.0]) + torch.tensor([0.0, 0.0, 400.0])

    return {
        "flavour": torch.randint(0, 3, (count,), generator=generator),
        "visible_momentum": momentum(),
        "jet_momentum": momentum(),
        "is_cc": torch.tensor([True, False] * (count // 2)),
        "vertex": torch.randn(count, 3, generator=generator),
    }


def test_quantities_and_how_they_hang_together(toy):
    out = model(toy)(**toy.collate(toy.mixed_events()))
    assert out.loss is None
    assert {name: value.shape[1] for name, value in out.items() if name != "missing_pt"} == QUANTITIES
    assert torch.equal(out.lepton_momentum, out.visible_momentum - out.jet_momentum)
    torch.testing.assert_close(out.missing_pt, out.visible_momentum[:, :2].square().sum(1).sqrt())
    assert out.charm_logits is None  # the toy detector declares no charm
    charm = toy.spec.to_dict()
    charm["event_labels"]["charm"] = ["none", "some"]
    assert model(toy, detector=charm)(**toy.collate(toy.mixed_events())).charm_logits.shape == (6, 2)
    momenta = model(toy, NuFMForMomentumRegression)(**toy.collate(toy.mixed_events()))
    assert set(momenta) == {"visible_momentum", "jet_momentum", "lepton_momentum", "missing_pt"}


def test_first_predictions_are_neutral(toy):
    out = model(toy, head_init_std=2e-5)(**toy.collate(toy.mixed_events()))
    assert out.missing_pt.max() < 0.01
    want = 500 * np.expm1(0.7)  # the mean of the logarithm
    torch.testing.assert_close(out.visible_momentum[:, 2], torch.full((6,), want, dtype=torch.float32), rtol=1e-2, atol=0)


def test_losses_by_hand(toy):
    net, batch, truth = model(toy, label_smoothing=0.1), toy.collate(toy.mixed_events()), labels()
    truth["flavour"][2] = -100
    truth["vertex"][4] = float("nan")
    truth["jet_momentum"][0] = float("nan")
    out = net(**batch, labels=truth)
    kept = torch.arange(6) != 2
    want = {"flavour": F.cross_entropy(out.flavour_logits[kept], truth["flavour"][kept], label_smoothing=0.1, reduction="sum") / 6}

    def momentum(name, rows, true):
        return momentum_loss(out[f"{name}_momentum"][rows], true[rows], SCALES[name])[0].sum() / 6

    want["visible_momentum"] = momentum("visible", slice(None), truth["visible_momentum"])
    want["jet_momentum"] = momentum("jet", slice(1, None), truth["jet_momentum"])
    lepton = truth["visible_momentum"] - truth["jet_momentum"]
    want["lepton_momentum"] = momentum("lepton", [2, 4], lepton)  # CC, and both parts known
    kept = torch.arange(6) != 4
    want["vertex"] = torch.linalg.vector_norm((out.vertex - truth["vertex"])[kept], dim=1).sum() / 6
    share = {"flavour": 5 / 6, "visible_momentum": 1, "jet_momentum": 5 / 6, "lepton_momentum": 2 / 6, "vertex": 5 / 6}
    assert set(out.losses) == set(want)
    for name, value in want.items():
        torch.testing.assert_close(out.losses[name], value)
    start = {name: 0.125 if "momentum" in name else 1.0 for name in want}
    torch.testing.assert_close(out.loss, sum(start[name] * value for name, value in want.items()))
    for i, u in enumerate(net.head["task_weight"].parameters()):
        u.data.fill_(i - 2.0)
    torch.testing.assert_close(net(**batch, labels=truth).loss, out.loss)  # evaluation compares epochs
    net.train()
    weights = net.head["task_weight"].weights()
    total = sum(weights[name] * value - 0.5 * share[name] * weights[name].log() for name, value in want.items())
    torch.testing.assert_close(net(**batch, labels=truth).loss, total)


def test_parts_of_a_batch_average_to_the_whole(toy):
    events, truth = toy.mixed_events(), labels()
    truth["is_cc"] = torch.tensor([True, True, False, True, False, False])
    truth["flavour"][:2] = -100
    truth["vertex"][3:5] = float("nan")

    def batch(rows):
        return toy.collate(events[rows]) | {"labels": {name: value[rows] for name, value in truth.items()}}

    toy.check_parts_average_to_whole(model(toy).train(), batch(slice(0, 6)), [batch(slice(i, i + 2)) for i in (0, 2, 4)])


def test_neutral_current_events_say_nothing_of_the_lepton(toy):
    net, batch, truth = model(toy), toy.collate(toy.mixed_events()), labels()
    changed = {name: value.clone() for name, value in truth.items()}
    changed["jet_momentum"][1] += 50.0  # event 1 is NC
    before, after = (net(**batch, labels=t).losses for t in (truth, changed))
    assert before["lepton_momentum"] == after["lepton_momentum"]
    assert before["jet_momentum"] != after["jet_momentum"]
    changed["is_cc"][:] = False
    assert net(**batch, labels=changed).losses["lepton_momentum"] == 0


def test_nothing_known_gives_zero_and_gradients_of_zero(toy):
    net = model(toy).train()
    loss = net(**toy.collate(toy.mixed_events()), labels={}).loss
    assert loss == 0
    loss.backward()
    missing = {name for name, p in net.named_parameters() if p.grad is None}
    assert missing == set()
    assert not any(p.grad.any() for p in net.parameters())


def test_events_of_a_batch_do_not_see_each_other(toy):
    net, events = model(toy), toy.mixed_events()
    together = net(**toy.collate(events, extra=5))
    for row, event in enumerate(events):
        alone = net(**toy.collate([event]))
        for name, value in alone.items():
            torch.testing.assert_close(value[0], together[name][row], rtol=1e-4, atol=1e-4)


def test_absent_is_not_empty(toy):
    net, batch = model(toy), toy.collate(toy.mixed_events())
    present = torch.ones(6, 4, dtype=torch.bool)
    absent = present.clone()
    absent[3, 1] = False
    both, one = (net(**batch, branch_mask=mask).visible_momentum for mask in (present, absent))
    others = torch.arange(6) != 3
    torch.testing.assert_close(both[others], one[others], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(both[3], one[3], rtol=1e-3)


@pytest.mark.parametrize(
    ("cls", "auto"),
    [
        (NuFMForEventReconstruction, AutoModelForEventReconstruction),
        (NuFMForMomentumRegression, AutoModelForMomentumRegression),
        (NuFMForCharmClassification, AutoModelForCharmClassification),
    ],
)
def test_save_and_load(toy, tmp_path, cls, auto):
    net, batch = model(toy, cls), toy.collate(toy.mixed_events())
    net.save_pretrained(tmp_path)
    for loader in (cls, auto):
        again, report = loader.from_pretrained(tmp_path, output_loading_info=True)
        assert type(again) is cls
        assert not report["missing_keys"]
        assert not report["unexpected_keys"]
        for name, value in net(**batch).items():
            assert torch.equal(again(**batch)[name], value), name


def test_from_a_pretrained_encoder(toy, tmp_path):
    torch.manual_seed(0)
    NuFMForPreTraining(toy.config()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"no scales of the visible momentum"):
        NuFMForEventReconstruction.from_pretrained(tmp_path)
    net, report = NuFMForEventReconstruction.from_pretrained(tmp_path, momentum_scales=SCALES, output_loading_info=True)
    assert all(name.startswith("head.") for name in report["missing_keys"])
    weights = {name: w.item() for name, w in net.head["task_weight"].weights().items()}
    assert weights == pytest.approx({name: 0.125 if "momentum" in name else 1.0 for name in weights})
    assert net.config.momentum_scales == SCALES


def test_wrong_labels_are_named(toy):
    net, batch = model(toy), toy.collate(toy.mixed_events())
    with pytest.raises(ValueError, match=r"labels\['visible_momentum'\] must have the shape \(6, 3\); got \(6, 2\)"):
        net(**batch, labels=labels() | {"visible_momentum": torch.zeros(6, 2)})
    with pytest.raises(ValueError, match=r"labels\['flavour'\]"):
        net(**batch, labels=labels() | {"flavour": torch.zeros(6, 1, dtype=torch.long)})


def test_learns_all_quantities_of_a_few_events(toy):
    torch.manual_seed(0)
    net = model(toy, head_init_std=2e-5).train()
    batch, truth = toy.collate([toy.event(120, 20, 1, seed=s) for s in range(6)]), labels()
    optimiser = torch.optim.AdamW(net.parameters(), lr=2e-3)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 300)
    for _ in range(300):
        optimiser.zero_grad()
        net(**batch, labels=truth).loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        decay.step()
    out = net.eval()(**batch, labels=truth)
    assert torch.equal(out.flavour_logits.argmax(1), truth["flavour"])
    for name in ("visible_momentum", "jet_momentum"):
        error = (out[name] - truth[name]).abs()
        assert (error[:, :2] < 1.0).all()
        assert (error[:, 2] / truth[name][:, 2]).mean() < 0.15
    assert (out.vertex - truth["vertex"]).abs().max() < 0.2
    assert net.head["task_weight"].weights()["flavour"] > 1.1  # a small loss comes to count more
