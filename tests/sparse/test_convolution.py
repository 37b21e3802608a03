"""Sparse convolutions against the dense ones of torch, in double precision; gradients too."""

import pytest
import torch
import torch.nn.functional as F

from nufm_hub.sparse import (
    DepthwiseConv3d,
    Kernel,
    SparseLevel,
    StridedConv3d,
    SubmanifoldConv3d,
    TransposedConv3d,
    depthwise_convolution,
    strided_convolution,
    submanifold_convolution,
    transposed_convolution,
)

SHAPE = (6, 5, 9)
COUNTS = [1, 30, 6 * 5 * 9 * 3]  # a lone voxel, a few, every place of the batch
ODD = [(1, 1, 1), (3, 3, 3), (3, 3, 5), (1, 5, 3), (7, 7, 7)]
STRIDED = [  # kernel, stride, padding
    ((2, 2, 2), (2, 2, 2), (0, 0, 0)),
    ((2, 2, 3), (2, 2, 3), (0, 0, 0)),
    ((4, 4, 4), (4, 4, 4), (0, 0, 0)),
    ((3, 3, 3), (2, 2, 2), (1, 1, 1)),
    ((2, 2, 3), (2, 2, 3), (0, 0, 1)),
    ((2, 3, 4), (1, 2, 2), (0, 1, 0)),
]


