"""Sparse convolution in plain PyTorch: gather, multiply, add, one place of the kernel after the other, with gradients written by hand.

Temporary memory is that of one place and block of rows, not of all pairs. At one place no row is written twice, so the order of the sums,
and with it the result, is the same in every run, on a GPU too.
Computed in the dtype of the features, whatever autocast says.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from ..level import SparseLevel
from ..neighbours import Kernel, KernelPairs


def convolve(features: Tensor, weight: Tensor, level: SparseLevel, kernel: Kernel, transposed: bool) -> Tensor:
    """See `Backend.convolve`."""
    pairs = level.pairs(kernel)
    return _Convolution.apply(features, weight, pairs.reversed if transposed else pairs)


def convolve_depthwise(features: Tensor, weight: Tensor, level: SparseLevel, kernel: Kernel) -> Tensor:
    """See `Backend.convolve_depthwise`."""
    return _DepthwiseConvolution.apply(features, weight, level.pairs(kernel))


class _Convolution(torch.autograd.Function):
    """out[target] += features[source] @ weight[place] over all pairs."""

    @staticmethod
    def forward(ctx: FunctionCtx, features: Tensor, weight: Tensor, pairs: KernelPairs) -> Tensor:
        ctx.save_for_backward(features, weight)
        ctx.pairs = pairs
        return _convolved(features, weight, pairs)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        features, weight = ctx.saved_tensors
        of_features = _convolved(gradient, weight.transpose(1, 2), ctx.pairs.reversed) if ctx.needs_input_grad[0] else None
        of_weight = _weight_gradient(features, gradient, weight, ctx.pairs) if ctx.needs_input_grad[1] else None
        return of_features, of_weight, None


def _convolved(features: Tensor, weight: Tensor, pairs: KernelPairs) -> Tensor:
    with torch.autocast(features.device.type, enabled=False):
        out = features.new_zeros(pairs.num_targets, weight.shape[2]) if pairs.centre is None else features @ weight[pairs.centre]
        for place, source, target in pairs.blocks:
            out.index_add_(0, target, features.index_select(0, source) @ weight[place])
        return out


def _weight_gradient(features: Tensor, gradient: Tensor, weight: Tensor, pairs: KernelPairs) -> Tensor:
    with torch.autocast(features.device.type, enabled=False):
        out = torch.zeros_like(weight)
        if pairs.centre is not None:
            out[pairs.centre] = features.T @ gradient
        for place, source, target in pairs.blocks:
            out[place].addmm_(features.index_select(0, source).T, gradient.index_select(0, target))
        return out


class _DepthwiseConvolution(torch.autograd.Function):
    """out[target] += features[source] * weight[place] over all pairs of a submanifold kernel."""

    @staticmethod
    def forward(ctx: FunctionCtx, features: Tensor, weight: Tensor, pairs: KernelPairs) -> Tensor:
        ctx.save_for_backward(features, weight)
        ctx.pairs = pairs
        return _convolved_depthwise(features, weight, pairs)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        features, weight = ctx.saved_tensors
        of_features = _convolved_depthwise(gradient, weight, ctx.pairs.reversed) if ctx.needs_input_grad[0] else None
        of_weight = _depthwise_weight_gradient(features, gradient, weight, ctx.pairs) if ctx.needs_input_grad[1] else None
        return of_features, of_weight, None


def _convolved_depthwise(features: Tensor, weight: Tensor, pairs: KernelPairs) -> Tensor:
    out = features * weight[pairs.centre]
    for place, source, target in pairs.blocks:
        out.index_add_(0, target, features.index_select(0, source).mul_(weight[place]))
    return out


def _depthwise_weight_gradient(features: Tensor, gradient: Tensor, weight: Tensor, pairs: KernelPairs) -> Tensor:
    out = torch.zeros_like(weight)
    out[pairs.centre] = (features * gradient).sum(0)
    for place, source, target in pairs.blocks:
        out[place] += features.index_select(0, source).mul_(gradient.index_select(0, target)).sum(0)
    return out
