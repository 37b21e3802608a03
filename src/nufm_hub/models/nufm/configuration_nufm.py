"""Configuration of the NuFM models: the sizes of their layers, and the pre-training objectives."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from nufm_hub.detectors import DetectorSpec
from nufm_hub.models.common.configuration import DetectorConfig, Method

# tiny and base are published for FASERCal (arXiv:2604.07037); nano and micro are for computers without a GPU. `first_depth` are the window
# layers of the first voxel branch, `branch_depth` those of each other one.
_PRESETS: dict[str, dict[str, Any]] = {
    "nano": {
        "hidden_size": 96, "num_attention_heads": 6, "first_depth": 2, "branch_depth": 1, "fusion_depth": 2,
        "decoder_hidden_size": 72, "decoder_num_attention_heads": 6, "decoder_depth": 1,
    },
    "micro": {
        "hidden_size": 192, "num_attention_heads": 6, "first_depth": 2, "branch_depth": 2, "fusion_depth": 4,
        "decoder_hidden_size": 128, "decoder_num_attention_heads": 4, "decoder_depth": 2,
    },
    "tiny": {
        "hidden_size": 384, "num_attention_heads": 12, "first_depth": 2, "branch_depth": 2, "fusion_depth": 6,
        "decoder_hidden_size": 256, "decoder_num_attention_heads": 8, "decoder_depth": 2,
    },
    "base": {
        "hidden_size": 384, "num_attention_heads": 12, "first_depth": 4, "branch_depth": 4, "fusion_depth": 4,
        "decoder_hidden_size": 256, "decoder_num_attention_heads": 8, "decoder_depth": 2,
    },
}  # fmt: skip


class NuFMConfig(DetectorConfig):
    """Configuration of a NuFM model. What is not explained here is in `DetectorConfig`.

    Args:
        hidden_size: width d of tokens and latents.
        num_attention_heads: heads of every encoder attention; divides `hidden_size`.
        mlp_ratio: width of the feed-forward layers over the width of the tokens, encoder and decoder.
        window_depths: self-attention layers inside the windows, one number per voxel branch of the detector (default 2 each).
        fusion_depth: rounds of (latents cross-attend to all tokens, latents attend to each other).
        num_window_cls: summary (CLS) tokens of a window; the active ones become the latents. A window with n occupied patches uses
            `ceil(n / (positions_per_window // num_window_cls))` of them, so a sparse window makes fewer latents.
        window_position: what tells windows of a branch apart, added after the window layers: `"learned"` (one vector per window) or
            `"sincos"` (frozen, for grids with many windows).
        presence_channel: give the embedding of patches a feature that is 1 at every voxel, so that a patch with one faint voxel is not
            the same as one with one bright voxel. Not in the published layout.
        patch_moments: add moments of patches and their pieces (energy, number, middle, widths ...) to what the convolutions make of them,
            see `cell_moments`. They move to other detectors with the encoder. Not in the published layout.
        continuous_position: add a vector of the mean position in mm of the energy in a patch. Not in the published layout.
        stem_depth: blocks of depth-wise sparse convolutions between the pieces of patches, in branches whose patches are embedded in two steps;
            0 in the published layout. The pieces then have half the width of the tokens instead of a quarter.
        readout_depth: cross-attention layers with which each head's own query looks at latents and tokens; 0: heads read the mean of the
            latents, as published.
        event_summary: heads also read the numbers that `nufm_hub.events.summary_features` makes of an event: their queries start from them,
            and what points to the vertex knows where geometry finds it. Needs a `readout_depth`. Pre-training does not read them but learns to
            tell them from what is left visible. Not in the published layout.
        vertex_pointing: find vertices by pointing to pieces of patches, see `NuFMPointingHead`; needs `vertex_scale`. Not in the published layout.
        min_voxels_per_branch: a voxel branch with fewer voxels in an event counts as empty there.
        hidden_dropout, attention_dropout: dropout after projections, and on attention weights.
        drop_path_rate: stochastic depth; rises over the window layers and along the fusion layers, half as much in cross-attention.
        initializer_range: standard deviation of CLS, source and query vectors at the start; window vectors start at 1.
        context_depth, context_dropout: layers in which the particles of an event look at each other, and dropout there, of
            `NuFMForEventParticleID`.
        context_pooled_norm: give the vector of each particle there the size 1 before its features are added. Published models do not: of an
            encoder with large vectors, as they are after pre-training, the features are then drowned.
        decoder_hidden_size, decoder_num_attention_heads, decoder_depth: sizes of the pre-training decoder.
        voxel_head_modes: features per voxel that the decoder expands a patch into, one number per voxel branch (default 8, then 4).
        mask_ratio: share of the occupied patches of each window hidden in masked pre-training; the image and track tokens are dropped
            with half this probability.
        relational: also learn the per-voxel truth labels of the first voxel branch (`mae-rel`); False is masked pre-training alone (`mae`).
            Default: True when the branch has labels.
        relational_probability: probability that a training step runs the relational pass.
        relational_mask_ratio: share of patches hidden in the relational pass; labels are learnt at the visible ones.
        occupancy_distance: empty voxels are learnt as empty when this close (largest of the three axis distances, in voxels, within
            the patch) to a hit.
        occupancy_empty_weight: weight of those empty voxels in the occupancy loss.
        occupancy_smoothing: label smoothing of the occupancy loss.
        focal_gamma: focusing exponent of the occupancy loss (arXiv:1708.02002).
        max_log_sigma: bound on the size of the learnable log sigma of each pre-training loss (arXiv:1705.07115).

    Raises:
        ValueError: sizes that do not fit together, an unknown option, or a detector that makes no sense.
    """

    model_type = "nufm"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = _PRESETS
    detector_fields: ClassVar[frozenset[str]] = frozenset({"window_depths", "voxel_head_modes", "relational"})
    meanings: ClassVar[Mapping[str, tuple[str, str]]] = {
        "num_attention_heads": (r"(embeddings|encoder|head)\..*\.attention\.", "number of heads"),
        "decoder_num_attention_heads": (r"decoder\..*\.attention\.", "number of heads"),
    }
    method: ClassVar[Method | None] = Method(
        "2604.07037",
        "Towards foundation-style models for energy-frontier heterogeneous neutrino detectors via self-supervised pre-training",
        2026,
    )

    hidden_size: int = 384
    num_attention_heads: int = 12
    mlp_ratio: float = 4.0
    window_depths: Any = None
    fusion_depth: int = 6
    num_window_cls: int = 2
    window_position: str = "learned"
    presence_channel: bool = False
    patch_moments: bool = False
    continuous_position: bool = False
    stem_depth: int = 0
    readout_depth: int = 0
    event_summary: bool = False
    vertex_pointing: bool = False
    min_voxels_per_branch: int = 1
    hidden_dropout: float = 0.0
    attention_dropout: float = 0.0
    drop_path_rate: float = 0.0
    initializer_range: float = 0.02
    context_depth: int = 2
    context_dropout: float = 0.1
    context_pooled_norm: bool = True
    decoder_hidden_size: int = 256
    decoder_num_attention_heads: int = 8
    decoder_depth: int = 2
    voxel_head_modes: Any = None
    mask_ratio: float = 0.75
    relational: Any = None
    relational_probability: float = 0.5
    relational_mask_ratio: float = 0.25
    occupancy_distance: int = 2
    occupancy_empty_weight: float = 0.5
    occupancy_smoothing: float = 0.02
    focal_gamma: float = 1.5
    max_log_sigma: float = 3.0

    def _complete(self, spec: DetectorSpec) -> None:
        branches = len(spec.voxel_branches)
        self.window_depths = [2] * branches if self.window_depths is None else list(self.window_depths)
        self.voxel_head_modes = [8] + [4] * (branches - 1) if self.voxel_head_modes is None else list(self.voxel_head_modes)
        if self.relational is None:
            self.relational = bool(spec.voxel_branches[0].labels)
        self._check(spec)

    @property
    def pretrains_on_truth(self) -> bool:
        return bool(self.relational)

    @property
    def needs_energy(self) -> bool:
        """Whether the model reads `voxel_energy`."""
        return self.patch_moments or self.continuous_position or self.vertex_pointing

    @property
    def needs_summary(self) -> bool:
        return bool(self.event_summary)

    @property
    def cell_size(self) -> int:
        """Width of the pieces of patches that are embedded in two steps."""
        return self.hidden_size // (2 if self.stem_depth else 4)

    def _check(self, spec: DetectorSpec) -> None:
        branches = [b.name for b in spec.voxel_branches]
        for size, heads in (("hidden_size", "num_attention_heads"), ("decoder_hidden_size", "decoder_num_attention_heads")):
            width, number = getattr(self, size), getattr(self, heads)
            if width < 6 or number < 1 or width % number or width % 2:
                raise ValueError(f"{size}={width} must be an even number, at least 6, that {heads}={number} divides")
        if self.hidden_size % 4 and any(math.prod(b.patch) > 512 for b in spec.voxel_branches):
            raise ValueError(f"hidden_size={self.hidden_size} must be divisible by 4: patches of more than 512 voxels pass through a quarter of it")
        for key in ("window_depths", "voxel_head_modes"):
            value = getattr(self, key)
            if len(value) != len(branches) or any(not isinstance(v, int) or v < 0 for v in value):
                raise ValueError(f"{key}={value} needs one number >= 0 for each voxel branch of {spec.name!r}: {branches}")
        at_least_one = ("fusion_depth", "num_window_cls", "min_voxels_per_branch", "decoder_depth")
        at_least_zero = ("occupancy_distance", "context_depth", "stem_depth", "readout_depth")
        for key, low in (*((key, 1) for key in at_least_one), *((key, 0) for key in at_least_zero)):
            if getattr(self, key) < low:
                raise ValueError(f"{key}={getattr(self, key)} must be at least {low}")
        self._check_shares(
            "hidden_dropout", "attention_dropout", "drop_path_rate", "context_dropout", "mask_ratio", "relational_mask_ratio",
            "relational_probability", "occupancy_smoothing", up_to_one={"relational_probability"},
        )  # fmt: skip
        if self.event_summary and not self.readout_depth:
            raise ValueError("event_summary=True needs a readout_depth of at least 1: the queries of the read-out start from the summary")
        if self.window_position not in ("learned", "sincos"):
            raise ValueError(f"window_position={self.window_position!r} is neither 'learned' nor 'sincos'")
        if self.relational and not spec.voxel_branches[0].labels:
            raise ValueError(f"relational=True needs voxel labels, and branch {branches[0]!r} of detector {spec.name!r} declares none")
        if min(self.mlp_ratio, self.max_log_sigma) <= 0 or min(self.focal_gamma, self.occupancy_empty_weight) < 0:
            raise ValueError("mlp_ratio and max_log_sigma must be positive; focal_gamma and occupancy_empty_weight not negative")

    @classmethod
    def _preset_sizes(cls, name: str, spec: DetectorSpec) -> dict[str, Any]:
        sizes = super()._preset_sizes(name, spec)
        first, other = sizes.pop("first_depth"), sizes.pop("branch_depth")
        return {**sizes, "window_depths": [first] + [other] * (len(spec.voxel_branches) - 1)}

    def _sizes_on(self, spec: DetectorSpec) -> dict[str, Any]:
        first, *others = self.window_depths
        return {"window_depths": [first] + [others[0] if others else first] * (len(spec.voxel_branches) - 1)}
