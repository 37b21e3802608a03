"""Sparse convolutions between the voxels and the patches."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from nufm_hub.sparse import DepthwiseConv3d, SparseLevel


class NuFMStemBlock(nn.Module):
    """Block of arXiv:2201.03545 on sub-patches: depth-wise convolution over their neighbours, LayerNorm, and an MLP; residual."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.convolution = DepthwiseConv3d(size, 3)
        self.norm = nn.LayerNorm(size, eps=eps)
        self.wide, self.narrow = nn.Linear(size, 2 * size), nn.Linear(2 * size, size)

    def forward(self, rows: Tensor, level: SparseLevel) -> Tensor:
        """(R, size) at the places of `level` -> (R, size)."""
        return rows + self.narrow(F.gelu(self.wide(self.norm(self.convolution(rows, level)))))