def random(*shape, seed=1):
    return torch.randn(*shape, dtype=torch.double, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def assert_same_with_gradients(got, want, inputs, tolerance=1e-10):
    cotangent = random(*got.shape, seed=2).detach()
    torch.testing.assert_close(got, want, atol=tolerance, rtol=0)
    for a, b in zip(torch.autograd.grad(got, inputs, cotangent), torch.autograd.grad(want, inputs, cotangent)):
        torch.testing.assert_close(a, b, atol=tolerance, rtol=0)


def dense_weight(weight, kernel):
    """(K, Cin, Cout) -> (Cout, Cin, x, y, z)."""
    return weight.reshape(*kernel, *weight.shape[1:]).permute(4, 3, 0, 1, 2)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("kernel", ODD, ids=str)
def test_submanifold_equals_dense(kernel, count, make_level, dense, at_voxels):
    level = make_level(SHAPE, count)
    x, weight, bias = random(len(level), 3), random(Kernel.submanifold(kernel).volume, 3, 4), random(4)
    got = submanifold_convolution(x, weight, level, kernel, bias)
    padding = [n // 2 for n in kernel]
    want = at_voxels(F.conv3d(dense(level, x, SHAPE), dense_weight(weight, kernel), bias, padding=padding), level)
    assert_same_with_gradients(got, want, (x, weight, bias))


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("kernel", ODD, ids=str)
def test_depthwise_equals_dense(kernel, count, make_level, dense, at_voxels):
    level = make_level(SHAPE, count)
    x, weight, bias = random(len(level), 4), random(Kernel.submanifold(kernel).volume, 4), random(4)
    got = depthwise_convolution(x, weight, level, kernel, bias)
    grouped = weight.T.reshape(4, 1, *kernel)
    want = at_voxels(F.conv3d(dense(level, x, SHAPE), grouped, bias, padding=[n // 2 for n in kernel], groups=4), level)
    assert_same_with_gradients(got, want, (x, weight, bias))


def whole(shape, stride, kernel):
    """A grid that holds all of the cells of `shape`, and room for what the last cells' kernels reach."""
    return tuple(-(-n // s) * s + k for n, s, k in zip(shape, stride, kernel))


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize(("kernel", "stride", "padding"), STRIDED, ids=str)
def test_strided_equals_dense(kernel, stride, padding, count, make_level, dense, at_voxels):
    level = make_level(SHAPE, count)
    coarse = level.coarser(stride)
    x, weight, bias = random(len(level), 3), random(Kernel.strided(kernel).volume, 3, 4), random(4)
    got = strided_convolution(x, weight, level, kernel, stride, padding, bias)
    grid = dense(level, x, whole(SHAPE, stride, kernel))
    want = at_voxels(F.conv3d(grid, dense_weight(weight, kernel), bias, stride, padding), coarse)
    assert_same_with_gradients(got, want, (x, weight, bias))


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize(("kernel", "stride", "padding"), STRIDED, ids=str)
def test_transposed_equals_dense(kernel, stride, padding, count, make_level, dense, at_voxels):
    level = make_level(SHAPE, count)
    coarse = level.coarser(stride)
    x, weight, bias = random(len(coarse), 4), random(Kernel.strided(kernel).volume, 4, 3), random(3)
    got = transposed_convolution(x, weight, level, kernel, stride, padding, bias)
    cells = [-(-n // s) for n, s in zip(SHAPE, stride)]
    back = weight.reshape(*kernel, 4, 3).permute(3, 4, 0, 1, 2)
    grid = F.conv_transpose3d(dense(coarse, x, cells), back, None, stride)  # without padding nothing is cut off: shift by hand
    px, py, pz = padding
    grid = F.pad(grid, (0, max(stride), 0, max(stride), 0, max(stride)))[:, :, px:, py:, pz:]
    want = at_voxels(grid, level) + bias
    assert_same_with_gradients(got, want, (x, weight, bias))


@pytest.mark.parametrize("kernel", [(3, 3, 3), (1, 3, 5)], ids=str)
def test_gradcheck(kernel, make_level):
    level, volume = make_level((3, 4, 5), 12), Kernel.submanifold(kernel).volume
    coarse = level.coarser(2)
    x, y = random(12, 2), random(len(coarse), 3)
    assert torch.autograd.gradcheck(lambda x, w: submanifold_convolution(x, w, level, kernel), (x, random(volume, 2, 3)))
    assert torch.autograd.gradcheck(lambda x, w: depthwise_convolution(x, w, level, kernel), (x, random(volume, 2)))
    assert torch.autograd.gradcheck(lambda x, w: strided_convolution(x, w, level), (x, random(8, 2, 3)))
    assert torch.autograd.gradcheck(lambda y, w: transposed_convolution(y, w, level), (y, random(8, 3, 2)))


@pytest.mark.parametrize("wanted", ["features", "weight"])
def test_gradient_of_one_input_alone(wanted, make_level):
    level = make_level(SHAPE, 60)
    for convolve, shape in ((submanifold_convolution, (27, 3, 4)), (depthwise_convolution, (27, 3)), (strided_convolution, (8, 3, 4))):
        x, weight = random(60, 3), random(*shape)
        both = torch.autograd.grad(convolve(x, weight, level).square().sum(), (x, weight))
        x.requires_grad_(wanted == "features")
        weight.requires_grad_(wanted == "weight")
        convolve(x, weight, level).square().sum().backward()
        assert torch.equal(*((x.grad, both[0]) if wanted == "features" else (weight.grad, both[1])))
        assert (weight if wanted == "features" else x).grad is None


def test_second_derivative_is_refused(make_level):
    level, x, weight = make_level(SHAPE, 20), random(20, 2), random(27, 2, 2)
    (gradient,) = torch.autograd.grad(submanifold_convolution(x, weight, level).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def unet(level, features, seed=0):
    """A small network of all operations: (V, 3) -> (V, 2)."""
    torch.manual_seed(seed)
    inside, depthwise, down = SubmanifoldConv3d(3, 8, (3, 3, 5)), DepthwiseConv3d(8, 5), StridedConv3d(8, 12, 3, 2, 1)
    bottom, up, out = SubmanifoldConv3d(12, 12), TransposedConv3d(12, 8, 3, 2, 1), SubmanifoldConv3d(8, 2, 1)
    x = inside(level.merge(features), level)
    x = x + depthwise(x.relu(), level)
    coarse = level.coarser(2)
    y = bottom(down(x.relu(), level), coarse).relu()
    return level.spread(out(x + up(y, level), level))


def test_order_of_voxels_does_not_matter(make_voxels):
    coordinates, event = make_voxels(SHAPE, 150)
    features, order = torch.randn(150, 3), torch.randperm(150)
    got = unet(SparseLevel(coordinates[order], event[order], 3), features[order])
    assert torch.equal(got, unet(SparseLevel(coordinates, event, 3), features)[order])


@pytest.mark.parametrize("alone", [0, 1, 2])
def test_other_events_do_not_matter(alone, make_voxels):
    coordinates, event = make_voxels(SHAPE, 400)
    coordinates[event == 1] += torch.tensor([40, 0, 3])  # another size of the grid too
    features = torch.randn(400, 3)
    mine = event == alone
    got = unet(SparseLevel(coordinates[mine], torch.zeros(int(mine.sum()), dtype=torch.long), 1), features[mine])
    torch.testing.assert_close(got, unet(SparseLevel(coordinates, event, 3), features)[mine], atol=1e-6, rtol=0)


@pytest.mark.parametrize("kernel", [(3, 3, 3), (3, 3, 7), (3, 7, 3), (7, 3, 3), (7, 7, 7)], ids=str)
def test_voxels_at_opposite_faces_and_in_other_events_are_no_neighbours(kernel):
    places = torch.tensor([(0, 0, 0), (0, 0, 4), (0, 4, 0), (4, 0, 0), (4, 4, 4), (0, 0, 0), (4, 4, 4)])
    level = SparseLevel(places, torch.tensor([0, 0, 0, 0, 0, 1, 1]), 2)
    assert len(level.pairs(Kernel.submanifold(kernel))) == len(level)


@pytest.mark.parametrize("events", [0, 1, 3])
def test_no_voxel(events):
    none = torch.zeros(0, 3, dtype=torch.long)
    level = SparseLevel(none, none[:, 0], events)
    features = torch.zeros(0, 3, requires_grad=True)
    out = unet(level, features)
    assert out.shape == (0, 2)
    assert len(level.coarser(2)) == 0
    out.sum().backward()
    assert features.grad.shape == (0, 3)


def test_empty_event_between_others(make_voxels):
    coordinates, event = make_voxels(SHAPE, 80, events=2)
    features = torch.randn(80, 3)
    apart = SparseLevel(coordinates, event * 2 + 1, 5)
    assert apart.sizes == [0, int((event == 0).sum()), 0, int((event == 1).sum()), 0]
    assert torch.equal(unet(apart, features), unet(SparseLevel(coordinates, event, 2), features))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.1)])
def test_dtype_follows_the_features(dtype, tolerance, make_level):
    level = make_level(SHAPE, 200)
    x, weight, bias = random(200, 4), random(27, 4, 4), random(4)
    want = submanifold_convolution(x, weight, level, bias=bias)
    lower = x.detach().to(dtype).requires_grad_()
    got = submanifold_convolution(lower, weight.detach().float().requires_grad_(), level, bias=bias.detach().float())
    assert got.dtype == dtype
    assert (got.double() - want).abs().max() < tolerance * want.abs().max()
    got.sum().backward()
    assert lower.grad.dtype == dtype


def test_autocast_does_not_change_the_dtype(make_level):
    level, conv, depthwise = make_level(SHAPE, 50), SubmanifoldConv3d(4, 4), DepthwiseConv3d(4)
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(50, 4, dtype=dtype, requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16):
            out = depthwise(conv(x, level), level)
            assert out.dtype == dtype
            out.sum().backward()
        assert x.grad.dtype == dtype
        assert conv.weight.grad.dtype == torch.float32


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, level: submanifold_convolution(x, torch.zeros(8, 3, 3), level, 2), "must be odd"),
        (lambda x, level: submanifold_convolution(x, torch.zeros(729, 3, 3), level, 9), "1 to 7 voxels"),
        (lambda x, level: submanifold_convolution(x, torch.zeros(27, 3, 3), level, -3), "kernel must be an integer"),
        (lambda x, level: submanifold_convolution(x, torch.zeros(27, 4, 3), level), r"weight must be \(27, 3, 3\)"),
        (lambda x, level: submanifold_convolution(x[:-1], torch.zeros(27, 3, 3), level), r"features must be \(20, C\)"),
        (lambda x, level: submanifold_convolution(x, torch.zeros(27, 3, 3), level, bias=torch.zeros(2)), r"bias must be \(3,\)"),
        (lambda x, level: strided_convolution(x, torch.zeros(8, 3, 3), level, 2, 0), "stride must be at least 1"),
        (lambda x, level: strided_convolution(x, torch.zeros(8, 3, 3), level, 2, padding=2), "padding must be smaller"),
        (lambda x, level: transposed_convolution(x, torch.zeros(8, 3, 3), level), "features must be"),
        (lambda x, level: depthwise_convolution(x, torch.zeros(27, 2), level), r"weight must be \(27, 3\)"),
    ],
)
def test_what_does_not_fit_is_refused(call, message, make_level):
    level = make_level((4, 4, 4), 20, events=1)
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(20, 3), level)


def test_modules_hold_what_the_functions_take(make_level):
    level = make_level(SHAPE, 50)
    for module, weight in (
        (SubmanifoldConv3d(3, 5, (3, 3, 5)), (45, 3, 5)),
        (StridedConv3d(3, 5, (2, 2, 3)), (12, 3, 5)),
        (TransposedConv3d(3, 5, 2, bias=False), (8, 3, 5)),
        (DepthwiseConv3d(5, 7), (343, 5)),
    ):
        assert module.weight.shape == weight
        bound = (weight[0] * (weight[1] if len(weight) == 3 else 1)) ** -0.5
        assert 0.9 * bound < module.weight.abs().max() <= bound
    module = DepthwiseConv3d(5, 3)
    x = torch.randn(50, 5)
    assert torch.equal(module(x, level), depthwise_convolution(x, module.weight, level, 3, module.bias))
