"""Labels of single voxels (ghost, hierarchy, category and the like): the relational half of pre-training as a task of its own."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.utils import ModelOutput

from .configuration_nufm import NuFMConfig
from .modeling_nufm import NuFMPreTrainedModel
from .objectives_nufm import label_loss, mean_by_event
from .pretraining_nufm import NuFMDecoder, SeparableBasis, cosine_basis


@dataclass
class NuFMVoxelOutput(ModelOutput):
    """Output of `NuFMForVoxelClassification`.

    Attributes:
        loss: scalar, sum of `losses`, when labels were given.
        losses: mean cross-entropy of each voxel label over the voxels of an event that have it, then over the events of the batch,
            detached, by name.
        logits: float (B, N, K), rows as the voxels went in, columns the classes of all labels of the detector's first voxel branch in
            order: one logit (sigmoid) of a binary label, one for each class (softmax) of another. NaN at padding, in the other branches,
            which have no labels, and where the branch is absent.
    """

    loss: Tensor | None = None
    losses: dict[str, Tensor] | None = None
    logits: Tensor | None = None


class NuFMLabelDecoder(NuFMDecoder):
    """The part of the pre-training decoder that voxel labels need, under the same names: a `mae-rel` checkpoint brings it all."""

    def __init__(self, config: NuFMConfig):
        super().__init__(config)
        self.branches = self.branches[:1]
        self.image = self.tracks = None
        for name in ("occupancy", "charge"):
            del self.branches[0].voxel_head.outputs[name]
        del self.log_sigma, self.loss_names


class NuFMForVoxelClassification(NuFMPreTrainedModel):
    """All labels that the detector declares for its first voxel branch, voxel by voxel.

    Raises:
        ValueError: the detector declares none.
    """

    def __init__(self, config: NuFMConfig):
        first = config.spec.voxel_branches[0]
        if not first.labels:
            raise ValueError(f"detector {config.spec.name!r} declares no labels for the voxels of {first.name!r}: there is nothing to classify")
        config = copy.deepcopy(config)
        config.relational = True  # also with the encoder of a `mae` checkpoint: this is what gives the decoder its labels
        super().__init__(config)
        self.decoder = NuFMLabelDecoder(config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, SeparableBasis):
            for factor in (module.x, module.y, module.z):
                init.copy_(factor, cosine_basis(*factor.shape))

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
        return_dict: bool | None = None,
    ) -> NuFMVoxelOutput | tuple:
        """Predict.

        Args:
            voxel_labels: float (B, N, K), columns as the logits': a binary label as a probability, another as the share of each class;
                -100 where unlabelled.

        The others are those of `NuFMModel.forward`.

        Raises:
            ValueError: inputs that do not fit the detector, or labels of another shape.
        """
        labels = self.config.spec.voxel_branches[0].labels
        shape = (*voxel_branch.shape, sum(len(label.classes) for label in labels))
        if voxel_labels is not None and voxel_labels.shape != shape:
            raise ValueError(f"voxel_labels must have the shape {shape} of the voxels and their classes; got {tuple(voxel_labels.shape)}")
        patches = self.patches(voxel_coordinates, voxel_features, voxel_branch, branch_mask)
        others = self.other_tokens(shape[0], image_features, track_features, track_mask, branch_mask)
        latents, sequences, _, _ = self.encoder(self.embed(patches, None, shape[0]), list(others.values()), shape[0])

        branch, table = self.decoder.branches[0], patches[0]
        vectors = self.decoder(latents, sequences, branch(table), table.event)
        predicted = branch.voxel_head(vectors, "labels", branch.voxel_head.cells(table))
        logits = predicted.new_full((shape[0] * shape[1], shape[2]), float("nan")).index_copy(0, table.voxel, predicted).view(shape)

        losses, column = {}, 0
        if voxel_labels is not None:
            truth = voxel_labels.flatten(0, 1)[table.voxel]
            for label in labels:
                classes = slice(column, column := column + len(label.classes))
                losses[label.name] = mean_by_event(*label_loss(predicted[:, classes], truth[:, classes]), table.event[table.row], shape[0])
        output = NuFMVoxelOutput(
            loss=torch.stack(list(losses.values())).sum() if losses else None,
            losses={name: value.detach() for name, value in losses.items()} or None,
            logits=logits,
        )
        return self._returned(output, return_dict)
