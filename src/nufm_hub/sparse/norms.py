"""Normalisation over the voxels of an event, never of a batch: an event gives the same alone and among others.

The rows of a level are sorted by event, so an event is a slice: slicing is several times faster than gathering per-event numbers by row.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .level import SparseLevel


class EventGRN(nn.Module):
    """Global response normalisation (arXiv:2301.00808, eq. 1 to 3) over the voxels of each event.

    With g_c the 2-norm of channel c over the voxels of an event: out = gamma * x * g_c / (mean over channels of g + eps) + beta + x.
    Gamma and beta start at zero: the module starts as the identity.
    """

    def __init__(self, channels: int, eps: float = 1e-6):
        super().__init__()
        self.eps = eps
        self.gamma, self.beta = nn.Parameter(torch.empty(channels)), nn.Parameter(torch.empty(channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.gamma)
        nn.init.zeros_(self.beta)

    def forward(self, features: Tensor, level: SparseLevel) -> Tensor:
        """(N, channels) -> (N, channels)."""
        level.check(features)
        if not len(features):
            return features
        return torch.cat([self._of_event(rows) for rows in features.split(level.sizes) if len(rows)])

    def _of_event(self, rows: Tensor) -> Tensor:
        norm = rows.norm(dim=0)
        return torch.addcmul(self.beta, rows, 1 + self.gamma * norm / (norm.mean() + self.eps))


class EventLayerNorm(nn.Module):
    """Normalisation of each event by the mean and variance over all its voxels and channels together, then weight and bias per channel.

    It is `torch.nn.GroupNorm` with one group whose positions are the voxels of an event. `torch.nn.LayerNorm`, which normalises every voxel
    by itself, works on the rows of a level as it is.
    """

    def __init__(self, channels: int, eps: float = 1e-6):
        super().__init__()
        self.eps = eps
        self.weight, self.bias = nn.Parameter(torch.empty(channels)), nn.Parameter(torch.empty(channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, features: Tensor, level: SparseLevel) -> Tensor:
        """(N, channels) -> (N, channels)."""
        level.check(features)
        if not len(features):
            return features
        normal = [F.layer_norm(rows, rows.shape, eps=self.eps) for rows in features.split(level.sizes) if len(rows)]
        return torch.addcmul(self.bias, torch.cat(normal), self.weight)
