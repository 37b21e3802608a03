"""From latents back to voxels, images and tracks: what pre-training predicts, and what labels of voxels are read from."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nufm_hub.detectors import VoxelBranch
from nufm_hub.events import summary_sources

from .configuration_nufm import NuFMConfig
from .encoder_nufm import window_embedding
from .layers_nufm import FrozenPosition, NuFMLayer, Sequences
from .patch_embedding import Patches


def cosine_basis(size: int, modes: int) -> Tensor:
    """The lowest cosines on `size` points, orthonormal (discrete cosine transform II): float32 (size, modes)."""
    points, mode = torch.arange(size, device="cpu")[:, None] + 0.5, torch.arange(modes, device="cpu")
    scale = torch.where(mode == 0, 1.0, math.sqrt(2.0)) / math.sqrt(size)
    return scale * torch.cos(math.pi * points * mode / size)


def axis_functions(size: int) -> int:
    """Number of basis functions on an axis of `size` voxels: 0.4 of them, the published density."""
    return math.ceil(0.4 * size)


class SeparableBasis(nn.Module):
    """Learnable functions of each axis of a patch that start as its lowest cosines."""

    def __init__(self, patch: tuple[int, int, int]):
        super().__init__()
        self.x, self.y, self.z = (nn.Parameter(torch.empty(n, axis_functions(n))) for n in patch)


class NuFMVoxelHead(nn.Module):
    """Patch vector -> values at its voxels.

    A patch vector gives, for each of M modes, the coefficients of the products `X_i(x) Y_j(y) Z_k(z)` of a separable basis, hence M
    features per voxel; linear maps of those are the predictions. As all of it is linear, the maps are applied to the coefficients
    before the expansion: the same numbers, M times cheaper.
    """

    def __init__(self, config: NuFMConfig, branch: VoxelBranch, modes: int, outputs: dict[str, int]):
        super().__init__()
        size = config.decoder_hidden_size
        self.patch, self.modes = branch.patch, modes
        self.norm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.basis = SeparableBasis(branch.patch)
        coefficients = math.prod(axis_functions(n) for n in branch.patch)
        self.coefficients = nn.Linear(size, modes * coefficients)  # (mode, k, i, j)
        self.outputs = nn.ModuleDict({name: nn.Linear(modes, n) for name, n in outputs.items()})

    def forward(self, vectors: Tensor, name: str, cell: Tensor) -> Tensor:
        """One of the outputs, of n values, at N voxels: vectors (P, size), cells int64 (N,) of `cells` -> (N, n).

        Only the layers along z that hold one of the cells are expanded.
        """
        head = self.outputs[name]
        x, y, z = self.basis.x, self.basis.y, self.basis.z
        n, depth, area = head.out_features, z.shape[0], x.shape[0] * y.shape[0]
        plane = torch.einsum("xi,yj->xyij", x, y).reshape(area, -1)
        # coefficients of the plane in each layer, for each output: (z, n, ij)
        weight = torch.einsum("zk,nm,mkc->znc", z, head.weight, self.coefficients.weight.view(self.modes, z.shape[1], -1))
        bias = torch.einsum("zk,nm,mkc->znc", z, head.weight, self.coefficients.bias.view(self.modes, z.shape[1], -1))
        layers = F.linear(self.norm(vectors), weight.reshape(-1, vectors.shape[1]), bias.flatten())

        layer = cell // area
        used = torch.zeros(len(vectors) * depth, dtype=torch.bool, device=cell.device)
        used[layer] = True
        layers = layers.view(len(vectors) * depth, n * plane.shape[1])[used]
        values = layers.view(-1, plane.shape[1]) @ plane.t()
        start = (used.long().cumsum(0) - 1)[layer] * (n * area) + cell % area
        index = start[:, None] + area * torch.arange(n, device=cell.device)
        return values.flatten().index_select(0, index.flatten()).view(-1, n) + head.bias

    def cells(self, table: Patches) -> Tensor:
        """Places of the voxels of a table among those of all its patches, int64 (N,): `((patch * z + z) * x + x) * y + y`."""
        area, depth = self.patch[0] * self.patch[1], self.patch[2]
        return (table.row * depth + table.offset % depth) * area + table.offset // depth


class NuFMDecoderBranch(nn.Module):
    """Queries for the patches of one voxel branch, and what is predicted at their voxels."""

    def __init__(self, config: NuFMConfig, branch: VoxelBranch, modes: int, label_classes: int):
        super().__init__()
        self.query = nn.Parameter(torch.empty(config.decoder_hidden_size))
        self.position = FrozenPosition(config.decoder_hidden_size, branch.window)
        self.window = window_embedding(config, branch, config.decoder_hidden_size)
        outputs = {"occupancy": 1, "charge": len(branch.channels)} | ({"labels": label_classes} if label_classes else {})
        self.voxel_head = NuFMVoxelHead(config, branch, modes, outputs)

    def forward(self, patches: Patches) -> Tensor:
        """(P, decoder_hidden_size)."""
        queries = self.query + self.position(patches.position)
        return queries if self.window is None else queries + self.window.weight[patches.window]


class NuFMDecoderSummary(nn.Module):
    """One query for a whole image or track branch, and its values."""

    def __init__(self, config: NuFMConfig, outputs: int):
        super().__init__()
        self.query = nn.Parameter(torch.empty(config.decoder_hidden_size))
        self.norm = nn.LayerNorm(config.decoder_hidden_size, eps=config.layer_norm_eps)
        self.output = nn.Linear(config.decoder_hidden_size, outputs)

    def forward(self, vectors: Tensor) -> Tensor:
        """(Q, decoder_hidden_size) -> (Q, outputs)."""
        return self.output(self.norm(vectors))


class NuFMDecoder(nn.Module):
    """Queries look at the latents; heads read the result. Also holds the log sigma of each loss."""

    def __init__(self, config: NuFMConfig):
        super().__init__()
        spec, size = config.spec, config.decoder_hidden_size
        labels = {label.name: len(label.classes) for label in spec.voxel_branches[0].labels} if config.relational else {}
        self.projection = nn.Linear(config.hidden_size, size)
        self.layers = nn.ModuleList(NuFMLayer(config, size, config.decoder_num_attention_heads, cross=True) for _ in range(config.decoder_depth))
        self.branches = nn.ModuleList(
            NuFMDecoderBranch(config, b, m, 0 if i else sum(labels.values()))
            for i, (b, m) in enumerate(zip(spec.voxel_branches, config.voxel_head_modes))
        )
        image, tracks = spec.image_branch, spec.track_branch
        self.image = NuFMDecoderSummary(config, image.size) if image else None
        self.tracks = NuFMDecoderSummary(config, 1 + len(tracks.model_features)) if tracks else None
        self.loss_names = [f"{kind}_{b.name}" for b in spec.voxel_branches for kind in ("occupancy", "charge")]
        self.loss_names += [b.name for b in (image, tracks) if b] + list(labels)
        self.summary = None
        if config.event_summary:
            numbers = len(summary_sources(spec))
            self.summary = nn.Sequential(nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps), nn.Linear(config.hidden_size, numbers))
            self.loss_names.append("summary")
        if len(set(self.loss_names)) < len(self.loss_names):
            raise ValueError(f"detector {spec.name!r}: branches and voxel labels give losses of the same name: {self.loss_names}")
        self.log_sigma = nn.Parameter(torch.empty(len(self.loss_names)))

    def forward(self, latents: Tensor, sequences: Sequences, queries: Tensor, event: Tensor) -> Tensor:
        """Queries (Q, decoder_hidden_size) of events int64 (Q,) look at the latents (C, hidden_size) of their event."""
        queried, context = Sequences(event, sequences.groups), self.projection(latents)
        for layer in self.layers:
            queries, _ = layer(queries, queried, context, sequences)
        return queries
