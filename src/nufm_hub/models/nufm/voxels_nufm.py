"""Labels of single voxels (ghost, hierarchy, category and the like): the relational half of pre-training as a task of its own."""

from __future__ import annotations

import copy

from torch import Tensor

from nufm_hub.models.common.voxels import VoxelClassification

from .configuration_nufm import NuFMConfig
from .decoder_nufm import NuFMDecoder
from .modeling_nufm import NuFMInputs, NuFMPreTrainedModel


class NuFMLabelDecoder(NuFMDecoder):
    """The part of the pre-training decoder that voxel labels need, under the same names: a `mae-rel` checkpoint brings it all."""

    def __init__(self, config: NuFMConfig):
        super().__init__(config)
        self.branches = self.branches[:1]
        self.image = self.tracks = self.summary = None
        for name in ("occupancy", "charge"):
            del self.branches[0].voxel_head.outputs[name]
        del self.log_sigma, self.loss_names


class NuFMForVoxelClassification(VoxelClassification, NuFMPreTrainedModel):
    """`VoxelClassification` on the NuFM encoder and the decoder of its pre-training."""

    def __init__(self, config: NuFMConfig):
        config = copy.deepcopy(config)
        config.relational = True  # also with the encoder of a `mae` checkpoint: this is what gives the decoder its labels
        super().__init__(config)
        self.decoder = NuFMLabelDecoder(config)
        self.post_init()

    def voxel_logits(self, *args: Tensor, **inputs: Tensor) -> tuple[Tensor, Tensor, Tensor, tuple[int, int]]:
        """See `NuFMInputs` and `VoxelClassification.voxel_logits`."""
        given = NuFMInputs(*args, **inputs)
        patches, others, batch_size = self.patches(given), self.other_tokens(given), given.shape[0]
        encoded = self.encoder(self.embed(patches, None, batch_size), list(others.values()), batch_size)
        branch, table = self.decoder.branches[0], patches[0]
        vectors = self.decoder(encoded.latents, encoded.sequences, branch(table), table.event)
        return branch.voxel_head(vectors, "labels", branch.voxel_head.cells(table)), table.voxel, table.event[table.row], given.shape
