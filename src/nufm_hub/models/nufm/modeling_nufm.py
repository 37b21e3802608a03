"""NuFM: a sparse, multimodal encoder for neutrino detectors, and its task heads.

Voxels become patch tokens; the occupied patches of each window of the detector attend to each other and to a few CLS tokens; the CLS
tokens of all windows are the latents, which gather all tokens, images and tracks included, in Perceiver-IO fashion
(arXiv:2107.14795). After arXiv:2604.07037. Only occupied patches and windows are computed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import initialization as init

from nufm_hub.detectors import DetectorSpec
from nufm_hub.events import summary_sources
from nufm_hub.models.common.heads import CharmClassification, FlavourClassification, ParticleID, VertexRegression
from nufm_hub.models.common.modeling import DetectorModel
from nufm_hub.models.common.outputs import EncoderOutput, HeadOutput, PreTrainingOutput, ReconstructionOutput, VoxelOutput
from nufm_hub.models.common.pooling import HeadLinear
from nufm_hub.models.common.reconstruction import EventReconstruction, MomentumRegression

from .configuration_nufm import NuFMConfig
from .decoder_nufm import SeparableBasis, cosine_basis
from .encoder_nufm import Encoded, NuFMEmbeddings, NuFMEncoder, Tokens
from .layers_nufm import FrozenPosition, WindowEmbedding, sincos_position
from .patch_embedding import Patches, SparsePatchConv3d, patchify
from .readout_nufm import NuFMContext, NuFMEncoderOutput, NuFMPointingHead, NuFMReadout, mean_of_rows


@dataclass
class NuFMInputs:
    """What every NuFM model takes: a batch of B events, as `NuFMProcessor` makes it.

    Attributes:
        voxel_coordinates: int64 (B, N, 3), voxel indices in the grid of the voxel's branch.
        voxel_features: float (B, N, C), as the processor standardises them.
        voxel_branch: int64 (B, N), index among the detector's voxel branches; -1 is padding. Two voxels at the same place count
            with the sum of their features.
        image_features: float (B, D), flattened image; needed when the detector has an image branch.
        track_features: float (B, T, F); needed, with `track_mask`, when it has a track branch.
        track_mask: bool (B, T), True at real tracks.
        voxel_energy: float32 (B, N), energy over that of a typical voxel of the branch (k of the processor); needed by models with moments,
            continuous positions or pointing.
        summary_features: float (B, F), see `nufm_hub.events.summary_features`, as the processor standardises them; needed by models with an
            `event_summary`.
        start_position: float32 (B, 3), mm, where geometry finds the vertex, NaN where it finds none; needed by those that also point.
        branch_mask: bool (B, number of branches), False where a sub-detector is absent. Absent is not empty: an empty image or
            track branch makes a token that says so, an absent one makes none. None: all present.
    """

    voxel_coordinates: Tensor
    voxel_features: Tensor
    voxel_branch: Tensor
    image_features: Tensor | None = None
    track_features: Tensor | None = None
    track_mask: Tensor | None = None
    branch_mask: Tensor | None = None
    voxel_energy: Tensor | None = None
    summary_features: Tensor | None = None
    start_position: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(B, N)."""
        return self.voxel_branch.shape[0], self.voxel_branch.shape[1]

    def check(self, spec: DetectorSpec) -> None:
        """Raises ValueError when voxels or `branch_mask` do not fit the detector."""
        coordinates, features, branch = self.voxel_coordinates, self.voxel_features, self.voxel_branch
        channels = max(len(b.channels) for b in spec.voxel_branches)
        if coordinates.shape != (*branch.shape, 3) or features.shape[:2] != branch.shape or features.shape[2] < channels:
            raise ValueError(
                f"detector {spec.name!r} needs voxel_coordinates (B, N, 3), voxel_features (B, N, {channels}) and voxel_branch (B, N); got "
                f"{tuple(coordinates.shape)}, {tuple(features.shape)} and {tuple(branch.shape)}"
            )
        if (mask := self.branch_mask) is not None and mask.shape != (branch.shape[0], len(spec.branches)):
            raise ValueError(f"branch_mask must be (B, {len(spec.branches)}), one column per branch of {spec.name!r}; got {tuple(mask.shape)}")
        if (energy := self.voxel_energy) is not None and energy.shape != branch.shape:
            raise ValueError(f"voxel_energy must be {tuple(branch.shape)}, one number a voxel; got {tuple(energy.shape)}")
        if branch.device.type == "cpu" and branch.numel() and int(branch.max()) >= len(spec.voxel_branches):
            raise ValueError(f"voxel_branch {int(branch.max())} is no voxel branch of {spec.name!r}, which has {len(spec.voxel_branches)}")


