"""Backends: their choice, and the parity of MinkowskiEngine and spconv with plain PyTorch where they are installed."""

import builtins
import importlib.util
import subprocess
import sys

import pytest
import torch

from nufm_hub.sparse import Kernel, SparseLevel, depthwise_convolution, strided_convolution, submanifold_convolution, transposed_convolution
from nufm_hub.sparse.backends import BACKENDS, get_backend

SHAPE = (8, 9, 14)
KERNELS = [(1, 1, 1), (3, 3, 3), (3, 3, 5), (5, 1, 3)]
STRIDED = [  # kernel, stride, padding
    ((2, 2, 2), (2, 2, 2), (0, 0, 0)),
    ((2, 2, 3), (2, 2, 3), (0, 0, 0)),
    ((2, 2, 3), (2, 2, 3), (0, 0, 1)),
    ((3, 3, 3), (2, 2, 2), (1, 1, 1)),
    ((4, 4, 4), (4, 4, 4), (0, 0, 0)),
]
DTYPE = torch.double
TOLERANCE = 1e-10


def library(name):
    """Skip unless it is installed; the backend imports it in its own way."""
    module = {"minkowski": "MinkowskiEngine", "spconv": "spconv"}[name]
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed")


def random(*shape, seed=1, grad=True):
    return torch.randn(*shape, dtype=DTYPE, generator=torch.Generator().manual_seed(seed)).requires_grad_(grad)


def largest_difference(got, want):
    return max((float((a - b).detach().abs().max()) for a, b in zip(got, want) if a.numel()), default=0.0)


def results(call, backend, x, weight, bias):
    """The output, and gradients if the inputs want them."""
    out = call(x, weight, bias, backend)
    if not x.requires_grad:
        return [out]
    return [out, *torch.autograd.grad(out, (x, weight, bias), random(*out.shape, seed=2, grad=False))]


def assert_parity(call, backend, rows, shape, record_property):
    grad = backend != "spconv"
    x, weight, bias = random(rows, shape[1], grad=grad), random(*shape, seed=3, grad=grad) / shape[0] ** 0.5, random(shape[-1], grad=grad)
    difference = largest_difference(results(call, backend, x, weight, bias), results(call, "torch", x, weight, bias))
    record_property("largest_difference", difference)
    assert difference <= TOLERANCE


@pytest.mark.parametrize("backend", ["minkowski", "spconv"])
@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_submanifold_parity(kernel, backend, make_level, record_property):
    library(backend)
    level = make_level(SHAPE, 900)
    shape = (Kernel.submanifold(kernel).volume, 6, 8)
    assert_parity(lambda x, w, b, name: submanifold_convolution(x, w, level, kernel, b, name), backend, 900, shape, record_property)


@pytest.mark.parametrize("backend", ["minkowski", "spconv"])
@pytest.mark.parametrize(("kernel", "stride", "padding"), STRIDED, ids=str)
def test_strided_and_transposed_parity(kernel, stride, padding, backend, make_level, record_property):
    library(backend)
    level, volume = make_level(SHAPE, 900), Kernel.strided(kernel).volume
    down = lambda x, w, b, name: strided_convolution(x, w, level, kernel, stride, padding, b, name)  # noqa: E731
    up = lambda x, w, b, name: transposed_convolution(x, w, level, kernel, stride, padding, b, name)  # noqa: E731
    assert_parity(down, backend, 900, (volume, 6, 8), record_property)
    assert_parity(up, backend, len(level.coarser(stride)), (volume, 8, 6), record_property)


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_depthwise_parity(kernel, make_level, record_property):
    library("minkowski")
    level = make_level(SHAPE, 900)
    shape = (Kernel.submanifold(kernel).volume, 6)
    assert_parity(lambda x, w, b, name: depthwise_convolution(x, w, level, kernel, b, name), "minkowski", 900, shape, record_property)


@pytest.mark.parametrize("backend", ["minkowski", "spconv"])
@pytest.mark.parametrize("count", [0, 1])
def test_parity_of_no_voxel_and_of_one(count, backend, make_level, record_property):
    library(backend)
    level = make_level(SHAPE, count)
    assert_parity(lambda x, w, b, name: submanifold_convolution(x, w, level, 3, b, name), backend, count, (27, 4, 4), record_property)
    assert_parity(lambda x, w, b, name: strided_convolution(x, w, level, 2, bias=b, backend=name), backend, count, (8, 4, 4), record_property)


def test_spconv_refuses_what_it_does_wrong_on_a_cpu(make_level, monkeypatch):
    library("spconv")
    level = make_level(SHAPE, 20)
    x, weight = random(20, 4, grad=False), random(27, 4, 4)
    with pytest.raises(ValueError, match="cannot train on the CPU"):
        submanifold_convolution(x, weight, level, backend="spconv")
    with pytest.raises(ValueError, match="no depth-wise convolution"):
        depthwise_convolution(x, weight[:, 0], level, backend="spconv")
    monkeypatch.setattr(get_backend("spconv"), "ONE_THREAD", False)
    with pytest.raises(ValueError, match="OMP_NUM_THREADS=1"), torch.no_grad():
        submanifold_convolution(x, weight, level, backend="spconv")


def test_minkowski_refuses_coordinates_beyond_32_bits():
    library("minkowski")
    level = SparseLevel(torch.tensor([[0, 0, 2**31]]), torch.tensor([0]), 1)
    with pytest.raises(ValueError, match="32-bit coordinates"):
        submanifold_convolution(torch.zeros(1, 2), torch.zeros(27, 2, 2), level, backend="minkowski")


def test_import_needs_torch_and_numpy_alone():
    code = (
        "import sys, nufm_hub.sparse\n"
        "assert not {'transformers', 'datasets', 'sklearn', 'pyarrow', 'MinkowskiEngine', 'spconv'} & set(sys.modules), sorted(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_backend_is_refused(make_level):
    with pytest.raises(ValueError, match="sparse_backend='torchsparse' is none of torch, minkowski, spconv"):
        submanifold_convolution(torch.zeros(5, 2), torch.zeros(27, 2, 2), make_level(SHAPE, 5), backend="torchsparse")


@pytest.mark.parametrize(("backend", "module"), [("minkowski", "MinkowskiEngine"), ("spconv", "spconv")])
def test_a_missing_library_is_named_with_its_extra(backend, module, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.partition(".")[0] == module and not (args and args[3:] and args[3]):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.delitem(sys.modules, f"nufm_hub.sparse.backends.{BACKENDS[backend]}", raising=False)
    with pytest.raises(ImportError, match=rf'pip install "nufm-hub\[{backend}\]"'):
        get_backend(backend)
