"""Self-supervised pre-training: hide patches and predict them (pass A), and learn what simulation says of the visible ones (pass B).

After arXiv:2604.07037 and the masked autoencoder, arXiv:2111.06377. Pass B uses simulation truth; a model trained with it
(`relational=True`) is not purely self-supervised.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nufm_hub.models.common.objectives import huber_loss, mean, near_hits, occupancy_loss, uniform, visible_patches
from nufm_hub.models.common.outputs import PreTrainingOutput
from nufm_hub.models.common.voxels import label_losses

from .configuration_nufm import NuFMConfig
from .decoder_nufm import NuFMDecoder, NuFMVoxelHead
from .layers_nufm import Sequences
from .modeling_nufm import NuFMInputs, NuFMPreTrainedModel
from .patch_embedding import Patches
from .readout_nufm import mean_of_rows


class NuFMForPreTraining(NuFMPreTrainedModel):
    """Masked pre-training (`config.relational` False: `mae`), with the relational pass added (True: `mae-rel`)."""

    def __init__(self, config: NuFMConfig):
        super().__init__(config)
        self.decoder = NuFMDecoder(config)
        self.post_init()

    def forward(
        self,
        *args: Tensor,
        voxel_labels: Tensor | None = None,
        generator: torch.Generator | None = None,
        return_dict: bool | None = None,
        **inputs: Tensor,
    ) -> PreTrainingOutput | tuple:
        """One step of pre-training.

        Args:
            args, inputs: see `NuFMInputs`.
            voxel_labels: float (B, N, K), the labels of the first voxel branch side by side, a binary one as a probability, a soft one
                as the share of each class; -100 where unlabelled. Needed when `config.relational`.
            generator: source of all masks and of the choice to run the relational pass; with one of the same seed the result is the
                same. None: the default generator.

        In training mode the relational pass runs with probability `config.relational_probability`; in evaluation mode it always runs.
        The losses are `occupancy_<branch>`, `charge_<branch>`, the image's and the track branch's name, with an `event_summary` `summary`, the
        numbers of the whole event as the mean of the latents of what is visible tells them, and, in a step that runs the relational pass, the
        names of the voxel labels, weighted by their learnt uncertainties.

        Raises:
            ValueError: inputs that do not fit the detector; `voxel_labels` missing or of another shape.
        """
        given, config = NuFMInputs(*args, **inputs), self.config
        batch_size = given.shape[0]
        if config.relational:
            self._check_labels(voxel_labels, given)
        patches, others = self.patches(given), self.other_tokens(given)

        visible, kept, latents, sequences = self._masked_encoding(patches, others, batch_size, config.mask_ratio, generator)
        losses = self._masked_losses(given, patches, visible, others, kept, latents, sequences)
        if self.decoder.summary is not None:
            losses["summary"] = huber_loss(self.decoder.summary(mean_of_rows(latents, sequences)), self._summary(given))
        idle: dict[str, Tensor] = {}
        if config.relational:
            if not self.training or float(uniform(1, torch.device("cpu"), generator)) < config.relational_probability:
                visible, _, *encoded = self._masked_encoding(patches, others, batch_size, config.relational_mask_ratio, generator)
                losses |= self._relational_losses(patches[0].select(visible[0]), *encoded, voxel_labels.flatten(0, 1))
            else:  # the heads take part in every step, with gradients of zero, so that distributed training needs no special case
                nothing = patches[0].select(torch.zeros_like(visible[0]))
                idle = self._relational_losses(nothing, latents, sequences, voxel_labels.flatten(0, 1))

        output = PreTrainingOutput(
            loss=self._weighted(losses) + sum(idle.values(), start=latents.new_zeros(())),
            losses={name: value.detach() for name, value in losses.items()},
            latents=sequences.pad(latents),
            latent_mask=sequences.mask,
        )
        return self._returned(output, return_dict)

    def _check_labels(self, voxel_labels: Tensor | None, given: NuFMInputs) -> None:
        labels = {label.name: len(label.classes) for label in self.config.spec.voxel_branches[0].labels}
        wanted = (*given.shape, sum(labels.values()))
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
        encoded = self.encoder(self.embed(patches, visible, batch_size), seen, batch_size)
        return visible, kept, encoded.latents, encoded.sequences

    def _masked_losses(
        self, given: NuFMInputs, patches: list[Patches], visible: list[Tensor], others: dict[str, tuple[Tensor, Tensor]],
        kept: dict[str, Tensor], latents: Tensor, sequences: Sequences,
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
                losses[spec.image_branch.name] = huber_loss(values, given.image_features[event])
            else:
                losses[spec.track_branch.name] = track_loss(values, given.track_features[event], given.track_mask[event].bool())
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
        predicted, truth = branch.voxel_head(vectors, "labels", cell), labels[table.voxel]
        losses = label_losses(predicted, truth, self.config.spec.voxel_branches[0].labels)
        return {name: mean(loss, labelled.to(loss.dtype)) for name, (loss, labelled) in losses.items()}

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
