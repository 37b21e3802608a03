"""What models of all families return."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from transformers.utils import ModelOutput


@dataclass
class EncoderOutput(ModelOutput):
    """Output of an encoder, and of the `encode` of any model.

    Attributes:
        last_hidden_state: float (B, L, hidden_size), what the family ends with: its latents, or one row for each voxel.
        latent_mask: bool (B, L), True where `last_hidden_state` has a row; the others are zero.
        pooler_output: float (B, hidden_size), the vector of each event.
        hidden_states: with `output_hidden_states`, as the family says.
        attentions: with `output_attentions` and eager attention, as the family says.
    """

    last_hidden_state: Tensor | None = None
    latent_mask: Tensor | None = None
    pooler_output: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class HeadOutput(ModelOutput):
    """Output of heads of one quantity.

    Attributes:
        loss: scalar, when labels were given.
        logits: float (B, num_labels): class scores, or the regressed values.
        hidden_states, attentions: see `EncoderOutput`.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class PreTrainingOutput(ModelOutput):
    """Output of pre-training.

    Attributes:
        loss: scalar, what is minimised.
        losses: its parts before weighting, detached, by name. 0 where a batch had nothing to score. Each is a mean over what the batch hides or
            labels, so parts of a batch average to the whole in expectation, not exactly.
        latents, latent_mask: `last_hidden_state` and `latent_mask` of what was encoded, see `EncoderOutput`.
    """

    loss: Tensor | None = None
    losses: dict[str, Tensor] | None = None
    latents: Tensor | None = None
    latent_mask: Tensor | None = None


@dataclass
class ReconstructionOutput(ModelOutput):
    """Output of event reconstruction and, with momenta only, of momentum regression. Momenta are in the detector frame.

    Attributes:
        loss: scalar, when labels were given.
        losses: each loss before weighting, detached, by name of the quantity: its sum over the events that have the quantity, over the
            number of all events of the batch.
        flavour_logits: float (B, flavours); None when the detector declares no flavours.
        charm_logits: float (B, charm classes); None when the detector declares none.
        visible_momentum: float (B, 3), GeV, sum of all but neutrinos.
        jet_momentum: float (B, 3), GeV, the visible hadrons.
        lepton_momentum: float (B, 3), GeV, visible minus jet; meaningful for charged-current events.
        missing_pt: float (B,), GeV, size of the visible transverse momentum: the beam has none.
        vertex: float (B, 3), normalised; `EventProcessor.post_process_reconstruction` gives mm.
    """

    loss: Tensor | None = None
    losses: dict[str, Tensor] | None = None
    flavour_logits: Tensor | None = None
    charm_logits: Tensor | None = None
    visible_momentum: Tensor | None = None
    jet_momentum: Tensor | None = None
    lepton_momentum: Tensor | None = None
    missing_pt: Tensor | None = None
    vertex: Tensor | None = None


@dataclass
class VoxelOutput(ModelOutput):
    """Output of voxel classification.

    Attributes:
        loss: scalar, sum of `losses`, when labels were given.
        losses: mean cross-entropy of each voxel label over the voxels of an event that have it, then over the events of the batch,
            detached, by name.
        logits: float (B, N, K), rows as `EventProcessor` orders voxels, columns the classes of all labels of the detector's first voxel
            branch in order: one logit (sigmoid) of a binary label, one for each class (softmax) of another. NaN at padding, in the other
            branches, which have no labels, and where the branch is absent.
    """

    loss: Tensor | None = None
    losses: dict[str, Tensor] | None = None
    logits: Tensor | None = None
