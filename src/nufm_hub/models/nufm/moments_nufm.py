"""What a piece of a detector holds, in a few numbers with the same meaning in every detector; and where that is, in mm."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from nufm_hub.detectors import VoxelBranch

MOMENTS = 21
_FREQUENCIES = 6


def inside(place: Tensor, sizes: tuple[int, int, int]) -> Tensor:
    """Place of voxels in their cell, int64 (N,) with the last axis fastest -> coordinates from -1 to 1 along x, y and z, float32 (N, 3)."""
    _, y, z = sizes
    index = torch.stack([place // (y * z), place // z % y, place % z], dim=1).float()
    last = torch.tensor([max(n - 1, 1) for n in sizes], dtype=torch.float32, device=place.device)
    return index / last * 2 - 1


@torch.no_grad()
def cell_moments(row: Tensor, cells: int, place: Tensor, energy: Tensor) -> Tensor:
    """What the voxels of each cell say, float32 (cells, MOMENTS).

    Logarithms of energy, number and largest energy of the voxels, each of size 1; along x, y and z the mean place and spread, weighted with
    energy, the correlations of the axes, the plain mean, and the first and last place.

    Args:
        row: int64 (N,), cell of each voxel; every cell has one.
        cells: their number.
        place: float32 (N, 3) in the cell, see `inside`.
        energy: float32 (N,) in units that are 1 for a typical voxel.
    """
    energy = energy.float().clamp(min=1e-3)  # noise may leave nothing or less
    x, y, z = place.unbind(1)
    one = torch.ones_like(energy)
    weighted = torch.stack([one, x, y, z, x * x, y * y, z * z, x * y, x * z, y * z], dim=1) * energy[:, None]
    sums = place.new_zeros(cells, 14).index_add_(0, row, torch.cat([weighted, one[:, None], place], dim=1))
    total, number = sums[:, :1], sums[:, 10:11]
    first, square, product = (sums[:, 1:10] / total).split(3, dim=1)
    spread = (square - first.square()).clamp(min=0).sqrt()
    pairs = [(0, 1), (0, 2), (1, 2)]
    both = torch.stack([first[:, i] * first[:, j] for i, j in pairs], dim=1)
    widths = torch.stack([spread[:, i] * spread[:, j] for i, j in pairs], dim=1)
    correlation = (product - both) / widths.clamp(min=1e-2)
    where = row[:, None].expand(-1, 3)
    low = place.new_full((cells, 3), 1.0).scatter_reduce_(0, where, place, "amin")
    high = place.new_full((cells, 3), -1.0).scatter_reduce_(0, where, place, "amax")
    largest = place.new_zeros(cells).scatter_reduce_(0, row, energy, "amax")[:, None]
    sizes = torch.cat([total.log1p() / 3, number.log() / 3, largest.log1p() / 3], dim=1) - 1
    return torch.cat([sizes, first, spread, correlation, sums[:, 11:] / number, low, high], dim=1)


@torch.no_grad()
def cell_positions(row: Tensor, cells: int, coordinates: Tensor, energy: Tensor, branch: VoxelBranch) -> Tensor:
    """Mean position of the voxels of each cell, weighted with energy: float32 (cells, 3), mm.

    Args:
        row, cells, energy: as of `cell_moments`.
        coordinates: int64 (N, 3), voxel indices.
        branch: their geometry.
    """
    weight = energy.float().clamp(min=1e-3)[:, None]
    axes = _axis_positions(branch, coordinates.device)
    position = torch.stack([axis[coordinates[:, a]] for a, axis in enumerate(axes)], dim=1)
    sums = position.new_zeros(cells, 4).index_add_(0, row, torch.cat([position, torch.ones_like(weight)], dim=1) * weight)
    return sums[:, :3] / sums[:, 3:]


@lru_cache(maxsize=32)
def _axis_positions(branch: VoxelBranch, device: torch.device) -> list[Tensor]:
    """mm of the middle of every voxel along each axis. No buffer: in half precision a detector of metres would have steps of centimetres."""
    axes = []
    for axis, voxels in enumerate(branch.shape):
        index = np.zeros((voxels, 3), dtype=np.int64)
        index[:, axis] = np.arange(voxels)
        axes.append(torch.tensor(branch.to_mm(index)[:, axis], dtype=torch.float32, device=device))
    return axes


class NuFMPosition(nn.Module):
    """Position in mm -> vector, by sines and cosines of wavelengths from twice the detector to a sixteenth of it."""

    def __init__(self, branch: VoxelBranch, size: int):
        super().__init__()
        low, high = branch.bounds.astype(float)
        self.middle, self.half = ((low + high) / 2).tolist(), ((high - low) / 2).tolist()
        self.projection = nn.Linear(3 * (1 + 2 * _FREQUENCIES), size)

    def forward(self, position: Tensor) -> Tensor:
        """(P, 3), mm -> (P, size)."""
        place = (position - position.new_tensor(self.middle)) / position.new_tensor(self.half)
        angles = [place * (math.pi * 2**k) for k in range(_FREQUENCIES)]
        waves = torch.cat([place, *(a.sin() for a in angles), *(a.cos() for a in angles)], dim=1)
        return self.projection(waves.to(self.projection.weight.dtype))
