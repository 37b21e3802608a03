"""Rows that are taken together: several voxels at one place, or the voxels of a cell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from .keys import Triple

if TYPE_CHECKING:
    from .level import SparseLevel


def pool(features: Tensor, level: SparseLevel, stride: int | Triple = 2, how: Literal["sum", "mean", "max"] = "max") -> Tensor:
    """Features (N, C) of a level -> (cells, C) of `level.coarser(stride)`. The mean is over the voxels that a cell holds, not over its places.

    Raises:
        ValueError: shapes that do not fit each other, or an unknown `how`.
    """
    return level.coarser(stride).merge(features, how)


def unpool(features: Tensor, level: SparseLevel, stride: int | Triple = 2) -> Tensor:
    """The way back of `pool`: features (cells, C) of `level.coarser(stride)` -> (N, C) of the level, each voxel with what its cell has.

    Raises:
        ValueError: not one row of features a cell.
    """
    return level.coarser(stride).spread(features)


def merge_rows(features: Tensor, row: Tensor, num_rows: int, how: str) -> Tensor:
    """Features (V, C) with the same `row` int64 (V,) -> (num_rows, C); each of the rows has at least one.

    Raises:
        ValueError: not one row of features each, or an unknown `how`.
    """
    if features.dim() != 2 or len(features) != len(row):
        raise ValueError(f"features must be ({len(row)}, C), one row each of what is merged; got {tuple(features.shape)}")
    if how == "max":
        return _Maximum.apply(features, row, num_rows)
    if how not in ("sum", "mean"):
        raise ValueError(f"how={how!r} is none of sum, mean, max")
    total = features.new_zeros(num_rows, features.shape[1]).index_add(0, row, features)
    return total if how == "sum" else total / torch.bincount(row, minlength=num_rows)[:, None]


class _Maximum(torch.autograd.Function):
    """Maximum over the members of a row; members that share it share its gradient. Twice as fast as the library's own backward."""

    @staticmethod
    def forward(ctx: FunctionCtx, features: Tensor, row: Tensor, num_rows: int) -> Tensor:
        lowest = features.new_full((num_rows, features.shape[1]), float("-inf"))
        top = lowest.scatter_reduce(0, row[:, None].expand_as(features), features, "amax")
        ctx.save_for_backward(features, row, top)
        return top

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None, None]:
        features, row, top = ctx.saved_tensors
        wins = (features == top.index_select(0, row)).to(gradient.dtype)
        share = gradient / torch.zeros_like(gradient).index_add(0, row, wins)
        return share.index_select(0, row) * wins, None, None
