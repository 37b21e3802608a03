"""Exact sparse convolution with kernel = stride = patch, in plain PyTorch.

Voxels are scattered into dense cells of the occupied patches (or sub-patches) only, and one matrix product does the rest. Outputs and
gradients are those of `torch.nn.functional.conv3d` on the dense grid at the occupied patches, whatever their number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nufm_hub.detectors import VoxelBranch
from nufm_hub.sparse import SparseLevel
from nufm_hub.sparse.keys import distinct

from .configuration_nufm import NuFMConfig
from .moments_nufm import MOMENTS, cell_moments, cell_positions, inside
from .stem_nufm import NuFMStemBlock

MAX_SINGLE_VOLUME = 512  # larger patches are embedded by two convolutions
MAX_FIRST_VOLUME = 32


def choose_kernels(patch: tuple[int, int, int]) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Kernels (k1, k2) with k1 * k2 = patch: k1 takes, axis by axis, the largest of 4, 3, 2 that divides and keeps its volume <= 32."""
    first: list[int] = []
    for size in patch:
        fits = (k for k in (4, 3, 2) if size % k == 0 and math.prod(first) * k <= MAX_FIRST_VOLUME)
        first.append(next(fits, 1))
    return tuple(first), tuple(p // k for p, k in zip(patch, first))  # type: ignore[return-value]


@dataclass
class Patches:
    """Occupied patches of one voxel branch in a batch, P in all, ordered by event, window and position, and their N voxels.

    Attributes:
        event, window, position: int64 (P,): event in the batch, window of the branch, place of the patch in its window.
        features: (N, C) voxel features.
        row: int64 (N,): patch of each voxel.
        offset: int64 (N,): place of the voxel in its patch, `(x * patch_y + y) * patch_z + z`.
        sub, inner: int64 (N,): sub-patch of the voxel in its patch, and place in the sub-patch, when the patch is embedded in two steps.
        voxel: int64 (N,): index of the voxel in the batch's list of voxels (padding dropped).
        coordinates: int64 (N, 3): voxel indices in the grid of the branch.
        energy: (N,) in units of a typical voxel, see `NuFMInputs`; None in models that do not read it.
    """

    event: Tensor
    window: Tensor
    position: Tensor
    features: Tensor
    row: Tensor
    offset: Tensor
    sub: Tensor
    inner: Tensor
    voxel: Tensor
    coordinates: Tensor
    energy: Tensor | None = None

    def __len__(self) -> int:
        return self.event.shape[0]

    def select(self, keep: Tensor) -> Patches:
        """The patches where `keep`, bool (P,), is True, with their voxels."""
        row = (keep.long().cumsum(0) - 1)[self.row]
        voxels = keep[self.row].nonzero().squeeze(1)
        names = ("features", "offset", "sub", "inner", "voxel", "coordinates", "energy")
        per_voxel = {name: values[voxels] for name in names if (values := getattr(self, name)) is not None}
        return Patches(self.event[keep], self.window[keep], self.position[keep], row=row[voxels], **per_voxel)


def _axis_codes(branch: VoxelBranch, kernels: tuple[tuple[int, int, int], tuple[int, int, int]], axis: int, device: torch.device) -> Tensor:
    """What a coordinate along one axis adds to the codes (patch, offset, sub, inner) of a voxel: int64 (4, shape[axis])."""

    def stride(sizes: tuple[int, int, int]) -> int:
        return math.prod(sizes[axis + 1 :])

    first, second = kernels
    x = torch.arange(branch.shape[axis], device=device)
    patch, inside = x // branch.patch[axis], x % branch.patch[axis]
    window, place = patch // branch.window[axis], patch % branch.window[axis]
    patch_code = window * (stride(branch.window_grid) * branch.positions_per_window) + place * stride(branch.window)
    sub, inner = inside // first[axis] * stride(second), inside % first[axis] * stride(first)
    return torch.stack([patch_code, inside * stride(branch.patch), sub, inner])


def patchify(
    coordinates: Tensor,
    event: Tensor,
    features: Tensor,
    voxel: Tensor,
    branch: VoxelBranch,
    batch_size: int,
    energy: Tensor | None = None,
) -> Patches:
    """Sort voxels into the occupied patches of a branch.

    Args:
        coordinates: int64 (N, 3) voxel indices inside `branch.shape`.
        event: int64 (N,) event of each voxel.
        features: (N, C).
        voxel: int64 (N,) carried along, see `Patches`.
        branch: the geometry.
        batch_size: number of events.
        energy: (N,) carried along.

    Raises:
        ValueError: a coordinate outside the grid, or an event outside the batch (checked on the CPU only: the check would stall a GPU).
    """
    if coordinates.device.type == "cpu" and coordinates.numel():
        low, high = coordinates.amin(0).tolist(), coordinates.amax(0).tolist()
        if min(low) < 0 or any(h >= n for h, n in zip(high, branch.shape)):
            raise ValueError(f"branch {branch.name!r}: voxel coordinates from {low} to {high} leave the grid {branch.shape}")
        first, last = map(int, event.aminmax())
        if first < 0 or last >= batch_size:
            raise ValueError(f"branch {branch.name!r}: events from {first} to {last} leave the batch of {batch_size}")
    kernels = patch_kernels(branch.patch)
    x, y, z = (_axis_codes(branch, kernels, a, coordinates.device).index_select(1, coordinates[:, a]) for a in range(3))
    patch_code, offset, sub, inner = x.add_(y).add_(z).unbind(0)
    patches = branch.num_windows * branch.positions_per_window
    code, row = distinct(event * patches + patch_code)
    patch_code = code % patches
    return Patches(
        event=code // patches,
        window=patch_code // branch.positions_per_window,
        position=patch_code % branch.positions_per_window,
        features=features,
        row=row,
        offset=offset,
        sub=sub,
        inner=inner,
        voxel=voxel,
        coordinates=coordinates,
        energy=energy,
    )


def patch_kernels(patch: tuple[int, int, int]) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Kernels of the (one or two) convolutions that embed a patch; one convolution is `(patch, (1, 1, 1))`."""
    return (patch, (1, 1, 1)) if math.prod(patch) <= MAX_SINGLE_VOLUME else choose_kernels(patch)


class SparsePatchConv3d(nn.Conv3d):
    """`nn.Conv3d` with stride = kernel, on scattered cells of the occupied kernel places only. Same weights, same layout.

    Not the strided convolution of `nufm_hub.sparse`: that takes a step per place of the kernel, and a patch has hundreds.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: tuple[int, int, int], bias: bool = True):
        super().__init__(in_channels, out_channels, kernel_size=kernel, stride=kernel, bias=bias)

    def forward(self, features: Tensor, cell: Tensor, rows: int) -> Tensor:
        """Convolve.

        Args:
            features: (N, in_channels). Cells without a feature are zero; features in the same cell add up.
            cell: int64 (N,), `row * kernel_volume + place in the kernel`.
            rows: number of output rows R.

        Returns:
            (R, out_channels).
        """
        volume = math.prod(self.kernel_size)
        dense = features.new_zeros(rows * volume, self.in_channels).index_add(0, cell, features)
        weight = self.weight.permute(0, 2, 3, 4, 1).reshape(self.out_channels, -1)
        return F.linear(dense.view(rows, volume * self.in_channels), weight, self.bias)


