"""Masks and losses of pre-training against counting and arithmetic done by hand."""

import math

import pytest
import torch

from nufm_hub.models.common.objectives import (
    event_mean,
    huber_loss,
    label_loss,
    mean_by_event,
    near_hits,
    occupancy_loss,
    vertex_loss,
    visible_patches,
)
from nufm_hub.models.nufm.pretraining_nufm import track_loss


def windows_of(counts):
    return torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))


def hidden_counts(counts, ratio, seed):
    window = windows_of(counts)
    visible = visible_patches(window, len(counts), ratio, torch.Generator().manual_seed(seed))
    return torch.bincount(window[~visible], minlength=len(counts))


def test_every_window_keeps_one_and_hides_one():
    counts = [0, 1, 2, 3, 32, 1, 0, 7]
    for seed in range(200):
        hidden = hidden_counts(counts, 0.75, seed)
        for n, h in zip(counts, hidden.tolist()):
            assert h == 0 if n < 2 else 1 <= h <= n - 1
            if n > 3:
                assert abs(h - 0.75 * n) < 1


@pytest.mark.parametrize("ratio", [0.25, 0.75])
def test_share_is_unbiased(ratio):
    """10 patches: 7.5 (2.5) are hidden on average, although only whole numbers can be."""
    hidden = hidden_counts([10] * 4000, ratio, seed=0).double()
    assert set(hidden.tolist()) == {math.floor(10 * ratio), math.ceil(10 * ratio)}
    assert abs(hidden.mean() - 10 * ratio) < 4 * 0.5 / math.sqrt(4000)


def test_every_patch_is_hidden_equally_often():
    window = windows_of([8] * 5000)
    visible = visible_patches(window, 5000, 0.75, torch.Generator().manual_seed(1)).view(5000, 8)
    share = visible.double().mean(0)
    assert (share - 0.25).abs().max() < 4 * math.sqrt(0.25 * 0.75 / 5000)


def test_masks_follow_the_generator():
    window = windows_of([9] * 20)
    draw = [visible_patches(window, 20, 0.5, torch.Generator().manual_seed(s)) for s in (0, 0, 1)]
    assert torch.equal(draw[0], draw[1])
    assert not torch.equal(draw[0], draw[2])
    assert visible_patches(window, 20, 0.0, None).all()


@pytest.mark.parametrize("distance", [0, 1, 2, 9])
def test_near_hits_by_brute_force(distance):
    hits = torch.rand(4, 5, 3, 6, generator=torch.Generator().manual_seed(0)) < 0.04
    want = torch.zeros_like(hits)
    for p, x, y, z in hits.nonzero().tolist():
        d = distance
        want[p, max(0, x - d) : x + d + 1, max(0, y - d) : y + d + 1, max(0, z - d) : z + d + 1] = True
    assert torch.equal(near_hits(hits, distance), want)


def test_occupancy_loss_by_hand():
    logits, hit = torch.tensor([0.3, -1.2, 2.0]), torch.tensor([True, False, False])
    total = weight = 0.0
    for x, h in zip(logits.tolist(), hit.tolist()):
        p = 1 / (1 + math.exp(-x))
        target = 0.99 if h else 0.01
        entropy = -target * math.log(p) - (1 - target) * math.log(1 - p)
        w = 1.0 if h else 0.5
        total += w * (1 - (p if h else 1 - p)) ** 1.5 * entropy
        weight += w
    assert float(occupancy_loss(logits, hit, 1.5, 0.02, 0.5)) == pytest.approx(total / weight, rel=1e-5)


def test_occupancy_loss_of_extreme_logits():
    logits = torch.tensor([200.0, -200.0, 200.0, -200.0], requires_grad=True)
    loss = occupancy_loss(logits, torch.tensor([True, True, False, False]), 0.5, 0.02, 0.5)
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()


