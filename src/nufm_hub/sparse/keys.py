"""Integer keys of voxels: (event, x, y, z) as one int64, so that sorting and searching one number does for four."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

Triple: TypeAlias = tuple[int, int, int]

MAX_KEY = 2**63 - 1


def triple(value: int | Triple, name: str) -> Triple:
    """`value` along x, y and z; one number stands for all three.

    Raises:
        ValueError: not one or three integers of at least 0; `name` says of what.
    """
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,) * 3
    if len(values) != 3 or not all(isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in values):
        raise ValueError(f"{name} must be an integer >= 0, or three of them for x, y and z; got {value!r}")
    return values


@dataclass(frozen=True)
class KeyGrid:
    """Room for every voxel of a batch: key = ((event * x_pitch + x) * y_pitch + y) * z_pitch + z.

    A pitch larger than the grid leaves a gap behind every line, plane and event: a step out of the grid that is no longer than the gap
    leads to a key that no voxel has, never to a voxel of another line or event.

    Attributes:
        pitch: voxels along x, y and z, gap included.
        num_events: events of the batch.

    Raises:
        ValueError: the keys would not fit into int64.
    """

    pitch: Triple
    num_events: int

    def __post_init__(self) -> None:
        if self.num_events * math.prod(self.pitch) > MAX_KEY:
            raise ValueError(
                f"a batch of {self.num_events} events on a grid of {' x '.join(map(str, self.pitch))} voxels (margins included) has no room in "
                "64-bit keys: use fewer events a batch, or coarser voxels"
            )

    @property
    def strides(self) -> Triple:
        """What a step along x, y and z adds to a key."""
        return self.pitch[1] * self.pitch[2], self.pitch[2], 1

    def keys(self, coordinates: Tensor, event: Tensor) -> Tensor:
        """Keys int64 (N,) of voxels at `coordinates` int64 (N, 3) of `event` int64 (N,)."""
        x, y, z = coordinates.unbind(1)
        return ((event * self.pitch[0] + x) * self.pitch[1] + y) * self.pitch[2] + z

    def places(self, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Coordinates int64 (N, 3) and event int64 (N,) that have these keys."""
        rest, z = keys // self.pitch[2], keys % self.pitch[2]
        rest, y = rest // self.pitch[1], rest % self.pitch[1]
        return torch.stack([rest % self.pitch[0], y, z], dim=1), rest // self.pitch[0]


def distinct(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Distinct keys in ascending order, int64 (M,), and the row among them of each key, int64 (N,).

    Neighbours in a list of voxels often share a key, so runs of equal keys are taken together before the rest is sorted.
    """
    runs, run = torch.unique_consecutive(keys, return_inverse=True)
    found, row = torch.unique(runs, return_inverse=True)
    return found, row.index_select(0, run)
