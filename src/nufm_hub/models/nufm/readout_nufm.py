"""How heads read an event: with queries that look at all of it, and for a place by pointing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nufm_hub.events import summary_sources
from nufm_hub.models.common.outputs import EncoderOutput
from nufm_hub.models.common.pooling import HeadLinear, PooledHead

from .configuration_nufm import NuFMConfig
from .encoder_nufm import Encoded, Tokens
from .layers_nufm import NuFMLayer, Sequences
from .patch_embedding import Cells

_NEAR = (1, 2, 4, 8)  # voxels
_FARTHEST = 3.0  # patches


def mean_of_rows(rows: Tensor, sequences: Sequences) -> Tensor:
    """Mean of the rows (T, d) of each sequence: (G, d)."""
    return sequences.pad(rows).sum(dim=1) / sequences.mask.sum(dim=1, keepdim=True).to(rows.dtype)


@dataclass
class NuFMContext:
    """What queries and pointers look at.

    Attributes:
        rows: (S, hidden_size), latents and tokens of all branches, and how they form the events' `sequences`.
        tokens: (T, hidden_size), those of the first voxel branch, and their events int64 (T,).
        cells: the pieces of its patches.
        summary: (B, F), the `summary_features` of the events, 0 of absent branches; None where they are not read.
        starts: float32 (B, 3), mm, where geometry finds the vertices, NaN where it finds none; None where they are not read.
    """

    rows: Tensor
    sequences: Sequences
    tokens: Tensor
    events: Tensor
    cells: Cells
    summary: Tensor | None = None
    starts: Tensor | None = None

    @classmethod
    def of(cls, encoded: Encoded, first: Tokens, summary: Tensor | None, starts: Tensor | None) -> Self:
        """Of an encoded batch; `first` are the tokens of the first voxel branch as they were embedded."""
        groups = torch.cat([encoded.sequences.group, encoded.events])
        rows, count = torch.cat([encoded.latents, encoded.tokens]), len(first.event)
        return cls(rows, Sequences(groups, encoded.sequences.groups), encoded.tokens[:count], first.event, first.cells, summary, starts)


@dataclass
class NuFMEncoderOutput(EncoderOutput):
    """`EncoderOutput` as the heads get it.

    Attributes:
        context: what they may look at.
    """

    context: NuFMContext | None = None


class NuFMReadout(nn.Module):
    """One learned query for each quantity, which looks at latents and tokens in `readout_depth` cross-attention layers.

    With `event_summary` queries start from what the summary numbers of the event say.
    """

    def __init__(self, config: NuFMConfig, quantities: int):
        super().__init__()
        size = config.hidden_size
        self.query = nn.Parameter(torch.empty(quantities, size))
        self.summary = None
        if config.event_summary:
            self.summary = nn.Sequential(
                nn.Linear(len(summary_sources(config.spec)), 2 * size), nn.GELU(), nn.Dropout(config.head_dropout), nn.Linear(2 * size, size)
            )
        self.layers = nn.ModuleList(
            NuFMLayer(config, config.hidden_size, config.num_attention_heads, cross=True) for _ in range(config.readout_depth)
        )

    def forward(self, encoded: NuFMEncoderOutput) -> Tensor:
        """(B, quantities, hidden_size)."""
        context, (quantities, size) = encoded.context, self.query.shape
        events = context.sequences.groups
        vectors = self.query.repeat(events, 1)
        if self.summary is not None:
            vectors = vectors + self.summary(context.summary.to(vectors.dtype)).repeat_interleave(quantities, dim=0)
        own = Sequences(torch.arange(events, device=vectors.device).repeat_interleave(quantities), events)
        for layer in self.layers:
            vectors, _ = layer(vectors, own, context.rows, context.sequences)
        return vectors.view(events, quantities, size)


class NuFMPointingHead(PooledHead):
    """A place in the detector: each piece of the first voxel branch says how likely it is the nearest one, and how far from it the place is.

    The result is the mean over the pieces of (position + offset), weighted with a softmax of their scores. A further candidate, without a
    position, is what `PooledHead` says: what remains where there are no voxels. With an `event_summary` the pieces also know
    where geometry finds the vertex, as seen from them.
    """

    def __init__(self, config: NuFMConfig, cell_size: int, readout: nn.Module | None):
        super().__init__(config, 3, readout)
        scale = config.vertex_scale
        if scale is None:
            raise ValueError("pointing to the vertex needs vertex_scale=processor.vertex_scale of a processor fitted on events that carry vertices")
        numbers = [list(scale.get(key, [])) for key in ("mean", "std")]
        if any(len(n) != 3 or not all(map(math.isfinite, n)) for n in numbers) or min(numbers[1]) <= 0:
            raise ValueError(f"vertex_scale={scale} must hold mean and std, mm, three finite numbers each, those of std positive")
        size = config.hidden_size
        self.scale = scale  # mm
        self.cell, self.token, self.about = nn.Linear(cell_size, size), nn.Linear(size, size), nn.Linear(size, size)
        self.start = nn.Linear(4 + len(_NEAR), size) if config.event_summary else None
        self.score, self.offset, self.nowhere = HeadLinear(size, 1), HeadLinear(size, 3), HeadLinear(size, 1)
        first = config.spec.voxel_branches[0]
        self.reach = [float(n * length) for n, length in zip(first.patch, first.voxel_size)]
        self.near = [voxels * float(min(first.voxel_size)) for voxels in _NEAR]  # mm

    def forward(self, encoded: NuFMEncoderOutput, vector: Tensor | None = None) -> Tensor:
        """Places (B, 3), float32, in units and from the middle that `config.vertex_scale` says."""
        context, cells = encoded.context, encoded.context.cells
        vector = self.vector(encoded) if vector is None else vector
        normed = self.norm(vector)
        event = context.events[cells.patch]
        hidden = self.cell(cells.values) + self.token(context.tokens)[cells.patch] + self.about(normed)[event]
        if self.start is not None:
            hidden = hidden + self.start(self._to_start(cells.position, context.starts[event]).to(hidden.dtype))
        hidden = F.gelu(hidden)
        middle, unit = (cells.position.new_tensor(self.scale[key]) for key in ("mean", "std"))
        offset = self.offset(hidden).float() * cells.position.new_tensor(self.reach)
        places = torch.cat([(cells.position + offset - middle) / unit, super().forward(encoded, vector).float()])
        scores = torch.cat([self.score(hidden), self.nowhere(normed)]).float().squeeze(1)
        event = torch.cat([event, torch.arange(len(vector), device=event.device)])
        highest = scores.detach().new_full((len(vector),), -torch.inf).scatter_reduce(0, event, scores.detach(), "amax")
        weights = (scores - highest[event]).exp()
        sums = places.new_zeros(len(vector), 4).index_add(0, event, torch.cat([places, torch.ones_like(places[:, :1])], dim=1) * weights[:, None])
        return sums[:, :3] / sums[:, 3:]

    def _to_start(self, positions: Tensor, starts: Tensor) -> Tensor:
        """The way from positions to starts, both (R, 3), mm: in patches, at most 3; how near it is, on several scales; whether there is a start."""
        known = starts.isfinite().all(dim=1, keepdim=True)
        way = torch.where(known, starts - positions, 0.0)
        square = way.square().sum(dim=1, keepdim=True)
        near = [torch.where(known, (-square / (2 * scale**2)).exp(), 0.0) for scale in self.near]
        return torch.cat([(way / way.new_tensor(self.reach)).clamp(-_FARTHEST, _FARTHEST), *near, known.to(way.dtype)], dim=1)
