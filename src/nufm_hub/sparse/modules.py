"""The sparse convolutions as modules: they hold weight and bias, and are called with features and a level."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .convolution import depthwise_convolution, strided_convolution, submanifold_convolution, transposed_convolution
from .keys import Triple
from .level import SparseLevel
from .neighbours import Kernel


class SparseConvolution(nn.Module):
    """Weight and bias, drawn as `torch.nn.Conv3d` draws them: uniform within 1 / sqrt(inputs of an output)."""

    def __init__(self, kernel: Kernel, channels: tuple[int, ...], bias: bool, backend: str):
        super().__init__()
        self.kernel, self.backend = kernel, backend
        self.weight = nn.Parameter(torch.empty(kernel.volume, *channels))
        self.bias = nn.Parameter(torch.empty(channels[-1])) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        bound = self.weight[..., 0].numel() ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def extra_repr(self) -> str:
        return f"weight={tuple(self.weight.shape)}, kernel={self.kernel.size}, stride={self.kernel.stride}, backend={self.backend!r}"


class SubmanifoldConv3d(SparseConvolution):
    """`submanifold_convolution` with its weight (K, in_channels, out_channels)."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int | Triple = 3, bias: bool = True, backend: str = "torch"):
        super().__init__(Kernel.submanifold(kernel), (in_channels, out_channels), bias, backend)

    def forward(self, features: Tensor, level: SparseLevel) -> Tensor:
        """(N, in_channels) -> (N, out_channels), at the voxels of `level`."""
        return submanifold_convolution(features, self.weight, level, self.kernel.size, self.bias, self.backend)


class StridedConv3d(SparseConvolution):
    """`strided_convolution` with its weight (K, in_channels, out_channels)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int | Triple = 2,
        stride: int | Triple | None = None,
        padding: int | Triple = 0,
        bias: bool = True,
        backend: str = "torch",
    ):
        super().__init__(Kernel.strided(kernel, stride, padding), (in_channels, out_channels), bias, backend)

    def forward(self, features: Tensor, level: SparseLevel) -> Tensor:
        """(N, in_channels) at the voxels of `level` -> (cells, out_channels) at those of `level.coarser(stride)`."""
        k = self.kernel
        return strided_convolution(features, self.weight, level, k.size, k.stride, k.padding, self.bias, self.backend)


class TransposedConv3d(StridedConv3d):
    """`transposed_convolution` with its weight (K, in_channels, out_channels)."""

    def forward(self, features: Tensor, level: SparseLevel) -> Tensor:
        """(cells, in_channels) at the voxels of `level.coarser(stride)` -> (N, out_channels) at those of `level`."""
        k = self.kernel
        return transposed_convolution(features, self.weight, level, k.size, k.stride, k.padding, self.bias, self.backend)


class DepthwiseConv3d(SparseConvolution):
    """`depthwise_convolution` with its weight (K, channels)."""

    def __init__(self, channels: int, kernel: int | Triple = 3, bias: bool = True, backend: str = "torch"):
        super().__init__(Kernel.submanifold(kernel), (channels,), bias, backend)

    def forward(self, features: Tensor, level: SparseLevel) -> Tensor:
        """(N, channels) -> (N, channels), at the voxels of `level`."""
        return depthwise_convolution(features, self.weight, level, self.kernel.size, self.bias, self.backend)
