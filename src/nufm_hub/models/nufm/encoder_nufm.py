"""From patches, images and tracks to tokens (`NuFMEmbeddings`, one detector's), and from tokens to latents (`NuFMEncoder`, any detector's)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nufm_hub.detectors import ImageBranch, TrackBranch, VoxelBranch

from .configuration_nufm import NuFMConfig
from .layers_nufm import FrozenPosition, NuFMLayer, Sequences, WindowEmbedding
from .moments_nufm import MOMENTS, NuFMPosition, cell_moments, cell_positions, inside
from .patch_embedding import Cells, NuFMPatchEmbedding, Patches


@dataclass
class Tokens:
    """What the embeddings hand to the encoder for one voxel branch: T tokens of P occupied patches (T < P when some are hidden).

    Attributes:
        values: (T, hidden_size) patch embedding + position (+ source).
        event, window: int64 (T,), non-decreasing in (event, window).
        occupied: int64 (B * windows,) number of occupied patches, hidden ones too, of each window. A table over the whole grid, but small:
            the embedding of windows has `hidden_size` numbers for each of them.
        window_vectors: (windows, hidden_size) added after the window layers, or None in a branch of one window.
        source: (hidden_size,) added to the CLS tokens after the window layers, or None in the first branch.
        moments: (T, MOMENTS) of the patches, see `cell_moments`, or None in the published layout.
        cells: the pieces of the patches.
    """

    values: Tensor
    event: Tensor
    window: Tensor
    occupied: Tensor
    window_vectors: Tensor | None
    source: Tensor | None
    moments: Tensor | None
    cells: Cells


class NuFMVoxelEmbeddings(nn.Module):
    """Patches of one voxel branch -> tokens."""

    def __init__(self, config: NuFMConfig, branch: VoxelBranch, first: bool):
        super().__init__()
        self.branch, self.with_moments = branch, config.patch_moments
        self.patch_embedding = NuFMPatchEmbedding(config, branch)
        self.position = FrozenPosition(config.hidden_size, branch.window)
        self.place = NuFMPosition(branch, config.hidden_size) if config.continuous_position else None
        self.source = None if first else nn.Parameter(torch.empty(config.hidden_size))
        self.window = window_embedding(config, branch, config.hidden_size)

    def forward(self, patches: Patches, occupied: Tensor) -> Tokens:
        values, cells = self.patch_embedding(patches)
        values = values + self.position(patches.position)
        if self.source is not None:
            values = values + self.source
        if self.place is not None:
            values = values + self.place(cell_positions(patches.row, len(patches), patches.coordinates, patches.energy, self.branch))
        moments = None
        if self.with_moments:
            moments = cell_moments(patches.row, len(patches), inside(patches.offset, self.branch.patch), patches.energy)
        vectors = None if self.window is None else self.window.weight
        return Tokens(values, patches.event, patches.window, occupied, vectors, self.source, moments, cells)


def window_embedding(config: NuFMConfig, branch: VoxelBranch, size: int) -> nn.Module | None:
    """Vectors (`.weight`) that tell the windows of a branch apart; None when there is one window."""
    if branch.num_windows == 1:
        return None
    if config.window_position == "sincos":
        return FrozenPosition(size, branch.window_grid)
    return WindowEmbedding(branch.num_windows, size)


class NuFMImageEmbeddings(nn.Module):
    """A dense image -> one token."""

    def __init__(self, config: NuFMConfig, branch: ImageBranch):
        super().__init__()
        self.projection = nn.Linear(branch.size, config.hidden_size)
        self.source = nn.Parameter(torch.empty(config.hidden_size))

    def forward(self, image: Tensor) -> Tensor:
        """(B, D) -> (B, hidden_size)."""
        return self.projection(image.to(self.projection.weight.dtype)) + self.source


class NuFMTrackEmbeddings(nn.Module):
    """Tracks -> one token: their number looks at them; a learned state says whether there is any."""

    def __init__(self, config: NuFMConfig, branch: TrackBranch):
        super().__init__()
        self.count = nn.Linear(1, config.hidden_size)
        self.projection = nn.Linear(len(branch.model_features), config.hidden_size)
        self.layer = NuFMLayer(config, config.hidden_size, config.num_attention_heads, cross=True)
        self.state = nn.Embedding(2, config.hidden_size)
        self.source = nn.Parameter(torch.empty(config.hidden_size))

    def forward(self, tracks: Tensor, mask: Tensor) -> Tensor:
        """Features (B, T, F) and mask bool (B, T) -> (B, hidden_size)."""
        dtype, some = self.count.weight.dtype, mask.any(dim=1)
        count = self.count(mask.sum(dim=1, keepdim=True).to(dtype))
        events = torch.arange(len(mask), device=mask.device)
        real = Sequences(mask.nonzero()[:, 0], len(mask))
        looked, _ = self.layer(count, Sequences(events, len(mask)), self.projection(tracks[mask].to(dtype)), real)
        return torch.where(some[:, None], looked, count) + self.state(some.long()) + self.source


class NuFMEventFeatureEmbeddings(nn.Module):
    """The one row of a branch of at most one track -> one token: numbers about the whole event or crop, as in the published transfer models."""

    def __init__(self, config: NuFMConfig, branch: TrackBranch):
        super().__init__()
        features = len(branch.model_features)
        self.feature_norm = nn.LayerNorm(features)
        self.projection = nn.Linear(features, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.source = nn.Parameter(torch.empty(config.hidden_size))

    def forward(self, rows: Tensor, mask: Tensor) -> Tensor:
        """Features (B, T, F) of which the first row counts -> (B, hidden_size)."""
        hidden = self.projection(self.feature_norm(rows[:, 0].to(self.projection.weight.dtype)))
        return self.norm(F.gelu(hidden)) + self.source


class NuFMEmbeddings(nn.Module):
    """Everything that belongs to one detector."""

    def __init__(self, config: NuFMConfig):
        super().__init__()
        spec = config.spec
        self.voxels = nn.ModuleList(NuFMVoxelEmbeddings(config, b, first=i == 0) for i, b in enumerate(spec.voxel_branches))
        self.image = NuFMImageEmbeddings(config, spec.image_branch) if spec.image_branch else None
        self.tracks = None
        if spec.track_branch is not None:
            kind = NuFMEventFeatureEmbeddings if spec.track_branch.max_count == 1 else NuFMTrackEmbeddings
            self.tracks = kind(config, spec.track_branch)


class NuFMBranchEncoder(nn.Module):
    """Self-attention inside the windows of one voxel branch."""

    def __init__(self, config: NuFMConfig, branch: VoxelBranch, depth: int):
        super().__init__()
        self.num_cls, self.num_windows = config.num_window_cls, branch.num_windows
        self.patches_per_cls = max(1, branch.positions_per_window // self.num_cls)
        self.moments = None
        if config.patch_moments:  # here and not in the embeddings: they mean the same in every detector
            self.moments = nn.Sequential(nn.Linear(MOMENTS, config.hidden_size), nn.GELU(), nn.Linear(config.hidden_size, config.hidden_size))
        self.cls_token = nn.Parameter(torch.empty(self.num_cls, config.hidden_size))
        rates = [config.drop_path_rate * i / max(1, depth + 2 * config.fusion_depth - 1) for i in range(depth)]
        self.layers = nn.ModuleList(NuFMLayer(config, config.hidden_size, config.num_attention_heads, drop_path=r) for r in rates)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, tokens: Tokens, forced: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encode.

        Args:
            tokens: of the branch.
            forced: bool (B,), events that get a window with a CLS token even when no patch is occupied.

        Returns:
            tokens (T, hidden_size) in the order given; active CLS tokens (C, hidden_size), and their events int64 (C,).
        """
        occupied = tokens.occupied.view(-1, self.num_windows)
        active = occupied > 0
        active[:, 0] |= forced
        active = active.flatten()
        row_of_window = active.long().cumsum(0) - 1
        rows = active.nonzero().squeeze(1)

        wanted = (tokens.occupied[rows] + self.patches_per_cls - 1) // self.patches_per_cls
        cls_mask = torch.arange(self.num_cls, device=rows.device) < wanted.clamp(1, self.num_cls)[:, None]
        cls_row, cls_index = cls_mask.nonzero().unbind(1)
        token_row = row_of_window[tokens.event * self.num_windows + tokens.window]
        sequences = Sequences(torch.cat([cls_row, token_row]), len(rows))
        values = tokens.values if self.moments is None else tokens.values + self.moments(tokens.moments.to(tokens.values.dtype))
        hidden = torch.cat([self.cls_token[cls_index], values])
        for layer in self.layers:
            hidden, _ = layer(hidden, sequences)
        hidden = self.norm(hidden)

        if tokens.window_vectors is not None:
            hidden = hidden + tokens.window_vectors[rows[sequences.group] % self.num_windows]
        cls, values = hidden.split([len(cls_row), len(token_row)])
        if tokens.source is not None:
            cls = cls + tokens.source
        return values, cls, rows[cls_row] // self.num_windows


