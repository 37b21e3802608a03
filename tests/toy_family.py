"""A family of models as a user would add one: voxels as a set of points, each through the same layers, and their mean.

`import toy_family` registers it; everything else in the package then knows it.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from nufm_hub.models import register_family
from nufm_hub.models.common import DetectorConfig, DetectorModel, EncoderOutput, EventProcessor, FlavourClassification, PreTrainingOutput

__all__ = ["ToyConfig", "ToyForFlavourClassification", "ToyForPreTraining", "ToyModel", "ToyProcessor"]


class ToyConfig(DetectorConfig):
    model_type = "toy"
    presets: ClassVar[dict[str, dict[str, Any]]] = {"nano": {"hidden_size": 16, "depth": 2}}
    depth: int = 2


class ToyProcessor(EventProcessor):
    model_input_names = ("points", "points_mask")

    def inputs(self, events):
        branch = self.spec.voxel_branches[0]
        points = torch.zeros(len(events), self.most_voxels(events), 3 + len(branch.channels))
        mask = torch.zeros(points.shape[:2], dtype=torch.bool)
        for i, event in enumerate(events):
            if (voxels := event.voxels.get(branch.name)) is not None and len(voxels):
                places = torch.tensor(voxels.coordinates) / torch.tensor(branch.shape)
                points[i, : len(voxels)] = torch.cat([places, torch.as_tensor(self.standardise("voxels", branch.name, voxels.values))], dim=1)
                mask[i, : len(voxels)] = True
        return {"points": points, "points_mask": mask}


class ToyPreTrainedModel(DetectorModel):
    config_class, base_model_prefix, main_input_name = ToyConfig, "toy", "points"

    def __init__(self, config: ToyConfig):
        super().__init__(config)
        size = config.hidden_size
        self.embeddings = nn.Linear(3 + len(config.spec.voxel_branches[0].channels), size)
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList(nn.Linear(size, size) for _ in range(config.depth)), "norm": nn.LayerNorm(size)})

    def encode(self, points: Tensor, points_mask: Tensor, output_hidden_states=None, output_attentions=None) -> EncoderOutput:
        hidden = self.embeddings(points.to(self.embeddings.weight.dtype))
        for layer in self.encoder["layers"]:
            hidden = hidden + nn.functional.gelu(layer(hidden))
        hidden = self.encoder["norm"](hidden) * points_mask[..., None]
        return EncoderOutput(hidden, points_mask, hidden.sum(dim=1) / points_mask.sum(dim=1, keepdim=True).clamp(min=1))


class ToyModel(ToyPreTrainedModel):
    def __init__(self, config: ToyConfig):
        super().__init__(config)
        self.post_init()

    def forward(self, *args: Tensor, return_dict=None, **inputs: Tensor):
        return self._returned(self.encode(*args, **inputs), return_dict)


class ToyForFlavourClassification(FlavourClassification, ToyPreTrainedModel):
    """`FlavourClassification` on the toy encoder."""


class ToyForPreTraining(ToyPreTrainedModel):
    """Hides about half of the points, and predicts their mean from the others."""

    def __init__(self, config: ToyConfig):
        super().__init__(config)
        self.decoder = nn.Linear(config.hidden_size, self.embeddings.in_features)
        self.post_init()

    def forward(self, points: Tensor, points_mask: Tensor, voxel_labels=None, generator=None, return_dict=None):
        seen = points_mask & (torch.rand(points_mask.shape, generator=generator) < 0.5)
        hidden = points_mask & ~seen
        encoded = self.encode(points, seen)
        target = (points * hidden[..., None]).sum(dim=1) / hidden.sum(dim=1, keepdim=True).clamp(min=1)
        loss = (self.decoder(encoded.pooler_output) - target).square().mean()
        output = PreTrainingOutput(loss=loss, losses={"mean": loss.detach()}, latents=encoded.last_hidden_state, latent_mask=seen)
        return self._returned(output, return_dict)


register_family("toy", __name__, "Toy")
