"""Places on space-filling curves: voxels that follow one another on such a curve are close in space."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

MAX_DEPTH = 20


def morton(coordinates: Tensor, depth: int) -> Tensor:
    """Morton codes int64 (N,): the bits of x, y and z in turns, from the highest on, x first.

    Args:
        coordinates: integer (N, 3), each in 0 .. 2^depth - 1.
        depth: bits of a coordinate, 1 to 20.

    Raises:
        ValueError: a coordinate or a depth out of range.
    """
    _check(coordinates, depth)
    x, y, z = coordinates.long().unbind(1)
    return _spread_bits(x) << 2 | _spread_bits(y) << 1 | _spread_bits(z)


def hilbert(coordinates: Tensor, depth: int) -> Tensor:
    """Hilbert codes int64 (N,), by J. Skilling, AIP Conf. Proc. 707 (2004) 381: voxels of consecutive codes share a face.

    Args:
        coordinates: integer (N, 3), each in 0 .. 2^depth - 1.
        depth: bits of a coordinate, 1 to 20. The curve of another depth is another curve.

    Raises:
        ValueError: a coordinate or a depth out of range.
    """
    _check(coordinates, depth)
    axes = list(coordinates.long().unbind(1))
    for bit in range(depth - 1, 0, -1):  # undo the turns of the cubes, from the largest to the smallest
        below = (1 << bit) - 1
        for i in range(3):
            upper = -(axes[i] >> bit & 1)  # all ones in the upper half of the cube
            exchange = (axes[0] ^ axes[i]) & below & ~upper
            axes[i] = axes[i] ^ exchange
            axes[0] = axes[0] ^ exchange ^ (below & upper)
    axes[1] = axes[1] ^ axes[0]
    axes[2] = axes[2] ^ axes[1]
    flips = torch.zeros_like(axes[2])
    for bit in range(depth - 1, 0, -1):
        flips ^= -(axes[2] >> bit & 1) & ((1 << bit) - 1)
    return morton(torch.stack(axes, dim=1) ^ flips[:, None], depth)


def _exchanged(curve: Callable[[Tensor, int], Tensor]) -> Callable[[Tensor, int], Tensor]:
    """The curve with x and y exchanged."""
    return lambda coordinates, depth: curve(coordinates[:, [1, 0, 2]], depth)


CURVES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "hilbert": hilbert,
    "hilbert-transposed": _exchanged(hilbert),
    "morton": morton,
    "morton-transposed": _exchanged(morton),
}


def _spread_bits(value: Tensor) -> Tensor:
    """Bit i of a number below 2^21 -> bit 3 i, by halves."""
    for shift, mask in ((32, 0x1F00000000FFFF), (16, 0x1F0000FF0000FF), (8, 0x100F00F00F00F00F), (4, 0x10C30C30C30C30C3), (2, 0x1249249249249249)):
        value = (value | value << shift) & mask
    return value


def _check(coordinates: Tensor, depth: int) -> None:
    if not 1 <= depth <= MAX_DEPTH:
        raise ValueError(f"depth must be 1 to {MAX_DEPTH} bits a coordinate; got {depth}")
    if coordinates.dim() != 2 or coordinates.shape[1] != 3 or coordinates.dtype.is_floating_point:
        raise ValueError(f"coordinates must be integers (N, 3); got {coordinates.dtype} {tuple(coordinates.shape)}")
    if len(coordinates) and (int(coordinates.min()) < 0 or int(coordinates.max()) >> depth):
        low, high = int(coordinates.min()), int(coordinates.max())
        raise ValueError(f"coordinates from {low} to {high} leave 0 .. {(1 << depth) - 1}, the range of depth {depth}")