@dataclass
class Encoded:
    """What the encoder makes of a batch.

    Attributes:
        latents: (C, hidden_size), and how they form the events' `sequences`.
        tokens: (S, hidden_size), those of the voxel branches first, in order, and their events int64 (S,).
        history: latents before and after each round; attention `weights` (B, heads, L, tokens), if the attention gives them.
    """

    latents: Tensor
    sequences: Sequences
    tokens: Tensor
    events: Tensor
    history: list[Tensor]
    weights: list[Tensor]


class NuFMEncoder(nn.Module):
    """Everything that can move to another detector: window layers of every branch, then the fusion of all tokens into the latents."""

    def __init__(self, config: NuFMConfig):
        super().__init__()
        size, heads, depth = config.hidden_size, config.num_attention_heads, config.fusion_depth
        branches = config.spec.voxel_branches
        self.branches = nn.ModuleList(NuFMBranchEncoder(config, b, d) for b, d in zip(branches, config.window_depths))
        self.tokens_norm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        start, steps = config.window_depths[0], max(1, config.window_depths[0] + 2 * depth - 1)
        rates = [config.drop_path_rate * (start + i) / steps for i in range(2 * depth)]
        cross = [0.0] + [r / 2 for r in rates[2::2]]
        self.cross_layers = nn.ModuleList(NuFMLayer(config, size, heads, cross=True, drop_path=r) for r in cross)
        self.self_layers = nn.ModuleList(NuFMLayer(config, size, heads, drop_path=r) for r in rates[1::2])

    def forward(
        self, voxels: list[Tokens], others: list[tuple[Tensor, Tensor]], batch_size: int, *, keep_history: bool = False
    ) -> Encoded:
        """Encode a batch.

        Args:
            voxels: tokens of each voxel branch.
            others: further tokens (T, hidden_size) with their events int64 (T,).
            batch_size: number of events B.
            keep_history: whether to return the latents of every round and the cross-attention weights.
        """
        # an event with no occupied patch still has one latent, a lone CLS token of the first branch
        alone = torch.stack([t.occupied.view(batch_size, -1).sum(1) for t in voxels]).sum(0) == 0
        encoded = [branch(t, alone if i == 0 else torch.zeros_like(alone)) for i, (branch, t) in enumerate(zip(self.branches, voxels))]
        values = torch.cat([e[0] for e in encoded] + [o[0] for o in others])
        events = torch.cat([t.event for t in voxels] + [o[1] for o in others])
        tokens, token_sequences = self.tokens_norm(values), Sequences(events, batch_size)
        latents, sequences = torch.cat([e[1] for e in encoded]), Sequences(torch.cat([e[2] for e in encoded]), batch_size)

        history, weights = [latents], []
        for cross, own in zip(self.cross_layers, self.self_layers):
            latents, attention = cross(latents, sequences, tokens, token_sequences)
            latents, _ = own(latents, sequences)
            if keep_history:
                history.append(latents)
                weights += [] if attention is None else [attention]
        return Encoded(latents, sequences, tokens, events, history, weights)
