"""Momenta: scales, coordinates, losses by hand, and the weights of summed losses."""

import math

import numpy as np
import pytest
import torch

from nufm_hub.models.common.kinematics import (
    TaskWeights,
    check_momentum_scales,
    fit_momentum_scales,
    from_cylindrical,
    log_momentum_loss,
    momentum_loss,
    to_cylindrical,
)
from nufm_hub.models.common.objectives import event_mean

SCALES = {"transverse": 4.0, "longitudinal": 300.0, "k": 500.0, "mean": 0.6, "std": 0.5}


def momenta(count=200, seed=0):
    generator = torch.Generator().manual_seed(seed)
    flat = torch.randn(count, 2, generator=generator).sinh() * 3
    along = torch.randn(count, 1, generator=generator).exp() * 400 * torch.where(torch.rand(count, 1, generator=generator) < 0.1, -1, 1)
    return torch.cat([flat, along], dim=1)


def test_scales_are_robust():
    rng = np.random.default_rng(0)
    p = rng.normal(size=(20000, 3)) * [3.0, 3.0, 100.0] + [0, 0, 500.0]
    p[:100] *= 1000  # outliers hardly move them
    found = fit_momentum_scales({"jet": p, "lepton": p[:0]})
    assert list(found) == ["jet"]
    assert found["jet"]["k"] == pytest.approx(500, rel=0.02)
    clean = fit_momentum_scales({"jet": p[100:]})["jet"]
    assert clean["transverse"] == pytest.approx(3.0, rel=0.03)
    assert clean["longitudinal"] == pytest.approx(100.0, rel=0.03)
    logs = np.log1p(p[100:, 2] / clean["k"])
    assert (clean["mean"], clean["std"]) == (pytest.approx(logs.mean()), pytest.approx(logs.std()))


def test_a_momentum_that_is_mostly_zero_has_a_scale():
    p = np.zeros((1000, 3))
    p[:200, :2] = np.random.default_rng(1).normal(size=(200, 2)) * 5
    p[:, 2] = 100.0
    assert fit_momentum_scales({"visible": p})["visible"]["transverse"] == pytest.approx(0.1 * p[:, :2].std())


