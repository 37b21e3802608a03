"""MinkowskiEngine (arXiv:1904.08755). Its neighbours are found by hashing, and its compiled code runs on the CPU, or on a GPU if it was built so.

Needs 0.5.4, the last release, which is built when it is installed: `docs/sparse.md` tells how.
"""

from __future__ import annotations

import collections
import collections.abc
from typing import NamedTuple

import torch
from torch import Tensor

from ..keys import Triple
from ..level import SparseLevel
from ..neighbours import Kernel

collections.Sequence = collections.abc.Sequence  # type: ignore[attr-defined]  # 0.5.4 imports it from where it was until Python 3.9

import MinkowskiEngine as ME  # noqa: E402
from MinkowskiEngineBackend._C import ConvolutionMode  # noqa: E402


class _Maps(NamedTuple):
    """What the library keeps of a level and a kernel: its tables, the keys of both sets of voxels, and which of our rows its rows are."""

    manager: ME.CoordinateManager
    generator: ME.KernelGenerator
    keys: tuple[ME.CoordinateMapKey, ME.CoordinateMapKey]
    rows: tuple[Tensor, Tensor]


def convolve(features: Tensor, weight: Tensor, level: SparseLevel, kernel: Kernel, transposed: bool) -> Tensor:
    """See `Backend.convolve`."""
    maps = _maps(level, kernel)
    sides = [1, 0] if transposed else [0, 1]
    source, target = (maps.keys[side] for side in sides)
    function = ME.MinkowskiConvolutionTransposeFunction if transposed else ME.MinkowskiConvolutionFunction
    inputs, theirs = features.index_select(0, maps.rows[sides[0]]), _x_fastest(weight, kernel)
    out = function.apply(inputs, theirs, maps.generator, ConvolutionMode.DEFAULT, source, target, maps.manager)
    return _in_our_order(out, maps.rows[sides[1]])


def convolve_depthwise(features: Tensor, weight: Tensor, level: SparseLevel, kernel: Kernel) -> Tensor:
    """See `Backend.convolve_depthwise`. The library has no compiled one: as its channel-wise convolution, a loop that autograd records."""
    maps = _maps(level, kernel)
    pairs = level.remember(("minkowski", "depthwise", kernel), lambda: _pairs(maps, kernel))
    inputs, theirs = features.index_select(0, maps.rows[0]), _x_fastest(weight, kernel)
    out = torch.zeros_like(features)
    for place, (source, target) in pairs.items():
        out = out.index_add(0, target, inputs.index_select(0, source) * theirs[place])
    return _in_our_order(out, maps.rows[1])


def _maps(level: SparseLevel, kernel: Kernel) -> _Maps:
    return level.remember(("minkowski", kernel), lambda: _make_maps(level, kernel))


def _make_maps(level: SparseLevel, kernel: Kernel) -> _Maps:
    if max(level.shape) + max(kernel.size) + max(kernel.stride) >= 2**31:
        raise ValueError(f'sparse_backend="minkowski" has 32-bit coordinates, too few for a grid of {level.shape} voxels: use "torch"')
    device = level.event.device
    kind = ME.CoordinateMapType.CUDA if level.event.is_cuda else ME.CoordinateMapType.CPU
    manager = ME.CoordinateManager(D=3, num_threads=torch.get_num_threads(), coordinate_map_type=kind)
    # Its kernels start at the output's voxel along even axes and have it in the middle along odd ones; ours start where the padding says.
    shift = torch.tensor([p - n // 2 * (n % 2) for p, n in zip(kernel.padding, kernel.size)], device=device)
    cells = level if kernel.is_submanifold else level.coarser(kernel.stride)
    corners = cells.coordinates * torch.tensor(kernel.stride, device=device)
    voxels = _insert(manager, level.event, level.coordinates + shift, (1, 1, 1), "voxels")
    keys, rows = zip(voxels, _insert(manager, cells.event, corners, kernel.stride, "cells"))
    return _Maps(manager, ME.KernelGenerator(kernel.size, kernel.stride, dimension=3), keys, rows)


def _insert(manager: ME.CoordinateManager, event: Tensor, coordinates: Tensor, pitch: Triple, name: str) -> tuple[ME.CoordinateMapKey, Tensor]:
    """The library's key of a set of voxels, and our row of each of its rows."""
    key, (rows, _) = manager.insert_and_map(torch.cat([event[:, None], coordinates], dim=1).int(), pitch, name)
    return key, rows.long()


def _pairs(maps: _Maps, kernel: Kernel) -> dict[int, Tensor]:
    pairs = maps.manager.kernel_map(*maps.keys, stride=kernel.stride, kernel_size=kernel.size)
    return {place: rows.long() for place, rows in pairs.items()}


def _x_fastest(weight: Tensor, kernel: Kernel) -> Tensor:
    """Our places of the kernel, x slowest, in the library's order."""
    return weight.view(*kernel.size, *weight.shape[1:]).transpose(0, 2).reshape(weight.shape)


def _in_our_order(features: Tensor, rows: Tensor) -> Tensor:
    return torch.empty_like(features).index_copy(0, rows, features)