class NuFMPreTrainedModel(DetectorModel):
    """Start of weights, and the encoder that every NuFM model has."""

    config_class = NuFMConfig
    base_model_prefix = "nufm"
    main_input_name = "voxel_features"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ("NuFMLayer",)
    vectors: ClassVar[str] = r"\.(cls_token|window\.weight|state\.weight|basis\.[xyz])$"

    def __init__(self, config: NuFMConfig):
        super().__init__(config)
        self.embeddings = NuFMEmbeddings(config)
        self.encoder = NuFMEncoder(config)
        branches = [b.name for b in config.spec.branches]
        self.summary_sources = [branches.index(name) for name in summary_sources(config.spec)] if config.needs_summary else []

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, SparsePatchConv3d)) and not isinstance(module, HeadLinear):
            bound = math.sqrt(6 / (module.weight.shape[0] + math.prod(module.weight.shape[1:])))  # Xavier, a kernel counts as a linear map
            init.uniform_(module.weight, -bound, bound)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, FrozenPosition):
            init.copy_(module.weight, sincos_position(module.size, module.grid))
        elif isinstance(module, WindowEmbedding):
            init.normal_(module.weight)
        elif isinstance(module, SeparableBasis):
            for factor in (module.x, module.y, module.z):
                init.copy_(factor, cosine_basis(*factor.shape))
        else:
            super()._init_weights(module)
        for name in ("source", "cls_token", "query"):
            if isinstance(getattr(module, name, None), nn.Parameter):
                init.normal_(getattr(module, name), std=self.config.initializer_range)
        if isinstance(getattr(module, "log_sigma", None), nn.Parameter):
            init.zeros_(module.log_sigma)

    @classmethod
    def encoder_depths(cls, names: Iterable[str]) -> dict[str, int]:
        """0 embeddings, then window layers, then fusion rounds.

        Branches with fewer window layers than the deepest one end, not start, together with it: all meet in the fusion.
        """
        names = list(names)
        window = {name: (int(m[1]), int(m[2])) for name in names if (m := re.match(r"encoder\.branches\.(\d+)\.layers\.(\d+)\.", name))}
        layers = {branch: 1 + max(layer for b, layer in window.values() if b == branch) for branch, _ in window.values()}
        deepest = max(layers.values(), default=0)
        depths: dict[str, int] = {}
        for name in names:
            if name.startswith("embeddings."):
                depths[name] = 0
            elif name in window:
                branch, layer = window[name]
                depths[name] = 1 + layer + deepest - layers[branch]
            elif m := re.match(r"encoder\.(?:cross|self)_layers\.(\d+)\.", name):
                depths[name] = 1 + deepest + int(m[1])
            elif "cls_token" in name or ".moments." in name:
                depths[name] = 1
            elif re.match(r"encoder\..*norm\.", name):
                depths[name] = deepest  # after the last window layer
        return depths

    def patches(self, inputs: NuFMInputs) -> list[Patches]:
        """Occupied patches of every voxel branch of a batch: padding, absent branches and branches with too few voxels drop out.

        `Patches.voxel` indexes the flattened (B * N) voxels.
        """
        spec = self.config.spec
        inputs.check(spec)
        energy = None
        if self.config.needs_energy:
            if inputs.voxel_energy is None:
                raise ValueError("this model reads voxel_energy beside voxel_features: make its inputs with the processor that is saved with it")
            energy = inputs.voxel_energy.flatten()
        batch, length = inputs.shape
        branch_of_voxel, coordinates, features = (
            rows.flatten(0, 1) for rows in (inputs.voxel_branch, inputs.voxel_coordinates, inputs.voxel_features)
        )
        table = []
        for i, branch in enumerate(spec.voxel_branches):
            voxel = (branch_of_voxel == i).nonzero().squeeze(1)
            event = voxel // max(length, 1)
            present = torch.bincount(event, minlength=batch) >= self.config.min_voxels_per_branch
            if inputs.branch_mask is not None:
                present = present & inputs.branch_mask[:, i].bool()
            kept = present[event]
            voxel, event = voxel[kept], event[kept]
            own = None if energy is None else energy[voxel]
            table.append(patchify(coordinates[voxel], event, features[voxel, : len(branch.channels)], voxel, branch, batch, own))
        return table

    def other_tokens(self, inputs: NuFMInputs) -> dict[str, tuple[Tensor, Tensor]]:
        """Tokens (T, hidden_size) of the image and of the tracks, with their events int64 (T,); absent branches make none."""
        spec, tokens = self.config.spec, {}
        for name, branch, values in (("image", spec.image_branch, inputs.image_features), ("tracks", spec.track_branch, inputs.track_features)):
            if branch is None or getattr(self.embeddings, name) is None:
                continue
            if values is None or (name == "tracks" and inputs.track_mask is None):
                needed = "image_features" if name == "image" else "track_features and track_mask"
                raise ValueError(f"detector {spec.name!r} has the branch {branch.name!r}: give {needed} (and branch_mask False where it is absent)")
            embedded = self.embeddings.image(values) if name == "image" else self.embeddings.tracks(values, inputs.track_mask.bool())
            present = torch.ones(inputs.shape[0], dtype=torch.bool, device=embedded.device)
            if inputs.branch_mask is not None:
                present = inputs.branch_mask[:, spec.branches.index(branch)].bool()
            if name == "tracks" and branch.max_count == 1:  # features of the event: without them there is nothing to say
                present = present & inputs.track_mask.bool().any(dim=1)
            event = present.nonzero().squeeze(1)
            tokens[name] = (embedded[event], event)
        return tokens

    def embed(self, patches: list[Patches], visible: list[Tensor] | None, batch_size: int) -> list[Tokens]:
        """Tokens of every voxel branch; `visible`, bool (P,) for each branch, hides patches before they are embedded."""
        tokens = []
        for i, (embed, table) in enumerate(zip(self.embeddings.voxels, patches)):
            windows = self.encoder.branches[i].num_windows
            occupied = torch.bincount(table.event * windows + table.window, minlength=batch_size * windows)
            tokens.append(embed(table if visible is None else table.select(visible[i]), occupied))
        return tokens

    def encode(
        self, *args: Tensor, output_hidden_states: bool | None = None, output_attentions: bool | None = None, **inputs: Tensor
    ) -> EncoderOutput:
        """Encode a batch of B events.

        Args:
            args, inputs: see `NuFMInputs`.
            output_hidden_states, output_attentions: as in the library; attentions need `attn_implementation="eager"`.

        Returns:
            `last_hidden_state` (B, L, hidden_size) are the latents, L the largest number of active ones in the batch, and `pooler_output` their
            mean; `hidden_states` the latents before and after each fusion round, `fusion_depth + 1` of (B, L, hidden_size); `attentions` how
            latents look at tokens, `fusion_depth` of (B, heads, L, tokens).

        Raises:
            ValueError: inputs that do not fit the detector.
        """
        return self._encode(NuFMInputs(*args, **inputs), output_hidden_states, output_attentions)[0]

    def encode_for_heads(
        self, *args: Tensor, output_hidden_states: bool | None = None, output_attentions: bool | None = None, **inputs: Tensor
    ) -> NuFMEncoderOutput:
        given = NuFMInputs(*args, **inputs)
        output, encoded, tokens = self._encode(given, output_hidden_states, output_attentions)
        return NuFMEncoderOutput(**output, context=NuFMContext.of(encoded, tokens[0], self._summary(given), self._starts(given)))

    def _summary(self, given: NuFMInputs) -> Tensor | None:
        """Summary numbers (B, F) of what is present; None in models that do not read them."""
        if not self.config.needs_summary:
            return None
        features, sources = given.summary_features, self.summary_sources
        if features is None or features.shape != (given.shape[0], len(sources)):
            found = "none" if features is None else tuple(features.shape)
            raise ValueError(f"this model reads summary_features (B, {len(sources)}), got {found}: make its inputs with the processor saved with it")
        return features if given.branch_mask is None else features * given.branch_mask[:, sources]

    def _starts(self, given: NuFMInputs) -> Tensor | None:
        """Starts (B, 3), mm, NaN where there is none or the first branch is absent; None in models that do not read them."""
        if not (self.config.needs_summary and self.config.vertex_pointing):
            return None
        if (starts := given.start_position) is None or starts.shape != (given.shape[0], 3):
            found = "none" if starts is None else tuple(starts.shape)
            raise ValueError(f"this model reads start_position (B, 3), got {found}: make its inputs with the processor saved with it")
        if given.branch_mask is None:
            return starts
        return starts.masked_fill(~given.branch_mask[:, self.config.spec.branches.index(self.config.spec.voxel_branches[0]), None].bool(), torch.nan)

    def _encode(self, given: NuFMInputs, states: bool | None, attentions: bool | None) -> tuple[EncoderOutput, Encoded, list[Tokens]]:
        states = self.config.output_hidden_states if states is None else states
        attentions = self.config.output_attentions if attentions is None else attentions
        patches, others, batch_size = self.patches(given), self.other_tokens(given), given.shape[0]
        tokens = self.embed(patches, None, batch_size)
        encoded = self.encoder(tokens, list(others.values()), batch_size, keep_history=bool(states or attentions))
        sequences = encoded.sequences
        output = EncoderOutput(
            last_hidden_state=sequences.pad(encoded.latents),
            latent_mask=sequences.mask,
            pooler_output=mean_of_rows(encoded.latents, sequences),
            hidden_states=tuple(sequences.pad(rows) for rows in encoded.history) if states else None,
            attentions=tuple(encoded.weights) if attentions else None,
        )
        return output, encoded, tokens

    def _make_readout(self, config: NuFMConfig, quantities: int) -> nn.Module | None:
        return NuFMReadout(config, quantities) if config.readout_depth else None

    def _make_head(self, config: NuFMConfig, quantity: str, outputs: int, readout: nn.Module | None = None) -> nn.Module:
        if quantity == "vertex" and config.vertex_pointing:
            return NuFMPointingHead(config, self.embeddings.voxels[0].patch_embedding.cell_size, readout)
        return super()._make_head(config, quantity, outputs, readout)


