"""Norms per event against their formulas, and their independence of the batch."""

import pytest
import torch
from torch import nn

from nufm_hub.sparse import EventGRN, EventLayerNorm, SparseLevel

NORMS = [EventGRN, EventLayerNorm]


def grn(x, gamma, beta):
    """arXiv:2301.00808: eq. 1 (norm over positions), 2 (by its mean over channels), 3 (calibration)."""
    norm = x.square().sum(0).sqrt()
    return gamma * (x * (norm / (norm.mean() + 1e-6))) + beta + x


def group_norm(x, weight, bias):
    return nn.functional.group_norm(x.T[None], 1, weight, bias, eps=1e-6)[0].T


@pytest.mark.parametrize(("norm", "formula"), [(EventGRN, grn), (EventLayerNorm, group_norm)])
def test_equals_the_formula_event_by_event(norm, formula, make_level):
    level, module = make_level((5, 5, 5), 200), norm(4).double()
    for p in module.parameters():
        nn.init.normal_(p)
    x = torch.randn(200, 4, dtype=torch.double, requires_grad=True)
    got = module(x, level)
    want = torch.cat([formula(rows, *module.parameters()) for rows in x.split(level.sizes)])
    torch.testing.assert_close(got, want, atol=1e-10, rtol=0)
    inputs, cotangent = (x, *module.parameters()), torch.randn_like(x)
    for a, b in zip(torch.autograd.grad(got, inputs, cotangent), torch.autograd.grad(want, inputs, cotangent)):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=0)


@pytest.mark.parametrize("norm", NORMS)
def test_an_event_alone_and_among_others(norm, make_voxels):
    coordinates, event = make_voxels((5, 5, 5), 200)
    module, x = norm(4), torch.randn(200, 4)
    nn.init.normal_(next(module.parameters()))
    whole = SparseLevel(coordinates, event * 2, 6)  # with empty events between
    got = whole.spread(module(whole.merge(x), whole))
    for e in range(3):
        mine = event == e
        level = SparseLevel(coordinates[mine], torch.zeros(int(mine.sum()), dtype=torch.long), 1)
        assert torch.equal(level.spread(module(level.merge(x[mine]), level)), got[mine])


def test_grn_starts_as_the_identity(make_level):
    level, x = make_level((5, 5, 5), 50), torch.randn(50, 4)
    assert torch.equal(EventGRN(4)(x, level), x)


@pytest.mark.parametrize("norm", NORMS)
def test_zeros_and_lone_voxels_have_finite_gradients(norm):
    level = SparseLevel(torch.tensor([[0, 0, 0], [1, 1, 1], [2, 0, 0]]), torch.tensor([0, 1, 1]), 2)
    module, x = norm(4), torch.zeros(3, 4, requires_grad=True)
    nn.init.ones_(next(module.parameters()))
    module(x, level).square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in (x, *module.parameters()))


@pytest.mark.parametrize("norm", NORMS)
def test_no_voxel_and_wrong_rows(norm, make_level):
    assert norm(4)(torch.zeros(0, 4), make_level((2, 2, 2), 0)).shape == (0, 4)
    with pytest.raises(ValueError, match=r"features must be \(5, C\)"):
        norm(4)(torch.zeros(4, 4), make_level((2, 2, 2), 5))