def test_coordinates_by_hand_and_back():
    p = torch.tensor([[3.0, -4.0, 500 * (math.e - 1)]])
    got = to_cylindrical(p, SCALES)[0]
    size = math.log1p(5 / 4)
    torch.testing.assert_close(got, torch.tensor([0.6 * size, -0.8 * size, (1 - 0.6) / 0.5]))
    p = torch.cat([momenta(), torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, -7.0], [1e-9, 0.0, 1e4]])])
    torch.testing.assert_close(from_cylindrical(to_cylindrical(p, SCALES), SCALES), p, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("angle", [0.3, math.pi / 2, 3.0])
def test_coordinates_and_loss_turn_with_the_event(angle):
    turn = torch.tensor([[math.cos(angle), -math.sin(angle), 0.0], [math.sin(angle), math.cos(angle), 0.0], [0.0, 0.0, 1.0]])
    p, q = momenta(seed=1), momenta(seed=2)
    torch.testing.assert_close(to_cylindrical(p @ turn.T, SCALES), to_cylindrical(p, SCALES) @ turn.T, rtol=1e-4, atol=1e-5)
    u = torch.randn(50, 3, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(from_cylindrical(u @ turn.T, SCALES), from_cylindrical(u, SCALES) @ turn.T, rtol=1e-4, atol=1e-4)
    if angle == math.pi / 2:  # components are scored one by one: quarter turns and mirrors leave the loss alone
        torch.testing.assert_close(momentum_loss(p @ turn.T, q @ turn.T, SCALES)[0], momentum_loss(p, q, SCALES)[0])
        mirror = torch.tensor([-1.0, 1.0, 1.0])
        torch.testing.assert_close(momentum_loss(p * mirror, q * mirror, SCALES)[0], momentum_loss(p, q, SCALES)[0])


def huber(x):
    return 0.5 * x * x if abs(x) <= 1 else abs(x) - 0.5


def loss_by_hand(predicted, true):
    parts = [huber((predicted[i] - true[i]) / s) for i, s in enumerate((4.0, 4.0, 300.0))]
    size, true_size = (math.sqrt(sum(x * x for x in v)) for v in (predicted, true))
    pt, true_pt = (math.hypot(*v[:2]) for v in (predicted, true))
    parts.append(huber((size - true_size) / max(true_size, 30.0)))
    parts.append(huber((pt - true_pt) / max(true_pt, 2.0)))
    if true_pt > 0.4:
        parts.append(1 - (predicted[0] * true[0] + predicted[1] * true[1]) / (math.hypot(pt, 0.4) * true_pt))
    return sum(parts)


def test_loss_by_hand():
    predicted = [(3.0, 4.0, 200.0), (0.1, 0.0, 900.0), (-5.0, 1.0, 20.0), (2.0, 2.0, 100.0)]
    true = [(6.0, 0.0, 350.0), (0.0, 0.0, 700.0), (5.0, 5.0, 10.0), (float("nan"), 0.0, 0.0)]
    each = [loss_by_hand(p, t) for p, t in zip(predicted[:3], true)]
    got, scored = momentum_loss(torch.tensor(predicted), torch.tensor(true), SCALES)
    assert got[:3].tolist() == pytest.approx(each, rel=1e-5)
    assert scored.tolist() == [True, True, True, False]
    got, scored = momentum_loss(torch.tensor(predicted), torch.tensor(true), SCALES, torch.tensor([True, False, True, True]))
    assert got[[0, 2]].tolist() == pytest.approx([each[0], each[2]], rel=1e-5)
    assert scored.tolist() == [True, False, True, False]
    right = torch.tensor([(1e3, 0.0, 700.0)])
    assert momentum_loss(right, right, SCALES)[0].item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("loss", [momentum_loss, log_momentum_loss])
def test_gradients_are_finite_where_training_starts_and_where_it_strays(loss):
    for start in (0.0, 1e-7, 60.0, -60.0):
        u = torch.full((3, 3), start, requires_grad=True)
        true = torch.tensor([[0.0, 0.0, 5.0], [1.0, 2.0, 900.0], [float("nan")] * 3])
        event_mean(*loss(from_cylindrical(u, SCALES), true, SCALES)).backward()
        assert u.grad.isfinite().all()
        assert not u.grad[2].any()


def log_loss_by_hand(predicted, true):
    def rounded(x):  # squared below 0.1
        return abs(x) - 0.05 if abs(x) >= 0.1 else 5 * x * x

    def log_pz(p):
        return math.copysign(math.log1p(abs(p[2]) / SCALES["k"]), p[2])

    pt, true_pt = (math.hypot(*v[:2]) for v in (predicted, true))
    total = rounded(math.log1p(pt / 4.0) - math.log1p(true_pt / 4.0)) + rounded((log_pz(predicted) - log_pz(true)) / SCALES["std"])
    if true_pt > 0.4:
        total += 1 - (predicted[0] * true[0] + predicted[1] * true[1]) / (math.hypot(pt, 0.4) * true_pt)
    return total


def test_logarithmic_loss_by_hand():
    predicted = [(3.0, 4.0, 200.0), (0.1, 0.0, 900.0), (-5.0, 1.0, -20.0), (2.0, 2.0, 100.0)]
    true = [(6.0, 0.0, 350.0), (0.0, 0.0, 700.0), (5.0, 5.0, 10.0), (float("nan"), 0.0, 0.0)]
    got, scored = log_momentum_loss(torch.tensor(predicted), torch.tensor(true), SCALES, torch.tensor([True, True, True, True]))
    assert got[:3].tolist() == pytest.approx([log_loss_by_hand(p, t) for p, t in zip(predicted[:3], true)], rel=1e-4)
    assert scored.tolist() == [True, True, True, False]
    assert log_momentum_loss(torch.tensor(predicted), torch.tensor(true), SCALES, torch.tensor([False] * 4))[1].any().item() is False


def test_a_size_without_a_direction_pays_only_in_the_logarithmic_loss():
    """A transverse momentum of 8 in any direction: of the predictions of one size, which is best? Published: none at all."""
    angles = torch.linspace(0, 2 * math.pi, 37)[:-1]
    true = torch.stack([8 * angles.cos(), 8 * angles.sin(), torch.full_like(angles, 300.0)], dim=1)
    sizes = torch.arange(0.0, 16.5, 0.5)

    def best(loss):
        costs = [loss(torch.tensor([[size, 0.0, 300.0]]).expand_as(true), true, SCALES)[0].mean() for size in sizes]
        return sizes[int(torch.stack(costs).argmin())].item()

    assert best(momentum_loss) < 4
    assert best(log_momentum_loss) == pytest.approx(8)


def test_missing_or_wrong_scales_are_named():
    with pytest.raises(ValueError, match=r"no scales of the jet momentum.*processor\.momentum_scales"):
        check_momentum_scales({"visible": SCALES})
    with pytest.raises(ValueError, match="no scales of the visible"):
        check_momentum_scales(None)
    with pytest.raises(ValueError, match=r"k=0 of the jet"):
        check_momentum_scales({"jet": SCALES | {"k": 0}}, ["jet"])


def task_weights(**start):
    weights = TaskWeights(dict.fromkeys(start, 1.0))
    for name, u in start.items():
        weights.get_parameter(name).data.fill_(u)
    return weights


ONE = TaskWeights({"a": 1.0}).start_logit("a")


def test_weights_start_where_they_are_told_to():
    weights = TaskWeights({"a": 1.0, "b": 0.125})
    for name, u in weights.named_parameters():
        u.data.fill_(weights.start_logit(name))
    assert {name: w.item() for name, w in weights.weights().items()} == pytest.approx({"a": 1.0, "b": 0.125})


def test_weights_stay_in_bounds():
    weights = task_weights(a=ONE, b=ONE, c=ONE)
    assert [w.item() for w in weights.weights().values()] == pytest.approx([1, 1, 1])
    losses = {"a": torch.tensor(2.0), "b": torch.tensor(0.5), "c": torch.tensor(0.0)}
    shares = {"a": torch.tensor(1.0), "b": torch.tensor(1.0), "c": torch.tensor(0.0)}
    total = weights(losses, shares)
    assert total.item() == pytest.approx(2.5)
    total.backward()
    slope = (1 - 0.01) * (5 - 1) / (5 - 0.01)  # dw/du at w = 1
    assert [u.grad.item() for u in weights.parameters()] == pytest.approx([(2 - 0.5) * slope, 0, 0], abs=1e-6)
    weights = task_weights(a=-1e3, b=1e3, c=0.0)
    assert [w.item() for w in weights.weights().values()] == pytest.approx([0.01, 5.0, 2.505])
    assert weights(losses, shares).item() == pytest.approx(0.02 - 0.5 * math.log(0.01) + 2.5 - 0.5 * math.log(5.0), rel=1e-5)


@pytest.mark.parametrize("share", [1.0, 0.2])
def test_weights_settle_where_the_two_terms_balance(share):
    """Also where only some events have what is scored."""
    weights = task_weights(a=ONE)
    optimiser = torch.optim.Adam(weights.parameters(), lr=0.05)
    for _ in range(400):
        optimiser.zero_grad()
        weights({"a": torch.tensor(share * 0.25)}, {"a": torch.tensor(share)}).backward()
        optimiser.step()
    assert weights.weights()["a"].item() == pytest.approx(1 / (2 * 0.25), rel=1e-3)
