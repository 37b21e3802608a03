"""Windows along curves, and attention in them, against loops over events."""

import pytest
import torch

from nufm_hub.sparse import CurveWindows, SparseLevel, windowed_attention

DEPTH = 5


def attention_by_loops(qkv, level, curve, size, heads):
    """Each event by itself: windows from its start, the last one from its end; each row's result from the first window that has it."""
    out = torch.full((len(level), qkv.shape[1] // 3), float("nan"), dtype=qkv.dtype)
    order = level.order(curve, DEPTH)
    for event in range(level.num_events):
        rows = order[level.event[order] == event]
        for start in range(0, len(rows), size):
            window = rows[max(0, min(start, len(rows) - size)) :][:size]
            q, k, v = qkv[window].view(len(window), 3, heads, -1).permute(1, 2, 0, 3)
            result = (q @ k.transpose(1, 2) * k.shape[2] ** -0.5).softmax(2) @ v
            result = result.transpose(0, 1).reshape(len(window), -1)
            new = torch.isin(window, rows[start : start + size])
            out[window[new]] = result[new]
    return out


@pytest.mark.parametrize("size", [1, 4, 16, 1000])
@pytest.mark.parametrize("curve", ["hilbert", "morton-transposed"])
def test_attention_equals_loops(curve, size, make_voxels):
    coordinates, event = make_voxels((6, 6, 6), 120, events=2)
    few = torch.tensor([[0, 0, 0], [1, 1, 1], [2, 2, 2], [9, 9, 9]])  # an event of three voxels, an empty one, a lone voxel
    level = SparseLevel(torch.cat([coordinates, few]), torch.cat([event, torch.tensor([2, 2, 2, 4])]), 6)
    qkv = torch.randn(len(level), 24, dtype=torch.double, requires_grad=True)
    got = windowed_attention(qkv, CurveWindows(level, curve, DEPTH, size), heads=2)
    want = attention_by_loops(qkv, level, curve, size, heads=2)
    torch.testing.assert_close(got, want, atol=1e-10, rtol=0)
    cotangent = torch.randn_like(got)
    torch.testing.assert_close(torch.autograd.grad(got, qkv, cotangent), torch.autograd.grad(want, qkv, cotangent), atol=1e-10, rtol=0)


def test_only_short_events_are_masked(make_voxels):
    coordinates, event = make_voxels((6, 6, 6), 120, events=2)
    level = SparseLevel(torch.cat([coordinates, torch.tensor([[1, 2, 3], [1, 2, 4]])]), torch.cat([event, torch.tensor([2, 2])]), 3)
    full, short = CurveWindows(level, "hilbert", DEPTH, 8).groups
    assert full.mask is None
    assert full.rows.shape[1] == 8
    assert (level.event[full.rows] == level.event[full.rows[:, :1]]).all()
    assert short.rows.shape == (1, 2)
    assert short.mask.all()


def test_no_voxel(make_level):
    level = make_level((2, 2, 2), 0)
    windows = CurveWindows(level, "hilbert", DEPTH, 4)
    assert windows.groups == ()
    assert windowed_attention(torch.zeros(0, 12), windows, 2).shape == (0, 4)


def test_what_does_not_fit_is_refused(make_level):
    level = make_level((4, 4, 4), 20)
    with pytest.raises(ValueError, match="size of a window must be at least 1; got 0"):
        CurveWindows(level, "hilbert", DEPTH, 0)
    windows = CurveWindows(level, "hilbert", DEPTH, 4)
    with pytest.raises(ValueError, match="C a multiple of 5 heads"):
        windowed_attention(torch.zeros(20, 12), windows, 5)
    with pytest.raises(ValueError, match=r"must be \(20, 3 C\)"):
        windowed_attention(torch.zeros(19, 12), windows, 2)
