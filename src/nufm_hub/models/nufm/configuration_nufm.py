"""Configuration of the NuFM models: the detector they read, the sizes of their layers, and the pre-training objectives."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

from transformers import PreTrainedConfig

from nufm_hub.detectors import DetectorSpec, load_detector

# Sizes published for FASERCal (arXiv:2604.07037); nano is for laptops and tests.
_PRESETS: dict[str, dict[str, Any]] = {
    "nano": {
        "hidden_size": 96, "num_attention_heads": 6, "first_depth": 2, "branch_depth": 1, "fusion_depth": 2,
        "decoder_hidden_size": 72, "decoder_num_attention_heads": 6, "decoder_depth": 1,
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


@lru_cache(maxsize=32)
def _spec_from_json(text: str) -> DetectorSpec:
    return DetectorSpec.from_dict(json.loads(text))


class NuFMConfig(PreTrainedConfig):
    """Configuration of a NuFM model.

    Args:
        detector: the detector the model reads: a packaged name (`"fasercal"`, the default), the path of a JSON file, a `DetectorSpec`
            or its dictionary. Kept as a dictionary, so that `config.json` is complete; `config.spec` gives the object.
        hidden_size: width d of tokens and latents.
        num_attention_heads: heads of every encoder attention; divides `hidden_size`.
        mlp_ratio: width of the feed-forward layers over the width of the tokens, encoder and decoder.
        window_depths: self-attention layers inside the windows, one number per voxel branch of the detector (default 2 each).
        fusion_depth: rounds of (latents cross-attend to all tokens, latents attend to each other).
        num_window_cls: summary (CLS) tokens of a window; the active ones become the latents. A window with n occupied patches uses
            `ceil(n / (positions_per_window // num_window_cls))` of them, so a sparse window makes fewer latents.
        window_position: what tells windows of a branch apart, added after the window layers: `"learned"` (one vector per window) or
            `"sincos"` (frozen, for grids with many windows).
        min_voxels_per_branch: a voxel branch with fewer voxels in an event counts as empty there.
        hidden_dropout, attention_dropout: dropout after projections, and on attention weights.
        drop_path_rate: stochastic depth; rises over the window layers and along the fusion layers, half as much in cross-attention.
        layer_norm_eps: of every LayerNorm.
        initializer_range: standard deviation of CLS, source and query vectors at the start; window vectors start at 1.
        head_dropout, head_init_std: dropout before, and standard deviation of the (truncated normal) start of, the task heads' linear layer.
        label_smoothing: of the classification heads' cross-entropy.
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
        momentum_scales: `NuFMProcessor.momentum_scales`, needed by the models that give momenta.

    Raises:
        ValueError: sizes that do not fit together, an unknown option, or a detector that makes no sense.
    """

    model_type = "nufm"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["losses"]

    detector: Any = None
    hidden_size: int = 384
    num_attention_heads: int = 12
    mlp_ratio: float = 4.0
    window_depths: Any = None
    fusion_depth: int = 6
    num_window_cls: int = 2
    window_position: str = "learned"
    min_voxels_per_branch: int = 1
    hidden_dropout: float = 0.0
    attention_dropout: float = 0.0
    drop_path_rate: float = 0.0
    layer_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    head_dropout: float = 0.0
    head_init_std: float = 2e-5
    label_smoothing: float = 0.0
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
    momentum_scales: Any = None

    def __post_init__(self, **kwargs: Any) -> None:
        spec = load_detector("fasercal" if self.detector is None else self.detector)
        self.detector = spec.to_dict()
        branches = len(spec.voxel_branches)
        self.window_depths = [2] * branches if self.window_depths is None else list(self.window_depths)
        self.voxel_head_modes = [8] + [4] * (branches - 1) if self.voxel_head_modes is None else list(self.voxel_head_modes)
        if self.relational is None:
            self.relational = bool(spec.voxel_branches[0].labels)
        self._check(spec)
        super().__post_init__(**kwargs)
        self.architectures = self.architectures or []  # the library's Auto classes iterate over them

    def _check(self, spec: DetectorSpec) -> None:
        branches = [b.name for b in spec.voxel_branches]
        for size, heads in (("hidden_size", "num_attention_heads"), ("decoder_hidden_size", "decoder_num_attention_heads")):
            width, number = getattr(self, size), getattr(self, heads)
            if width < 6 or number < 1 or width % number or width % 2:
                raise ValueError(f"{size}={width} must be an even number, at least 6, that {heads}={number} divides")
        if self.hidden_size % 4 and any(_volume(b.patch) > 512 for b in spec.voxel_branches):
            raise ValueError(f"hidden_size={self.hidden_size} must be divisible by 4: patches of more than 512 voxels pass through a quarter of it")
        for key in ("window_depths", "voxel_head_modes"):
            value = getattr(self, key)
            if len(value) != len(branches) or any(not isinstance(v, int) or v < 0 for v in value):
                raise ValueError(f"{key}={value} needs one number >= 0 for each voxel branch of {spec.name!r}: {branches}")
        at_least_one = ("fusion_depth", "num_window_cls", "min_voxels_per_branch", "decoder_depth")
        for key, low in (*((key, 1) for key in at_least_one), ("occupancy_distance", 0), ("context_depth", 0)):
            if getattr(self, key) < low:
                raise ValueError(f"{key}={getattr(self, key)} must be at least {low}")
        for key in (
            "hidden_dropout", "attention_dropout", "drop_path_rate", "head_dropout", "label_smoothing", "context_dropout", "mask_ratio",
            "relational_mask_ratio", "relational_probability", "occupancy_smoothing",
        ):  # fmt: skip
            value = getattr(self, key)
            if not 0 <= value <= 1 or (value == 1 and key != "relational_probability"):
                raise ValueError(f"{key}={value} must be a share in [0, 1)")
        if self.window_position not in ("learned", "sincos"):
            raise ValueError(f"window_position={self.window_position!r} is neither 'learned' nor 'sincos'")
        if self.relational and not spec.voxel_branches[0].labels:
            raise ValueError(f"relational=True needs voxel labels, and branch {branches[0]!r} of detector {spec.name!r} declares none")
        if min(self.mlp_ratio, self.max_log_sigma, self.layer_norm_eps) <= 0 or min(self.focal_gamma, self.occupancy_empty_weight) < 0:
            raise ValueError("mlp_ratio, max_log_sigma and layer_norm_eps must be positive; focal_gamma and occupancy_empty_weight not negative")

    @property
    def spec(self) -> DetectorSpec:
        """The detector as an object."""
        return _spec_from_json(json.dumps(self.detector, sort_keys=True))

    @classmethod
    def preset(cls, name: str, detector: str | Path | Mapping[str, Any] | DetectorSpec = "fasercal", **overrides: Any) -> NuFMConfig:
        """Configuration of a named size for a detector.

        Args:
            name: `"nano"` (d 96, depths 2/1/2: window layers of the first branch, of the other branches, fusion rounds), `"tiny"` (d 384,
                2/2/6) or `"base"` (d 384, 4/4/4), the latter two as published.
            detector: anything `load_detector` takes.
            overrides: any field of the configuration.

        Raises:
            ValueError: an unknown preset or field, or values that do not fit together.
        """
        check_fields(overrides)
        if name not in _PRESETS:
            raise ValueError(f"unknown preset {name!r}: give one of {sorted(_PRESETS)}")
        spec = load_detector(detector)
        sizes = dict(_PRESETS[name])
        first, other = sizes.pop("first_depth"), sizes.pop("branch_depth")
        sizes["window_depths"] = [first] + [other] * (len(spec.voxel_branches) - 1)
        return cls(detector=spec.to_dict(), **(sizes | overrides))

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any):
        """As in the library; values that replace those of the dictionary are checked like those."""
        own = {f.name for f in fields(cls)} - {"dtype"}  # the library also hands that on to the model
        replaced = {name: kwargs.pop(name) for name in own & kwargs.keys()}
        return super().from_dict(config_dict | replaced, **kwargs)

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """As in the library; an id of a checkpoint that comes with the package is read from there."""
        from nufm_hub.checkpoints import resolve

        folder = resolve(pretrained_model_name_or_path, revision=explicit_revision(kwargs))
        config, unused = super().get_config_dict(folder, **kwargs)
        if str(folder) != str(pretrained_model_name_or_path):
            config["name_or_path"] = str(pretrained_model_name_or_path)
        return config, unused


def check_fields(names: Collection[str]) -> None:
    """Raises ValueError when some names are no fields of `NuFMConfig` besides the detector: the library would keep such, without effect."""
    known = {f.name for f in fields(NuFMConfig)} | {"num_labels", "attn_implementation", "output_attentions"}
    if unknown := set(names) - (known - {"detector"}):
        own = NuFMConfig.__annotations__.keys() & known - {"detector"}
        raise ValueError(f"unknown configuration fields {sorted(unknown)}: known are {sorted(own)}, and those of the library, such as num_labels")


def explicit_revision(kwargs: Mapping[str, Any]) -> str | None:
    """The revision the caller asked for; the library's own default, `"main"`, counts as none."""
    revision = kwargs.get("revision")
    return None if revision == "main" else revision


def _volume(shape: tuple[int, int, int]) -> int:
    return shape[0] * shape[1] * shape[2]
