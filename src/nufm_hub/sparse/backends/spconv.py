"""spconv 2.3 (github.com/traveller59/spconv): its native algorithm, gather, multiply and scatter, on our pairs of rows.

On the CPU it can only predict, on one thread: its gradients ask for a CUDA stream, and with more threads some rows come out wrong (several
write to one row at a time). It has no depth-wise convolution.
"""

from __future__ import annotations

import os
from typing import NamedTuple

import torch
from torch import Tensor

from ..level import SparseLevel
from ..neighbours import Kernel, KernelPairs

ONE_THREAD = os.environ.get("OMP_NUM_THREADS") == "1"  # spconv brings its own OpenMP, which reads this when it is loaded, and only then

from spconv.core import ConvAlgo  # noqa: E402
from spconv.pytorch.functional import indice_conv, indice_inverse_conv, indice_subm_conv  # noqa: E402


class _Table(NamedTuple):
    pairs: Tensor  # int32 (2, K, rows), -1 where there is none
    counts: Tensor  # int32 (K,)


def convolve(features: Tensor, weight: Tensor, level: SparseLevel, kernel: Kernel, transposed: bool) -> Tensor:
    """See `Backend.convolve`.

    Raises:
        ValueError: on the CPU: a gradient is wanted, or more than one thread is allowed.
    """
    if not features.is_cuda:
        _check_cpu(torch.is_grad_enabled() and (features.requires_grad or weight.requires_grad))
    pairs = level.pairs(kernel)
    table = level.remember(("spconv", kernel), lambda: _table(pairs))
    function = indice_subm_conv if kernel.is_submanifold else indice_inverse_conv if transposed else indice_conv
    theirs = weight.view(*kernel.size, *weight.shape[1:]).permute(4, 0, 1, 2, 3).contiguous()
    rows = pairs.num_sources if transposed else pairs.num_targets
    return function(features, theirs, table.pairs, table.counts, rows, ConvAlgo.Native)


def convolve_depthwise(features: Tensor, weight: Tensor, level: SparseLevel, kernel: Kernel) -> Tensor:
    """See `Backend.convolve_depthwise`.

    Raises:
        ValueError: always.
    """
    raise ValueError('sparse_backend="spconv" has no depth-wise convolution: use "torch"')


def _check_cpu(wants_gradient: bool) -> None:
    if wants_gradient:
        raise ValueError('sparse_backend="spconv" cannot train on the CPU (its gradients need CUDA): use "torch", or predict under torch.no_grad()')
    if not ONE_THREAD:
        raise ValueError(
            'sparse_backend="spconv" gives wrong rows on the CPU with more than one thread: set the environment variable OMP_NUM_THREADS=1 '
            'before Python starts, or use "torch"'
        )


def _table(pairs: KernelPairs) -> _Table:
    """Our pairs as the library has them. It has no counts for the middle of a submanifold kernel and behind: they follow from those before."""
    counts = torch.tensor([len(rows) for rows in pairs.source], dtype=torch.int32, device=pairs.source[0].device)
    table = counts.new_full((2, len(counts), max(pairs.num_sources, pairs.num_targets)), -1)
    for place, rows in enumerate(zip(pairs.source, pairs.target)):
        table[:, place, : len(rows[0])] = torch.stack(rows)
    if pairs.centre is not None:
        counts[pairs.centre :] = 0
    return _Table(table, counts)
