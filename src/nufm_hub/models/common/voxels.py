"""Labels of single voxels (ghost, hierarchy, category and the like), for any encoder that gives a vector at every voxel."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from nufm_hub.detectors import VoxelLabel

from .configuration import DetectorConfig
from .modeling import DetectorModel
from .objectives import label_loss, mean_by_event
from .outputs import VoxelOutput


class VoxelClassification(DetectorModel):
    """All labels that the detector declares for its first voxel branch, voxel by voxel. A family gives `voxel_logits`.

    Raises:
        ValueError: the detector declares none.
    """

    def __init__(self, config: DetectorConfig):
        first = config.spec.voxel_branches[0]
        if not first.labels:
            raise ValueError(f"detector {config.spec.name!r} declares no labels for the voxels of {first.name!r}: there is nothing to classify")
        super().__init__(copy.deepcopy(config))

    def voxel_logits(self, *args: Tensor, **inputs: Tensor) -> tuple[Tensor, Tensor, Tensor, tuple[int, int]]:
        """Predict n voxels of a batch.

        Returns:
            logits float (n, K); which of the B * N voxels (rows of the batch flattened) each is of, int64 (n,); their events, int64 (n,); and (B, N).
        """
        raise NotImplementedError(f"{type(self).__name__} does not say what it predicts")

    def forward(
        self, *args: Tensor, voxel_labels: Tensor | None = None, return_dict: bool | None = None, **inputs: Tensor
    ) -> VoxelOutput | tuple:
        """Predict.

        Args:
            voxel_labels: float (B, N, K), columns as the logits': a binary label as a probability, another as the share of each class;
                -100 where unlabelled.

        The others are the family's inputs.

        Raises:
            ValueError: inputs that do not fit the detector, or labels of another shape.
        """
        labels = self.config.spec.voxel_branches[0].labels
        predicted, voxel, event, (batch, length) = self.voxel_logits(*args, **inputs)
        shape = (batch, length, sum(len(label.classes) for label in labels))
        if voxel_labels is not None and voxel_labels.shape != shape:
            raise ValueError(f"voxel_labels must have the shape {shape} of the voxels and their classes; got {tuple(voxel_labels.shape)}")
        logits = predicted.new_full((batch * length, shape[2]), float("nan")).index_copy(0, voxel, predicted).view(shape)
        losses = {}
        if voxel_labels is not None:
            each = label_losses(predicted, voxel_labels.flatten(0, 1)[voxel], labels)
            losses = {name: mean_by_event(*scored, event, batch) for name, scored in each.items()}
        output = VoxelOutput(
            loss=torch.stack(list(losses.values())).sum() if losses else None,
            losses={name: value.detach() for name, value in losses.items()} or None,
            logits=logits,
        )
        return self._returned(output, return_dict)


def label_losses(predicted: Tensor, truth: Tensor, labels: Sequence[VoxelLabel]) -> dict[str, tuple[Tensor, Tensor]]:
    """`label_loss` of each label, by name, of logits (n, K) and truth (n, K) whose columns are the classes of all labels in order."""
    losses, column = {}, 0
    for label in labels:
        classes = slice(column, column := column + len(label.classes))
        losses[label.name] = label_loss(predicted[:, classes], truth[:, classes])
    return losses
