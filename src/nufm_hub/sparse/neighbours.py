"""Which voxels lie under a kernel: pairs of rows, found by searching sorted keys."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .keys import Triple, triple

if TYPE_CHECKING:
    from .level import SparseLevel

MAX_KERNEL = 7
BLOCK = 12_288  # rows


@dataclass(frozen=True)
class Kernel:
    """A window of voxels: the output at cell o takes the inputs at o * stride - padding + (0 .. size - 1) along each axis.

    Outputs are the cells of `stride` voxels that hold an input, no others; there they are those of a dense convolution with this size,
    stride and padding. Weights of a kernel have K = x * y * z places, in the order (i * size_y + j) * size_z + k.

    Attributes:
        size, stride, padding: along x, y and z.

    Raises:
        ValueError: a size outside 1 .. 7, a stride below 1, or a padding that is not smaller than the size.
    """

    size: Triple
    stride: Triple
    padding: Triple

    def __post_init__(self) -> None:
        if not all(1 <= n <= MAX_KERNEL for n in self.size):
            raise ValueError(f"kernel must be 1 to {MAX_KERNEL} voxels along each axis; got {self.size}")
        if min(self.stride) < 1:
            raise ValueError(f"stride must be at least 1; got {self.stride}")
        if not all(p < n for p, n in zip(self.padding, self.size)):
            raise ValueError(f"padding must be smaller than the kernel {self.size}; got {self.padding}")

    @classmethod
    def submanifold(cls, size: int | Triple) -> Kernel:
        """A kernel around each voxel, whose outputs are the inputs' voxels (arXiv:1706.01307).

        Raises:
            ValueError: an even size: such a kernel has no middle.
        """
        size = triple(size, "kernel")
        if not all(n % 2 for n in size):
            raise ValueError(f"a submanifold kernel must be odd along each axis; got {size}")
        return cls(size, (1, 1, 1), tuple(n // 2 for n in size))  # type: ignore[arg-type]

    @classmethod
    def strided(cls, size: int | Triple, stride: int | Triple | None = None, padding: int | Triple = 0) -> Kernel:
        """A kernel that leads to a coarser level; by default it is as large as its stride, and every input counts in one cell."""
        size = triple(size, "kernel")
        return cls(size, size if stride is None else triple(stride, "stride"), triple(padding, "padding"))

    @property
    def volume(self) -> int:
        """Places K."""
        return math.prod(self.size)

    @property
    def is_submanifold(self) -> bool:
        return self.stride == (1, 1, 1) and all(n == 2 * p + 1 for n, p in zip(self.size, self.padding))


@dataclass(frozen=True)
class KernelPairs:
    """Pairs of rows (read, written) at each of the K places of a kernel. At one place the rows ascend, and none comes twice.

    Attributes:
        source, target: K tensors, int64 (pairs of the place,) each.
        num_sources, num_targets: rows that there are to read and to write.
        centre: the place where every row meets itself; None unless the kernel is a submanifold one.
    """

    source: tuple[Tensor, ...]
    target: tuple[Tensor, ...]
    num_sources: int
    num_targets: int
    centre: int | None

    def __len__(self) -> int:
        """Pairs in all."""
        return sum(map(len, self.source))

    @cached_property
    def reversed(self) -> KernelPairs:
        """The pairs of the transposed operation, and of the gradient with respect to the input."""
        return KernelPairs(self.target, self.source, self.num_targets, self.num_sources, self.centre)

    @cached_property
    def blocks(self) -> list[tuple[int, Tensor, Tensor]]:
        """(place, source, target) of all pairs but those of the centre, which are all rows in order; none empty.

        Rows that are written come in blocks, all places of a block one after the other: then what is read and written stays in the caches
        of a processor, which makes large levels up to two times faster.
        """
        number = -(-self.num_targets // BLOCK)
        edges = torch.tensor([self.num_targets * i // number for i in range(number + 1)] if number else [0])
        cuts = [torch.searchsorted(target, edges.to(target.device)).tolist() for target in self.target]
        return [
            (place, self.source[place][cut[block] : cut[block + 1]], self.target[place][cut[block] : cut[block + 1]])
            for block in range(number)
            for place, cut in enumerate(cuts)
            if place != self.centre and cut[block] < cut[block + 1]
        ]


def neighbour_pairs(level: SparseLevel, kernel: Kernel) -> KernelPairs:
    """Pairs of the rows of a level with those of `level.coarser(kernel.stride)`, or with its own for a submanifold kernel.

    The voxels of one line of the kernel follow one another in the sorted keys, so each (x, y) column of it needs one binary search. The
    places behind the middle of a submanifold kernel are those before it with the rows exchanged, and are not searched.
    """
    grid, keys = level.keys(gap=kernel.size)
    if not kernel.is_submanifold:
        cells = level.coarser(kernel.stride)
        stride = torch.tensor(kernel.stride, device=keys.device)
        starts = grid.keys(cells.coordinates * stride, cells.event) - _step(kernel.padding, grid.strides)
        pairs = list(_search(keys, starts, kernel, grid.strides))
        return KernelPairs(*zip(*pairs), len(level), len(cells), None)
    centre = kernel.volume // 2
    starts = keys - _step(kernel.padding, grid.strides)
    before = list(itertools.islice(_search(keys, starts, kernel, grid.strides), centre))
    rows = torch.arange(len(keys), device=keys.device)
    behind = [(target, source) for source, target in reversed(before)]
    return KernelPairs(*zip(*before, (rows, rows), *behind), len(level), len(level), centre)


def _step(places: Triple, strides: Triple) -> int:
    return sum(n * stride for n, stride in zip(places, strides))


def _search(keys: Tensor, starts: Tensor, kernel: Kernel, strides: Triple) -> Iterator[tuple[Tensor, Tensor]]:
    """For each place of the kernel, in order: rows whose key is start + step of the place, and the indices of these starts."""
    beyond = torch.cat([keys, keys.new_full((1,), -1)])  # what the search finds behind the last key: no voxel
    for i in range(kernel.size[0]):
        for j in range(kernel.size[1]):
            wanted = starts + _step((i, j, 0), strides)
            at = torch.searchsorted(keys, wanted)
            for _ in range(kernel.size[2]):
                hit = beyond.index_select(0, at) == wanted
                target = hit.nonzero().squeeze(1)
                yield at.index_select(0, target), target
                at = at + hit
                wanted = wanted + 1
