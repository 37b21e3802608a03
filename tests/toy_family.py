"""A family of models as a user would add one: a few sparse convolutions, and the mean over voxels.

`import toy_family` registers it; everything else in the package then knows it.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from nufm_hub.models import register_family
from nufm_hub.models.common import DetectorModel, EncoderOutput, EventProcessor, FlavourClassification, PreTrainingOutput, SparseConfig
from nufm_hub.sparse import SparseLevel, SubmanifoldConv3d

__all__ = ["ToyConfig", "ToyForFlavourClassification", "ToyForPreTraining", "ToyModel", "ToyProcessor"]


class ToyConfig(SparseConfig):
    model_type = "toy"
    presets: ClassVar[dict[str, dict[str, Any]]] = {"nano": {"hidden_size": 16, "depth": 2}}
    depth: int = 2


class ToyProcessor(EventProcessor):
    model_input_names = ("places", "values", "is_voxel")

    def inputs(self, events):
        branch, size = self.spec.voxel_branches[0], (len(events), self.most_voxels(events))
        data = {
            "places": torch.zeros(*size, 3, dtype=torch.long), "values": torch.zeros(*size, len(branch.channels)),
            "is_voxel": torch.zeros(size, dtype=torch.bool),
        }  # fmt: skip
        for i, event in enumerate(events):
            if (voxels := event.voxels.get(branch.name)) is not None and (n := len(voxels)):
                data["places"][i, :n] = torch.tensor(voxels.coordinates)
                data["values"][i, :n] = torch.tensor(self.standardise("voxels", branch.name, voxels.values))
                data["is_voxel"][i, :n] = True
        return data


class ToyPreTrainedModel(DetectorModel):
    config_class, base_model_prefix, main_input_name = ToyConfig, "toy", "values"

    def __init__(self, config: ToyConfig):
        super().__init__(config)
        size, self.grid = config.hidden_size, config.spec.voxel_branches[0].shape
        self.embeddings = nn.Linear(3 + len(config.spec.voxel_branches[0].channels), size)
        layers = nn.ModuleList(SubmanifoldConv3d(size, size, backend=config.sparse_backend) for _ in range(config.depth))
        self.encoder = nn.ModuleDict({"layers": layers, "norm": nn.LayerNorm(size)})

    def encode(self, places: Tensor, values: Tensor, is_voxel: Tensor, output_hidden_states=None, output_attentions=None) -> EncoderOutput:
        level = SparseLevel(places[is_voxel], is_voxel.nonzero()[:, 0], len(places))
        inputs = torch.cat([places / places.new_tensor(self.grid), values], dim=2)[is_voxel]
        hidden = level.merge(self.embeddings(inputs.to(self.embeddings.weight.dtype)), "mean")
        for layer in self.encoder["layers"]:
            hidden = hidden + nn.functional.gelu(layer(hidden, level))
        hidden = self.encoder["norm"](hidden)
        pooled = hidden.new_zeros(len(places), hidden.shape[1]).index_add(0, level.event, hidden) / level.counts.clamp(min=1)[:, None]
        at_voxels = hidden.new_zeros(*is_voxel.shape, hidden.shape[1]).masked_scatter(is_voxel[..., None], level.spread(hidden))
        return EncoderOutput(at_voxels, is_voxel, pooled)


class ToyModel(ToyPreTrainedModel):
    def __init__(self, config: ToyConfig):
        super().__init__(config)
        self.post_init()

    def forward(self, *args: Tensor, return_dict=None, **inputs: Tensor):
        return self._returned(self.encode(*args, **inputs), return_dict)


class ToyForFlavourClassification(FlavourClassification, ToyPreTrainedModel):
    """`FlavourClassification` on the toy encoder."""


class ToyForPreTraining(ToyPreTrainedModel):
    """Hides about half of the voxels, and predicts their mean value from the others."""

    def __init__(self, config: ToyConfig):
        super().__init__(config)
        self.decoder = nn.Linear(config.hidden_size, self.embeddings.in_features - 3)
        self.post_init()

    def forward(self, places: Tensor, values: Tensor, is_voxel: Tensor, voxel_labels=None, generator=None, return_dict=None):
        seen = is_voxel & (torch.rand(is_voxel.shape, generator=generator) < 0.5)
        hidden = is_voxel & ~seen
        encoded = self.encode(places, values, seen)
        target = (values * hidden[..., None]).sum(dim=1) / hidden.sum(dim=1, keepdim=True).clamp(min=1)
        loss = (self.decoder(encoded.pooler_output) - target).square().mean()
        output = PreTrainingOutput(loss=loss, losses={"mean": loss.detach()}, latents=encoded.last_hidden_state, latent_mask=seen)
        return self._returned(output, return_dict)


register_family("toy", __name__, "Toy")
