"""Heads on the vector of an event, for the encoder of any family.

class PandaForFlavourClassification(FlavourClassification, PandaPreTrainedModel): ...
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor

from .configuration import DetectorConfig
from .modeling import DetectorModel
from .objectives import event_mean, vertex_loss
from .outputs import HeadOutput


class TaskModel(DetectorModel):
    """Encoder, event vector, one head."""

    def __init__(self, config: DetectorConfig, quantity: str, outputs: int):
        super().__init__(config)
        self.head = self._make_head(config, quantity, outputs, self._make_readout(config, 1))
        self.post_init()

    def task_loss(self, logits: Tensor, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """The loss of predictions, float (B, outputs), for labels as the class says; `num_items_in_batch` as `Trainer` counts them."""
        raise NotImplementedError(f"{type(self).__name__} has no loss")

    def forward(
        self,
        *args: Tensor,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **inputs: Tensor,
    ) -> HeadOutput | tuple:
        """Predict; `labels` as the class says, `num_items_in_batch` as in `task_loss`, `inputs` as the family's processor makes them."""
        encoded = self.encode_for_heads(*args, output_hidden_states=output_hidden_states, output_attentions=output_attentions, **inputs)
        logits = self.head(encoded)
        loss = None if labels is None else self.task_loss(logits, labels, num_items_in_batch)
        return self._returned(HeadOutput(loss=loss, logits=logits, hidden_states=encoded.hidden_states, attentions=encoded.attentions), return_dict)


class Classification(TaskModel):
    """A head of classes: those of an event label of the detector, or as many as `config.num_labels` says."""

    event_label = ""
    accepts_loss_kwargs = True  # num_items_in_batch, which `Trainer` counts

    def __init__(self, config: DetectorConfig):
        config = copy.deepcopy(config)
        classes = config.spec.event_labels.get(self.event_label)
        unnamed = all(name == f"LABEL_{i}" for i, name in config.id2label.items())
        if classes and unnamed and config.num_labels in (2, len(classes)):  # 2 is the library's "not said"
            config.id2label = dict(enumerate(classes))
            config.label2id = {name: i for i, name in enumerate(classes)}
        config.problem_type = "single_label_classification"
        super().__init__(config, self.event_label, config.num_labels)

    def task_loss(self, logits: Tensor, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """Mean cross-entropy over the labels that are not -100.

        Args:
            num_items_in_batch: how many those are in the whole of a batch of which this is a part. None: in this batch.

        Raises:
            ValueError: labels that are no classes (checked on the CPU only: the check would stall a GPU).
        """
        if labels.shape != logits.shape[:1] or labels.is_floating_point():
            raise ValueError(f"labels must be class indices of shape ({logits.shape[0]},); got {labels.dtype} {tuple(labels.shape)}")
        if labels.device.type == "cpu":
            wrong = labels[((labels < 0) | (labels >= logits.shape[1])) & (labels != -100)]
            if wrong.numel():
                raise ValueError(f"label {int(wrong[0])} is none of the {logits.shape[1]} classes {list(self.config.id2label.values())}")
        total = F.cross_entropy(logits, labels, reduction="sum", ignore_index=-100, label_smoothing=self.config.label_smoothing)
        items = (labels != -100).sum() if num_items_in_batch is None else torch.as_tensor(num_items_in_batch, device=total.device)
        return total / items.clamp(min=1)


class FlavourClassification(Classification):
    """Neutrino flavour and interaction. `labels`: int64 (B,), index in the detector's `flavour` classes, -100 where unknown."""

    event_label = "flavour"


class CharmClassification(Classification):
    """Charm and its decay. `labels`: int64 (B,), index in the detector's `charm` classes, -100 where unknown."""

    event_label = "charm"


class ParticleID(Classification):
    """Kind of a single particle. `labels`: int64 (B,), index in the detector's `particle` classes (else `num_labels`), -100: unknown."""

    event_label = "particle"


class VertexRegression(TaskModel):
    """Primary vertex. `labels`: float (B, 3), normalised as the processor does, NaN where unknown; the loss is the mean distance."""

    def __init__(self, config: DetectorConfig):
        config = copy.deepcopy(config)
        config.id2label = {0: "x", 1: "y", 2: "z"}
        config.label2id = {"x": 0, "y": 1, "z": 2}
        config.problem_type = "regression"
        super().__init__(config, "vertex", 3)

    def task_loss(self, logits: Tensor, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """Distance (see `vertex_loss`), summed over the events whose vertex is known, over the number of all events."""
        if labels.shape != logits.shape:
            raise ValueError(f"labels must be vertices of shape {tuple(logits.shape)}; got {tuple(labels.shape)}")
        return event_mean(*vertex_loss(logits, labels, self.config.vertex_focus))
