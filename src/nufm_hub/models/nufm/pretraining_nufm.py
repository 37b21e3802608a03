"""Self-supervised pre-training: hide patches and predict them (pass A), and learn what simulation says of the visible ones (pass B).

After arXiv:2604.07037 and the masked autoencoder, arXiv:2111.06377. Pass B uses simulation truth; a model trained with it
(`relational=True`) is not purely self-supervised.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init
from transformers.utils import ModelOutput

from nufm_hub.detectors import VoxelBranch

from .configuration_nufm import NuFMConfig
from .encoder_nufm import window_embedding
from .layers_nufm import FrozenPosition, NuFMLayer, Sequences
from .modeling_nufm import NuFMPreTrainedModel
from .objectives_nufm import huber_loss, label_loss, mean, near_hits, occupancy_loss, uniform, visible_patches
from .patch_embedding import Patches


@dataclass
class NuFMForPreTrainingOutput(ModelOutput):
    """Output of `NuFMForPreTraining`.

    Attributes:
        loss: scalar, the losses weighted by their learnt uncertainties.
        losses: each loss before weighting, detached, by name: `occupancy_<branch>`, `charge_<branch>`, the image's and the track
            branch's name, and, in a step that runs the relational pass, the names of the voxel labels. 0 where a batch had nothing to score.
            Each is a mean over what the batch hides or labels, so parts of a batch average to the whole in expectation, not exactly.
        latents, latent_mask: of pass A, see `NuFMModelOutput`.
    """

    loss: Tensor | None = None
    losses: dict[str, Tensor] | None = None
    latents: Tensor | None = None
    latent_mask: Tensor | None = None


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
        if len(set(self.loss_names)) < len(self.loss_names):
            raise ValueError(f"detector {spec.name!r}: branches and voxel labels give losses of the same name: {self.loss_names}")
        self.log_sigma = nn.Parameter(torch.empty(len(self.loss_names)))

    def forward(self, latents: Tensor, sequences: Sequences, queries: Tensor, event: Tensor) -> Tensor:
        """Queries (Q, decoder_hidden_size) of events int64 (Q,) look at the latents (C, hidden_size) of their event."""
        queried, context = Sequences(event, sequences.groups), self.projection(latents)
        for layer in self.layers:
            queries, _ = layer(queries, queried, context, sequences)
        return queries


class NuFMForPreTraining(NuFMPreTrainedModel):
    """Masked pre-training (`config.relational` False: `mae`), with the relational pass added (True: `mae-rel`)."""

    def __init__(self, config: NuFMConfig):
        super().__init__(config)
        self.decoder = NuFMDecoder(config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, SeparableBasis):
            for factor in (module.x, module.y, module.z):
                init.copy_(factor, cosine_basis(*factor.shape))
        elif isinstance(module, NuFMDecoder):
            init.zeros_(module.log_sigma)

    def forward(
        self,
        voxel_coordinates: Tensor,
        voxel_features: Tensor,
        voxel_branch: Tensor,
        image_features: Tensor | None = None,
        track_features: Tensor | None = None,
        track_mask: Tensor | None = None,
        branch_mask: Tensor | None = None,
        voxel_labels: Tensor | None = None,
        generator: torch.Generator | None = None,
        return_dict: bool | None = None,
    ) -> NuFMForPreTrainingOutput | tuple:
        """One step of pre-training.

        Args:
            voxel_labels: float (B, N, K), the labels of the first voxel branch side by side, a binary one as a probability, a soft one
                as the share of each class; -100 where unlabelled. Needed when `config.relational`.
            generator: source of all masks and of the choice to run the relational pass; with one of the same seed the result is the
                same. None: the default generator.

        The others are those of `NuFMModel.forward`. In training mode the relational pass runs with probability
        `config.relational_probability`; in evaluation mode it always runs.

        Raises:
            ValueError: inputs that do not fit the detector; `voxel_labels` missing or of another shape.
        """
        config, batch_size = self.config, voxel_branch.shape[0]
        if config.relational:
            self._check_labels(voxel_labels, voxel_branch)
        patches = self.patches(voxel_coordinates, voxel_features, voxel_branch, branch_mask)
        others = self.other_tokens(batch_size, image_features, track_features, track_mask, branch_mask)

        visible, kept, latents, sequences = self._masked_encoding(patches, others, batch_size, config.mask_ratio, generator)
        losses = self._masked_losses(patches, visible, others, kept, latents, sequences, image_features, track_features, track_mask)
        idle: dict[str, Tensor] = {}
        if config.relational:
            if not self.training or float(uniform(1, torch.device("cpu"), generator)) < config.relational_probability:
                visible, _, *encoded = self._masked_encoding(patches, others, batch_size, config.relational_mask_ratio, generator)
                losses |= self._relational_losses(patches[0].select(visible[0]), *encoded, voxel_labels.flatten(0, 1))
            else:  # the heads take part in every step, with gradients of zero, so that distributed training needs no special case
                nothing = patches[0].select(torch.zeros_like(visible[0]))
                idle = self._relational_losses(nothing, latents, sequences, voxel_labels.flatten(0, 1))

        output = NuFMForPreTrainingOutput(
            loss=self._weighted(losses) + sum(idle.values(), start=latents.new_zeros(())),
            losses={name: value.detach() for name, value in losses.items()},
            latents=sequences.pad(latents),
            latent_mask=sequences.mask,
        )
        return self._returned(output, return_dict)

    def _check_labels(self, voxel_labels: Tensor | None, voxel_branch: Tensor) -> None:
        labels = {label.name: len(label.classes) for label in self.config.spec.voxel_branches[0].labels}
        wanted = (*voxel_branch.shape, sum(labels.values()))
        if voxel_labels is None or voxel_labels.shape != wanted:
            got = None if voxel_labels is None else tuple(voxel_labels.shape)
            raise ValueError(f"relational pre-training needs voxel_labels {wanted} for {labels}, got {got}; without truth, relational=False")

    def _masked_encoding(
        self, patches: list[Patches], others: dict[str, tuple[Tensor, Tensor]], batch_size: int, ratio: float, generator: torch.Generator | None
    ) -> tuple[list[Tensor], dict[str, Tensor], Tensor, Sequences]:
        """Hide patches and drop the other tokens; gives what is visible, what is kept, and the latents."""
        visible = []
        for table, branch in zip(patches, self.config.spec.voxel_branches):
            window = table.event * branch.num_windows + table.window
            visible.append(visible_patches(window, batch_size * branch.num_windows, ratio, generator))
        kept = {name: uniform(len(event), event.device, generator) >= ratio / 2 for name, (_, event) in others.items()}
        seen = [(values[kept[name]], event[kept[name]]) for name, (values, event) in others.items()]
        latents, sequences, _, _ = self.encoder(self.embed(patches, visible, batch_size), seen, batch_size)
        return visible, kept, latents, sequences

    def _masked_losses(
        self, patches: list[Patches], visible: list[Tensor], others: dict[str, tuple[Tensor, Tensor]], kept: dict[str, Tensor],
        latents: Tensor, sequences: Sequences, image: Tensor | None, tracks: Tensor | None, track_mask: Tensor | None,
    ) -> dict[str, Tensor]:  # fmt: skip
        """Occupancy and charge of the hidden patches; image values and track summary where their token was dropped."""
        decoder, spec = self.decoder, self.config.spec
        hidden = [table.select(~seen) for table, seen in zip(patches, visible)]
        dropped = {name: event[~kept[name]] for name, (_, event) in others.items()}
        queries = [branch(table) for branch, table in zip(decoder.branches, hidden)]
        queries += [getattr(decoder, name).query.expand(len(event), -1) for name, event in dropped.items()]
        events = [table.event for table in hidden] + list(dropped.values())
        decoded = decoder(latents, sequences, torch.cat(queries), torch.cat(events)).split([len(e) for e in events])

        losses = {}
        for branch, table, module, vectors in zip(spec.voxel_branches, hidden, decoder.branches, decoded):
            losses[f"occupancy_{branch.name}"], losses[f"charge_{branch.name}"] = self._voxel_losses(module.voxel_head, table, vectors)
        for (name, event), vectors in zip(dropped.items(), decoded[len(hidden) :]):
            values = getattr(decoder, name)(vectors)
            if name == "image":
                losses[spec.image_branch.name] = huber_loss(values, image[event])
            else:
                losses[spec.track_branch.name] = track_loss(values, tracks[event], track_mask[event].bool())
        return losses

    def _voxel_losses(self, head: NuFMVoxelHead, table: Patches, vectors: Tensor) -> tuple[Tensor, Tensor]:
        config, (x, y, z) = self.config, head.patch
        cell = head.cells(table)
        hits = torch.zeros(len(table) * x * y * z, dtype=torch.bool, device=cell.device)
        hits[cell] = True
        scored = near_hits(hits.view(-1, z, x, y), config.occupancy_distance).flatten().nonzero().squeeze(1)
        logits = head(vectors, "occupancy", scored).squeeze(1)
        occupancy = occupancy_loss(logits, hits[scored], config.focal_gamma, config.occupancy_smoothing, config.occupancy_empty_weight)
        return occupancy, huber_loss(head(vectors, "charge", cell), table.features)

    def _relational_losses(self, table: Patches, latents: Tensor, sequences: Sequences, labels: Tensor) -> dict[str, Tensor]:
        """Truth labels at the hits of the (visible) patches of the first voxel branch."""
        branch = self.decoder.branches[0]
        vectors = self.decoder(latents, sequences, branch(table), table.event)
        cell = branch.voxel_head.cells(table)
        predicted, truth, losses, column = branch.voxel_head(vectors, "labels", cell), labels[table.voxel], {}, 0
        for label in self.config.spec.voxel_branches[0].labels:
            classes = slice(column, column := column + len(label.classes))
            loss, labelled = label_loss(predicted[:, classes], truth[:, classes])
            losses[label.name] = mean(loss, labelled.to(loss.dtype))
        return losses

    def _weighted(self, losses: dict[str, Tensor]) -> Tensor:
        """Sum of `exp(-2 s) loss + s` (arXiv:1705.07115), s the bounded log sigma of each loss."""
        bound, names = self.config.max_log_sigma, self.decoder.loss_names
        sigma = bound * torch.tanh(self.decoder.log_sigma / bound)
        values = torch.stack(list(losses.values()))
        sigma = sigma[[names.index(name) for name in losses]]
        return torch.where(values != 0, torch.exp(-2 * sigma) * values + sigma, values).sum()


def track_loss(predicted: Tensor, tracks: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy of "has a track", plus Huber loss of the tracks' mean features where it has.

    Args:
        predicted: (Q, 1 + F).
        tracks: (Q, T, F) with mask bool (Q, T).
    """
    some = mask.any(dim=1)
    target = tracks.masked_fill(~mask[..., None], 0).sum(dim=1) / mask.sum(dim=1, keepdim=True).clamp(min=1)
    presence = mean(F.binary_cross_entropy_with_logits(predicted[:, 0], some.to(predicted.dtype), reduction="none"))
    features = F.huber_loss(predicted[:, 1:], target.to(predicted.dtype), reduction="none").mean(dim=1)
    return presence + mean(features, some.to(predicted.dtype))
