"""Sparse convolutions as functions: features and weights in, features out, on the voxels of a level.

Weights are (K, Cin, Cout), depth-wise ones (K, C), for the K places of the kernel, x slowest: place = (i * size_y + j) * size_z + k.
Outputs equal those of the dense convolution of `torch.nn.functional` at the voxels of the output level, where no voxel means zero. They
have the dtype of the features. Gradients exist for features, weight and bias; gradients of gradients do not.
"""

from __future__ import annotations

from torch import Tensor

from .backends import get_backend
from .keys import Triple
from .level import SparseLevel
from .neighbours import Kernel


def submanifold_convolution(
    features: Tensor, weight: Tensor, level: SparseLevel, kernel: int | Triple = 3, bias: Tensor | None = None, backend: str = "torch"
) -> Tensor:
    """Convolve the voxels of a level with those around them; the outputs are at the same voxels (arXiv:1706.01307).

    Args:
        features: (N, Cin), one row a voxel of the level.
        weight: (K, Cin, Cout).
        level: the N voxels.
        kernel: voxels along each axis, odd, up to 7.
        bias: (Cout,).
        backend: `"torch"`, `"minkowski"` or `"spconv"`.

    Returns:
        (N, Cout).

    Raises:
        ValueError: shapes that do not fit each other, an even or too large kernel, an unknown backend.
        ImportError: the backend's library is not installed.
    """
    return _convolution(features, weight, level, level, Kernel.submanifold(kernel), False, bias, backend)


def strided_convolution(
    features: Tensor,
    weight: Tensor,
    level: SparseLevel,
    kernel: int | Triple = 2,
    stride: int | Triple | None = None,
    padding: int | Triple = 0,
    bias: Tensor | None = None,
    backend: str = "torch",
) -> Tensor:
    """Convolve a level to `level.coarser(stride)`, the cells of `stride` voxels that hold a voxel.

    Args:
        features: (N, Cin), one row a voxel of `level`.
        weight: (K, Cin, Cout).
        level: the finer level.
        kernel: voxels along each axis, up to 7; the cell at o takes the voxels at o * stride - padding + (0 .. kernel - 1).
        stride: voxels of a cell along each axis; None: the kernel, so that a cell takes its own voxels.
        padding: along each axis, smaller than the kernel.
        bias: (Cout,).
        backend: as in `submanifold_convolution`.

    Returns:
        (cells, Cout).

    Raises:
        ValueError, ImportError: as in `submanifold_convolution`.
    """
    kernel = Kernel.strided(kernel, stride, padding)
    return _convolution(features, weight, level, level, kernel, False, bias, backend)


def transposed_convolution(
    features: Tensor,
    weight: Tensor,
    level: SparseLevel,
    kernel: int | Triple = 2,
    stride: int | Triple | None = None,
    padding: int | Triple = 0,
    bias: Tensor | None = None,
    backend: str = "torch",
) -> Tensor:
    """The way back of `strided_convolution`: from the cells to the voxels of the finer level, which remembers where they are.

    Args:
        features: (cells, Cin), one row a voxel of `level.coarser(stride)`.
        weight: (K, Cin, Cout), Cin being the coarser level's.
        level: the finer level.
        kernel, stride, padding, bias, backend: as in `strided_convolution`.

    Returns:
        (N, Cout), one row a voxel of `level`.

    Raises:
        ValueError, ImportError: as in `submanifold_convolution`.
    """
    kernel = Kernel.strided(kernel, stride, padding)
    return _convolution(features, weight, level.coarser(kernel.stride), level, kernel, True, bias, backend)


def depthwise_convolution(
    features: Tensor, weight: Tensor, level: SparseLevel, kernel: int | Triple = 3, bias: Tensor | None = None, backend: str = "torch"
) -> Tensor:
    """A submanifold convolution in which each channel sees only itself, as `groups=C` of a dense convolution.

    Args:
        features: (N, C), one row a voxel of the level.
        weight: (K, C).
        level, kernel, backend: as in `submanifold_convolution`.
        bias: (C,).

    Returns:
        (N, C).

    Raises:
        ValueError, ImportError: as in `submanifold_convolution`.
    """
    kernel = Kernel.submanifold(kernel)
    level.check(features)
    _check_weight(weight, (kernel.volume, features.shape[1]), bias)
    weight = weight.to(features.dtype)
    compute = get_backend(backend).convolve_depthwise
    out = compute(features, weight, level, kernel) if len(level) else features * weight.sum(0)  # libraries fail on no voxel
    return out if bias is None else out + bias.to(out.dtype)


def _convolution(
    features: Tensor, weight: Tensor, source: SparseLevel, level: SparseLevel, kernel: Kernel, transposed: bool, bias: Tensor | None, backend: str
) -> Tensor:
    """Features are those of `source`; `level` is the finer one of the two."""
    source.check(features)
    _check_weight(weight, (kernel.volume, features.shape[1], weight.shape[-1]), bias)
    weight = weight.to(features.dtype)
    compute = get_backend(backend).convolve
    out = compute(features, weight, level, kernel, transposed) if len(level) else features @ weight.sum(0)
    return out if bias is None else out + bias.to(out.dtype)


def _check_weight(weight: Tensor, shape: tuple[int, ...], bias: Tensor | None) -> None:
    if weight.shape != shape:
        raise ValueError(f"weight must be {shape}: places of the kernel, then channels; got {tuple(weight.shape)}")
    if bias is not None and bias.shape != shape[-1:]:
        raise ValueError(f"bias must be {shape[-1:]}; got {tuple(bias.shape)}")
