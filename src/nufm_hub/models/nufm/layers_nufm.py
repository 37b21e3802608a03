"""Layers of the NuFM models: attention through the library's attention interface, pre-norm blocks, frozen positions, padding."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_nufm import NuFMConfig


def sincos_position(size: int, grid: tuple[int, int, int]) -> Tensor:
    """Frozen 3-D sine-cosine positions, float32 (grid points with the last axis fastest, size).

    `size` is split into three even parts for the axes, the first ones 2 larger when it is no multiple of 6; each part holds the sines,
    then the cosines, of index * 10000^(-i / half part).
    """
    base, extra = size // 6 * 2, size % 6 // 2
    parts = []
    axes = torch.meshgrid(*(torch.arange(n, dtype=torch.float64, device="cpu") for n in grid), indexing="ij")
    for axis, index in enumerate(axes):
        half = (base + 2 * (axis < extra)) // 2
        frequency = 10000.0 ** (-torch.arange(half, dtype=torch.float64, device="cpu") / half)
        angle = index.reshape(-1, 1) * frequency
        parts += [angle.sin(), angle.cos()]
    return torch.cat(parts, dim=1).float()


class FrozenPosition(nn.Module):
    """A table of sine-cosine positions; not in checkpoints, since the grid says all about it."""

    def __init__(self, size: int, grid: tuple[int, int, int]):
        super().__init__()
        self.size, self.grid = size, grid
        # the library builds a model under the precision that it is loaded in, and casts only what a checkpoint holds
        self.register_buffer("weight", sincos_position(size, grid).to(torch.get_default_dtype()), persistent=False)

    def forward(self, index: Tensor) -> Tensor:
        return self.weight[index]


class WindowEmbedding(nn.Embedding):
    """A learned vector per window. It starts as large as the normalised tokens it is added to: drowned in them, the model would learn
    everything else by heart before it learns where a window is."""


class Sequences:
    """How T rows form G padded sequences of length L: layers work on the rows, only attention needs the padding.

    Attributes:
        group: int64 (T,), sequence of each row; rows of a sequence keep their order.
        slot: int64 (T,), place of each row in the flattened (G * L) padded sequences.
        mask: bool (G, L), True at rows. The first place is always True: a sequence without rows is a single zero.
    """

    def __init__(self, group: Tensor, groups: int):
        counts = torch.bincount(group, minlength=groups)
        self.groups, self.length = groups, max(int(counts.max()), 1) if groups else 1
        order = torch.argsort(group, stable=True)
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(group), device=group.device) - (counts.cumsum(0) - counts)[group[order]]
        self.group, self.slot = group, group * self.length + rank
        self.mask = torch.arange(self.length, device=group.device) < counts.clamp(min=1)[:, None]

    def pad(self, rows: Tensor) -> Tensor:
        """(T, d) -> (G, L, d), zero where there is no row."""
        padded = rows.new_zeros(self.groups * self.length, rows.shape[1]).index_copy(0, self.slot, rows)
        return padded.view(self.groups, self.length, rows.shape[1])

    def unpad(self, padded: Tensor) -> Tensor:
        """(G, L, d) -> (T, d)."""
        return padded.flatten(0, 1).index_select(0, self.slot)


def eager_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, scaling: float, dropout: float = 0.0, **_: object
) -> tuple[Tensor, Tensor]:
    """Attention written out, with its weights; the mask is bool, True at keys to attend to."""
    scores = query @ key.transpose(-1, -2) * scaling
    if attention_mask is not None:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    weights = F.dropout(scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype), dropout, module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class NuFMAttention(nn.Module):
    """Multi-head attention of queries to keys/values, fused projections (`query`; `key_value`: keys, then values)."""

    is_causal = False

    def __init__(self, config: NuFMConfig, size: int, heads: int):
        super().__init__()
        self.config = config
        self.heads, self.scaling = heads, (size // heads) ** -0.5
        self.query = nn.Linear(size, size)
        self.key_value = nn.Linear(size, 2 * size)
        self.output = nn.Linear(size, size)

    def forward(self, hidden: Tensor, sequences: Sequences, context: Tensor, contexts: Sequences) -> tuple[Tensor, Tensor | None]:
        """Rows (T, size) attend to the rows (S, size) of the sequence of the same number. Gives (T, size) and, if eager, the weights."""
        query = sequences.pad(self.query(hidden)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        key, value = contexts.pad(self.key_value(context)).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        mask = contexts.mask[:, None, None, :].expand(-1, 1, sequences.length, -1)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        if query.numel() == 0:  # the library's sdpa cannot reshape an empty batch
            attend = eager_attention
        dropout = self.config.attention_dropout if self.training else 0.0
        attended, weights = attend(self, query, key, value, mask, dropout=dropout, scaling=self.scaling)
        return self.output(sequences.unpad(attended.flatten(-2))), weights


class NuFMMLP(nn.Sequential):
    """Linear, exact GELU, linear."""

    def __init__(self, config: NuFMConfig, size: int):
        inner = int(size * config.mlp_ratio)
        super().__init__(nn.Linear(size, inner), nn.GELU(), nn.Linear(inner, size), nn.Dropout(config.hidden_dropout))


class NuFMLayer(GradientCheckpointingLayer):
    """Pre-norm transformer layer: self-attention, or cross-attention when built with `cross=True`, then an MLP, both residual."""

    def __init__(self, config: NuFMConfig, size: int, heads: int, *, cross: bool = False, drop_path: float = 0.0):
        super().__init__()
        self.attention_norm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.context_norm = nn.LayerNorm(size, eps=config.layer_norm_eps) if cross else None
        self.attention = NuFMAttention(config, size, heads)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.mlp_norm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.mlp = NuFMMLP(config, size)
        self.drop_path = drop_path

    def forward(
        self, hidden: Tensor, sequences: Sequences, context: Tensor | None = None, contexts: Sequences | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Rows (T, size) of some sequences; in cross-attention they look at the rows (S, size) of the context sequences."""
        normed = self.attention_norm(hidden)
        if context is None:
            attended, weights = self.attention(normed, sequences, normed, sequences)
        else:
            attended, weights = self.attention(normed, sequences, self.context_norm(context), contexts)
        hidden = hidden + self._drop_path(self.dropout(attended), sequences)
        return hidden + self._drop_path(self.mlp(self.mlp_norm(hidden)), sequences), weights

    def _drop_path(self, rows: Tensor, sequences: Sequences) -> Tensor:
        """Leave the branch out for some sequences in training, and scale it up for the others."""
        if not self.training or self.drop_path == 0:
            return rows
        keep = 1 - self.drop_path
        kept = (torch.rand(sequences.groups, device=rows.device) < keep).to(rows.dtype) / keep
        return rows * kept[sequences.group, None]
