"""The occupied voxels of a batch at one resolution, and everything that layers on them share."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import cached_property
from typing import Literal, TypeVar

import torch
from torch import Tensor

from .curves import CURVES
from .keys import MAX_KEY, KeyGrid, Triple, distinct, triple
from .neighbours import Kernel, KernelPairs, neighbour_pairs
from .pooling import merge_rows

T = TypeVar("T")


class SparseLevel:
    """The occupied voxels of a batch: N rows, sorted by (event, x, y, z), one row a place.

    Voxels come in any order and may repeat a place. `merge` takes their features to the rows of the level, where all sparse operations
    work, and `spread` takes the result back to every voxel in the order it came in. Tables of neighbours, coarser levels and orders along
    curves are made when first asked for and kept, so that all layers of a model share them.

    Args:
        coordinates: integer (V, 3), voxel indices along x, y and z, 0 or larger.
        event: integer (V,), event of each voxel.
        num_events: number of events; some may have no voxel.

    Attributes:
        coordinates: int64 (N, 3) of the rows.
        event: int64 (N,) of the rows, non-decreasing.
        num_events: number of events.
        shape: one more than the largest coordinate along x, y and z.
        row: int64 (V,), the row of each voxel that came in.

    Raises:
        ValueError: wrong shapes, dtypes or devices, a negative coordinate, an event out of range, or a grid that is too large for 64-bit
            keys; says which.
    """

    def __init__(self, coordinates: Tensor, event: Tensor, num_events: int):
        _check_voxels(coordinates, event, num_events)
        self.num_events = num_events
        last = coordinates.amax(0).tolist() if len(coordinates) else [0, 0, 0]
        self.shape: Triple = (last[0] + 1, last[1] + 1, last[2] + 1)
        grid = KeyGrid(self.shape, num_events)
        keys, self.row = distinct(grid.keys(coordinates.long(), event.long()))
        self.coordinates, self.event = grid.places(keys)
        self._cache: dict[Hashable, object] = {}

    def __len__(self) -> int:
        return self.event.shape[0]

    def __repr__(self) -> str:
        return f"SparseLevel({len(self)} voxels of {self.num_events} events, up to {self.shape})"

    @cached_property
    def counts(self) -> Tensor:
        """Rows of each event, int64 (num_events,)."""
        return torch.bincount(self.event, minlength=self.num_events)

    @cached_property
    def sizes(self) -> list[int]:
        """Rows of each event, as `Tensor.split` takes them."""
        return self.counts.tolist()

    def merge(self, features: Tensor, how: Literal["sum", "mean", "max"] = "sum") -> Tensor:
        """Features (V, C) of the voxels that made this level -> (N, C) of its rows; voxels at the same place are taken together.

        Raises:
            ValueError: not one row of features a voxel, or an unknown `how`.
        """
        return merge_rows(features, self.row, len(self), how)

    def spread(self, features: Tensor) -> Tensor:
        """Features (N, C) of the rows -> (V, C) of the voxels that made this level, in their order.

        Raises:
            ValueError: not one row of features a row of the level.
        """
        self.check(features)
        return features.index_select(0, self.row)

    def check(self, features: Tensor) -> None:
        """Raise a ValueError if `features` are not (N, C) of these rows."""
        if features.dim() != 2 or len(features) != len(self):
            raise ValueError(f"features must be ({len(self)}, C), one row a voxel of the level; got {tuple(features.shape)}")

    def keys(self, gap: Triple) -> tuple[KeyGrid, Tensor]:
        """Ascending keys int64 (N,) of the rows, on a grid with a gap of this many voxels behind each line, plane and event."""
        x, y, z = (n + g for n, g in zip(self.shape, gap))
        grid = KeyGrid((x, y, z), self.num_events)
        return grid, grid.keys(self.coordinates, self.event)

    def coarser(self, stride: int | Triple) -> SparseLevel:
        """The level of the cells of `stride` voxels that hold a voxel; its `row` (N,) is the cell of each row of this level.

        Raises:
            ValueError: a stride below 1.
        """
        stride = triple(stride, "stride")
        if min(stride) < 1:
            raise ValueError(f"stride must be at least 1; got {stride}")
        size = torch.tensor(stride, device=self.coordinates.device)
        return self.remember(("coarser", stride), lambda: SparseLevel(self.coordinates // size, self.event, self.num_events))

    def pairs(self, kernel: Kernel) -> KernelPairs:
        """Rows of this level that the kernel reads, with the rows of `coarser(kernel.stride)` that it writes."""
        return self.remember(kernel, lambda: neighbour_pairs(self, kernel))

    def order(self, curve: str, depth: int) -> Tensor:
        """Rows in order along a space-filling curve, event by event: int64 (N,).

        Args:
            curve: a name in `CURVES`.
            depth: bits of a coordinate. Hilbert orders depend on it, so fix it for results that do not depend on the batch.

        Raises:
            ValueError: an unknown curve, coordinates beyond the depth, or a depth that leaves no room for the events in 64-bit keys.
        """
        if curve not in CURVES:
            raise ValueError(f"curve={curve!r} is none of {', '.join(CURVES)}")
        return self.remember((curve, depth), lambda: self._sorted(CURVES[curve](self.coordinates, depth), depth))

    def _sorted(self, codes: Tensor, depth: int) -> Tensor:
        if self.num_events << 3 * depth > MAX_KEY:
            raise ValueError(f"{self.num_events} events at depth {depth} have no room in 64-bit keys: use fewer events a batch")
        return torch.argsort(self.event << 3 * depth | codes)

    def remember(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` gave when `key` was first asked for. Backends keep their own tables here."""
        if key not in self._cache:
            self._cache[key] = make()
        return self._cache[key]  # type: ignore[return-value]


def _check_voxels(coordinates: Tensor, event: Tensor, num_events: int) -> None:
    if coordinates.dim() != 2 or coordinates.shape[1] != 3 or event.shape != coordinates.shape[:1]:
        raise ValueError(f"coordinates must be (V, 3) and event (V,); got {tuple(coordinates.shape)} and {tuple(event.shape)}")
    for name, value in (("coordinates", coordinates), ("event", event)):
        if value.dtype.is_floating_point or value.dtype.is_complex or value.dtype == torch.bool:
            raise ValueError(f"{name} must be integers; got {value.dtype}")
    if coordinates.device != event.device:
        raise ValueError(f"coordinates and event must be on one device; got {coordinates.device} and {event.device}")
    if num_events < 0:
        raise ValueError(f"num_events must be 0 or more; got {num_events}")
    if not len(event):
        return
    if (low := int(coordinates.min())) < 0:
        raise ValueError(f"coordinates must be 0 or larger; the smallest is {low}: subtract it from that axis first")
    if (first := int(event.min())) < 0 or (last := int(event.max())) >= num_events:
        wrong = first if first < 0 else last
        raise ValueError(f"event must be in 0 .. num_events - 1 = {num_events - 1}; got {wrong}")