def test_label_loss_by_hand():
    binary, labelled = label_loss(torch.tensor([[0.4], [1.0], [-2.0]]), torch.tensor([[1.0], [-100.0], [0.25]]))
    p, q = 1 / (1 + math.exp(-0.4)), 1 / (1 + math.exp(2.0))
    assert binary[labelled].tolist() == pytest.approx([-math.log(p), -0.25 * math.log(q) - 0.75 * math.log(1 - q)], rel=1e-5)
    assert labelled.tolist() == [True, False, True]

    logits = torch.tensor([[1.0, 0.0, -1.0], [0.0, 2.0, 0.0], [5.0, 5.0, 0.0]])
    shares = torch.tensor([[0.7, 0.3, 0.0], [0.0, 0.0, 0.0], [-100.0, -100.0, -100.0]])
    normal = math.log(math.e + 1 + 1 / math.e)
    loss, labelled = label_loss(logits, shares)
    assert float(loss[0]) == pytest.approx(0.7 * (normal - 1) + 0.3 * normal, rel=1e-5)
    assert labelled.tolist() == [True, False, False]


def test_no_label_no_loss_and_no_nan():
    logits = torch.zeros(2, 3, requires_grad=True)
    for labels in (torch.full((2, 3), -100.0), torch.full((2, 3), float("nan"))):
        loss = mean_by_event(*label_loss(logits, labels), torch.tensor([0, 1]), 2)
        loss.backward()
        assert loss == 0
        assert not logits.grad.any()


def test_huber_loss_by_hand():
    assert float(huber_loss(torch.tensor([[0.5], [3.0]]), torch.tensor([[0.0], [0.0]]))) == pytest.approx((0.125 + 2.5) / 2)
    assert huber_loss(torch.zeros(0, 1), torch.zeros(0, 1)) == 0


def test_track_loss_by_hand():
    tracks = torch.tensor([[[1.0, 0.0], [2.0, 4.0]], [[9.0, 9.0], [9.0, 9.0]]])
    mask = torch.tensor([[True, True], [False, False]])
    predicted = torch.tensor([[0.5, 1.0, 2.0], [1.0, 7.0, 7.0]])
    presence = (math.log(1 + math.exp(-0.5)) + math.log(1 + math.exp(1.0))) / 2
    features = (0.5 * 0.5**2 + 0.0) / 2  # means 1.5 and 2, the second event has no track
    assert float(track_loss(predicted, tracks, mask)) == pytest.approx(presence + features, rel=1e-5)


def test_means_over_events_by_hand_and_from_parts():
    values, event = torch.tensor([1.0, 3.0, float("nan"), 5.0, 7.0]), torch.tensor([0, 0, 0, 2, 3])
    scored = torch.tensor([True, True, False, True, False])
    assert mean_by_event(values, scored, event, 4).item() == pytest.approx((2 + 5) / 4)
    first, second = (mean_by_event(values[part], scored[part], event[part] - start, 2) for part, start in ((slice(3), 0), (slice(3, 5), 2)))
    assert (first + second).item() / 2 == pytest.approx((2 + 5) / 4)
    assert event_mean(values, scored).item() == pytest.approx(9 / 5)
    assert event_mean(values[:0], scored[:0]) == 0


def test_vertex_loss_by_hand():
    predicted = torch.tensor([[3.0, 4.0, 0.0], [1.0, 2.0, 2.0], [9.0, 9.0, 9.0]], requires_grad=True)
    nan = float("nan")
    distance, known = vertex_loss(predicted, torch.tensor([[0.0, 0.0, 0.0], [nan, 0.0, 2.0], [nan, nan, nan]]))
    assert distance[:2].tolist() == pytest.approx([5.0, 2.0], rel=1e-5)
    assert known.tolist() == [True, True, False]
    event_mean(distance, known).backward()
    assert predicted.grad.isfinite().all()
    assert not predicted.grad[2].any()


def test_vertex_loss_with_a_focus():
    truth = torch.zeros(3, 3)
    predicted = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.3, 0.4], [3.0, 0.0, 4.0]], requires_grad=True)
    loss, known = vertex_loss(predicted, truth, focus=0.1)
    assert loss.tolist() == pytest.approx([math.log1p(0.01), math.log1p(5), math.log1p(50)], rel=1e-5)
    event_mean(loss, known).backward()
    pull = predicted.grad.norm(dim=1) * 3
    assert pull[1:].tolist() == pytest.approx([1 / 0.6, 1 / 5.1], rel=1e-4)  # strongest where it is nearly right
    assert predicted.grad.isfinite().all()