@dataclass
class Cells:
    """The pieces that patches are put together from, R in all: sub-patches, or the patches themselves where they are embedded in one step.

    Attributes:
        values: (R, size).
        patch: int64 (R,), patch of each.
        position: float32 (R, 3), mm, mean of the voxels weighted with energy; None in models that do not point.
    """

    values: Tensor
    patch: Tensor
    position: Tensor | None


class NuFMPatchEmbedding(nn.Module):
    """Patches -> vectors: one convolution, or two with LayerNorm and GELU between when the patch has more than 512 voxels.

    Two voxels at the same place of an event count with the sum of their features.

    Published is the convolution of the features alone. It has no bias before the norm, so that a lone voxel gives the same vector whatever
    its energy; `presence_channel` adds a feature that is 1 at every voxel. With `patch_moments` sub-patches also know their moments, and
    with `stem_depth` they look at each other before they become patches.
    """

    def __init__(self, config: NuFMConfig, branch: VoxelBranch):
        super().__init__()
        self.branch = branch
        first, second = patch_kernels(branch.patch)
        self.sub_patches, size = math.prod(second), config.hidden_size
        self.presence, self.pointing = config.presence_channel, config.vertex_pointing
        channels = len(branch.channels) + self.presence
        if self.sub_patches == 1:
            self.cell_size = size
            self.projection = SparsePatchConv3d(channels, size, first)
        else:
            self.cell_size = inner = config.cell_size
            self.sub_projection = SparsePatchConv3d(channels, inner, first, bias=False)
            self.sub_moments = nn.Linear(MOMENTS, inner) if config.patch_moments else None
            self.sub_norm = nn.LayerNorm(inner, eps=config.layer_norm_eps)
            self.stem = nn.ModuleList(NuFMStemBlock(inner, config.layer_norm_eps) for _ in range(config.stem_depth))
            self.projection = SparsePatchConv3d(inner, size, second)

    def forward(self, patches: Patches) -> tuple[Tensor, Cells]:
        """(P, hidden_size), and the pieces."""
        features = patches.features.to(self.projection.weight.dtype)
        if self.presence:
            features = torch.cat([features, torch.ones_like(features[:, :1])], dim=1)
        if self.sub_patches == 1:
            values = self.projection(features, patches.row * math.prod(self.projection.kernel_size) + patches.offset, len(patches))
            every = torch.arange(len(patches), device=values.device)
            return values, Cells(values, every, self._positions(patches, patches.row, len(patches)))
        cell = patches.row * self.sub_patches + patches.sub
        occupied = torch.zeros(len(patches) * self.sub_patches, dtype=torch.bool, device=cell.device)
        occupied[cell] = True
        sub_row = (occupied.long().cumsum(0) - 1)[cell]
        sub_cell = occupied.nonzero().squeeze(1)
        number, kernel = sub_cell.shape[0], self.sub_projection.kernel_size
        hidden = self.sub_projection(features, sub_row * math.prod(kernel) + patches.inner, number)
        if self.sub_moments is not None:
            hidden = hidden + self.sub_moments(cell_moments(sub_row, number, inside(patches.inner, kernel), patches.energy).to(hidden.dtype))
        hidden = F.gelu(self.sub_norm(hidden))
        patch = sub_cell // self.sub_patches
        if self.stem:
            hidden = self._stem(hidden, patches, sub_row, patch)
        return self.projection(hidden, sub_cell, len(patches)), Cells(hidden, patch, self._positions(patches, sub_row, number))

    def _stem(self, hidden: Tensor, patches: Patches, sub_row: Tensor, patch: Tensor) -> Tensor:
        places = patches.coordinates.new_zeros(len(hidden), 3)
        places[sub_row] = patches.coordinates // places.new_tensor(self.sub_projection.kernel_size)  # the same for all voxels of one
        events = int(patches.event[-1]) + 1 if len(patches) else 0
        level = SparseLevel(places, patches.event[patch], events)
        rows = level.merge(hidden)
        for block in self.stem:
            rows = block(rows, level)
        return level.spread(rows)

    def _positions(self, patches: Patches, row: Tensor, number: int) -> Tensor | None:
        if not self.pointing:
            return None
        return cell_positions(row, number, patches.coordinates, patches.energy, self.branch)
