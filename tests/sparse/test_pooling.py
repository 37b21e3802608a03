"""Pooling against the dense pooling of torch, and its gradients."""

import pytest
import torch
import torch.nn.functional as F

from nufm_hub.sparse import pool, unpool

SHAPE = (6, 5, 9)


def features_of(level):
    return torch.randn(len(level), 3, dtype=torch.double, generator=torch.Generator().manual_seed(3), requires_grad=True)


@pytest.mark.parametrize("stride", [(2, 2, 2), (2, 2, 3), (4, 1, 2)], ids=str)
@pytest.mark.parametrize("count", [1, 50, 6 * 5 * 9 * 3])
@pytest.mark.parametrize("how", ["sum", "mean", "max"])
def test_equals_dense_pooling(how, count, stride, make_level, dense, at_voxels):
    level = make_level(SHAPE, count)
    coarse, x = level.coarser(stride), features_of(level)
    got = pool(x, level, stride, how)
    whole = [-(-n // s) * s for n, s in zip(SHAPE, stride)]
    if how == "max":
        want = at_voxels(F.max_pool3d(dense(level, x, whole, empty=float("-inf")), stride), coarse)
    else:
        cells = stride[0] * stride[1] * stride[2]
        want = at_voxels(F.avg_pool3d(dense(level, x, whole), stride), coarse) * cells
        if how == "mean":
            want = want / at_voxels(F.avg_pool3d(dense(level, torch.ones_like(x), whole), stride), coarse) / cells
    torch.testing.assert_close(got, want, atol=1e-10, rtol=0)
    cotangent = torch.randn_like(got)
    torch.testing.assert_close(torch.autograd.grad(got, x, cotangent), torch.autograd.grad(want, x, cotangent), atol=1e-10, rtol=0)


@pytest.mark.parametrize("how", ["sum", "mean", "max"])
def test_gradcheck(how, make_level):
    level = make_level((4, 4, 4), 30)
    x = features_of(level)
    assert torch.autograd.gradcheck(lambda x: unpool(pool(x, level, 2, how), level, 2), x)


def test_equal_maxima_share_the_gradient(make_level):
    level = make_level((2, 2, 2), 8, events=1)
    x = torch.tensor([[1.0], [5.0], [5.0], [0.0], [5.0], [5.0], [2.0], [3.0]], requires_grad=True)
    pool(x, level, 2, "max").sum().backward()
    assert x.grad.flatten().tolist() == [0, 0.25, 0.25, 0, 0.25, 0.25, 0, 0]


def test_no_voxel(make_level):
    level = make_level((2, 2, 2), 0)
    for how in ("sum", "mean", "max"):
        assert unpool(pool(torch.zeros(0, 4), level, 2, how), level, 2).shape == (0, 4)
