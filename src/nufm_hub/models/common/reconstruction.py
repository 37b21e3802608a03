"""Whole events at once: flavour, charm, momenta and vertex on one encoder of any family; and momenta alone."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .configuration import DetectorConfig
from .kinematics import MOMENTA, MOMENTUM_LOSSES, TaskWeights, check_momentum_scales, from_cylindrical
from .modeling import DetectorModel
from .objectives import event_mean, vertex_loss
from .outputs import ReconstructionOutput

CLASSIFIED = ("flavour", "charm")
# Relative losses of momenta are sums of several terms, around 4: with the weight of the others they would have most of the gradient, and at
# 1,000 labels the mean vertex error comes out half as large again. These are about where the weights would settle.
_START = {"relative": 0.125, "logarithmic": 0.5}


class MomentumRegression(DetectorModel):
    """Visible, jet and derived lepton momentum: encoder, event vector, and one head for each quantity.

    `config.momentum_scales`, of the processor that makes the labels, is needed.
    """

    def __init__(self, config: DetectorConfig):
        config = copy.deepcopy(config)
        config.momentum_scales = check_momentum_scales(config.momentum_scales)
        super().__init__(config)
        outputs = self._outputs(config)
        quantities = nn.ModuleDict({name: self._make_head(config, name, n) for name, n in outputs.items()})
        momenta = dict.fromkeys((f"{name}_momentum" for name in MOMENTA), _START[config.momentum_loss])
        weights = TaskWeights(dict.fromkeys(outputs, 1.0) | momenta)
        self.head = nn.ModuleDict({"quantities": quantities, "task_weight": weights})
        if (readout := self._make_readout(config, len(outputs))) is not None:
            self.head["readout"] = readout
        self.post_init()

    def _outputs(self, config: DetectorConfig) -> dict[str, int]:
        return {"visible_momentum": 3, "jet_momentum": 3}

    def forward(
        self, *args: Tensor, labels: Mapping[str, Tensor] | None = None, return_dict: bool | None = None, **inputs: Tensor
    ) -> ReconstructionOutput | tuple:
        """Predict.

        Args:
            labels: as the processor makes them with `labels="reconstruction"`; quantities that are missing, and events with -100 (classes),
                NaN (others) or, for the lepton, `is_cc` False, do not enter the loss: `flavour`, `charm` int64 (B,);
                `visible_momentum`, `jet_momentum` float (B, 3), GeV; `is_cc` bool (B,); `vertex` float (B, 3), normalised.

        The others are the family's inputs. The loss is the sum of the losses with learnable weights (see `TaskWeights`) in
        training, and with the weights they started from in evaluation, so that epochs compare.

        Raises:
            ValueError: inputs that do not fit the detector, or labels of the wrong shape.
        """
        encoded = self.encode_for_heads(*args, output_hidden_states=False, output_attentions=False, **inputs)
        heads = self.head["quantities"]
        vectors = self.head["readout"](encoded).unbind(1) if "readout" in self.head else [None] * len(heads)
        raw = {name: head(encoded, vector) for (name, head), vector in zip(heads.items(), vectors)}
        scales = self.config.momentum_scales
        visible, jet = (from_cylindrical(raw[f"{name}_momentum"], scales[name]) for name in ("visible", "jet"))
        values = {f"{name}_logits": raw[name] for name in CLASSIFIED if name in raw}
        values |= {"visible_momentum": visible, "jet_momentum": jet, "lepton_momentum": visible - jet}
        values |= {"missing_pt": torch.linalg.vector_norm(visible[:, :2], dim=1)} | ({"vertex": raw["vertex"]} if "vertex" in raw else {})
        loss = losses = None
        if labels is not None:
            scored = self._scored(values, labels)
            losses = {name: event_mean(*each) for name, each in scored.items()}
            shares = {name: each.to(losses[name].dtype).mean() for name, (_, each) in scored.items()}
            weights = self.head["task_weight"]
            loss = weights(losses, shares) if self.training else sum(weights.start[name] * value for name, value in losses.items())
            losses = {name: value.detach() for name, value in losses.items()}
        return self._returned(ReconstructionOutput(loss=loss, losses=losses, **values), return_dict)

    def _scored(self, values: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        """The loss of each event, (B,), and whether it counts, bool (B,), by name of the quantity."""
        scored, like = {}, values["visible_momentum"]

        def truth(name: str, shape: tuple[int, ...], unknown: float) -> Tensor:
            given = labels.get(name, like.new_full((), unknown).expand(len(like), *shape))
            if given.shape != (len(like), *shape):
                raise ValueError(f"labels[{name!r}] must have the shape {(len(like), *shape)}; got {tuple(given.shape)}")
            return given

        for name in CLASSIFIED:
            if f"{name}_logits" in values:
                classes = truth(name, (), -100).long()
                each = F.cross_entropy(
                    values[f"{name}_logits"], classes, reduction="none", ignore_index=-100, label_smoothing=self.config.label_smoothing
                )
                scored[name] = each, classes != -100
        momenta = {name: truth(f"{name}_momentum", (3,), float("nan")) for name in ("visible", "jet")}
        momenta["lepton"] = momenta["visible"] - momenta["jet"]
        is_cc = truth("is_cc", (), 0).bool()
        for name in MOMENTA:
            key, known = f"{name}_momentum", is_cc if name == "lepton" else None
            scored[key] = MOMENTUM_LOSSES[self.config.momentum_loss](values[key], momenta[name], self.config.momentum_scales[name], known)
        if "vertex" in values:
            vertex = truth("vertex", (3,), float("nan")).to(like.dtype)
            scored["vertex"] = vertex_loss(values["vertex"], vertex, self.config.vertex_focus)
        return scored


class EventReconstruction(MomentumRegression):
    """Flavour and charm (where the detector declares them), momenta, missing transverse momentum and vertex, jointly."""

    def _outputs(self, config: DetectorConfig) -> dict[str, int]:
        classes = {name: len(config.spec.event_labels[name]) for name in CLASSIFIED if name in config.spec.event_labels}
        return {**classes, **super()._outputs(config), "vertex": 3}