class NuFMModel(NuFMPreTrainedModel):
    """The encoder without a task."""

    def __init__(self, config: NuFMConfig):
        super().__init__(config)
        self.post_init()

    def forward(self, *args: Tensor, return_dict: bool | None = None, **inputs: Tensor) -> EncoderOutput | tuple:
        """See `encode`."""
        return self._returned(self.encode(*args, **inputs), return_dict)


class NuFMForFlavourClassification(FlavourClassification, NuFMPreTrainedModel):
    """`FlavourClassification` on the NuFM encoder."""


class NuFMForCharmClassification(CharmClassification, NuFMPreTrainedModel):
    """`CharmClassification` on the NuFM encoder."""


class NuFMForParticleID(ParticleID, NuFMPreTrainedModel):
    """`ParticleID` on the NuFM encoder."""


class NuFMForVertexRegression(VertexRegression, NuFMPreTrainedModel):
    """`VertexRegression` on the NuFM encoder."""


class NuFMForMomentumRegression(MomentumRegression, NuFMPreTrainedModel):
    """`MomentumRegression` on the NuFM encoder."""


class NuFMForEventReconstruction(EventReconstruction, NuFMPreTrainedModel):
    """`EventReconstruction` on the NuFM encoder."""


# What the outputs were called while there was one family.
NuFMModelOutput, NuFMHeadOutput, NuFMForPreTrainingOutput = EncoderOutput, HeadOutput, PreTrainingOutput
NuFMReconstructionOutput, NuFMVoxelOutput = ReconstructionOutput, VoxelOutput
