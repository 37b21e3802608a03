"""What the configurations of all families have: the detector they read, sizes by name, and what the heads need."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Self

from transformers import PreTrainedConfig

from nufm_hub.detectors import DetectorSpec, load_detector

# Of another detector's configuration these are not taken over: the detector, what its classes are, and how it was saved.
_NOT_INHERITED = {
    "detector", "momentum_scales", "vertex_scale", "id2label", "label2id", "problem_type", "architectures", "transformers_version", "dtype",
    "output_hidden_states", "return_dict",
}  # fmt: skip


@lru_cache(maxsize=32)
def _spec_from_json(text: str) -> DetectorSpec:
    return DetectorSpec.from_dict(json.loads(text))


@dataclass(frozen=True)
class Method:
    """The paper whose method a family follows."""

    arxiv: str
    title: str
    year: int


class DetectorConfig(PreTrainedConfig):
    """Base of the configurations of all families. A family adds its sizes, and fills and checks them in `_complete`.

    Args:
        detector: the detector the model reads: a packaged name (`"fasercal"`, the default), the path of a JSON file, a `DetectorSpec`
            or its dictionary. Kept as a dictionary, so that `config.json` is complete; `config.spec` gives the object.
        hidden_size: width of the event vector that heads read.
        layer_norm_eps: of every LayerNorm.
        head_dropout, head_init_std: dropout before, and standard deviation of the (truncated normal) start of, the task heads' linear layer.
        label_smoothing: of the classification heads' cross-entropy.
        momentum_scales: `EventProcessor.momentum_scales`, needed by the models that give momenta.
        vertex_scale: `EventProcessor.vertex_scale`, needed by the models that point to the vertex.
        momentum_loss: `"relative"`, as published (see `momentum_loss`), or `"logarithmic"` (see `log_momentum_loss`).
        vertex_focus: distance, in spreads of the vertices, down to which the loss of vertices is a logarithm, see `vertex_loss`; None: a distance.

    Raises:
        ValueError: sizes that do not fit together, an unknown option, or a detector that makes no sense.
    """

    keys_to_ignore_at_inference: ClassVar[list[str]] = ["losses"]
    # What a family says of itself:
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}  # sizes by name
    detector_fields: ClassVar[frozenset[str]] = frozenset()  # fields that hang on the detector: another one starts with their defaults
    # Fields that change what weights mean and not their shape: a regular expression of the names of those weights, and words for the field.
    meanings: ClassVar[Mapping[str, tuple[str, str]]] = {}
    method: ClassVar[Method | None] = None

    detector: Any = None
    hidden_size: int = 96
    layer_norm_eps: float = 1e-6
    head_dropout: float = 0.0
    head_init_std: float = 2e-5
    label_smoothing: float = 0.0
    momentum_scales: Any = None
    vertex_scale: Any = None
    momentum_loss: str = "relative"
    vertex_focus: float | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        spec = load_detector("fasercal" if self.detector is None else self.detector)
        self.detector = spec.to_dict()
        self._complete(spec)
        if self.layer_norm_eps <= 0:
            raise ValueError(f"layer_norm_eps={self.layer_norm_eps} must be positive")
        self._check_shares("head_dropout", "label_smoothing")
        if self.momentum_loss not in ("relative", "logarithmic"):
            raise ValueError(f"momentum_loss={self.momentum_loss!r} is neither 'relative' nor 'logarithmic'")
        if self.vertex_focus is not None and not self.vertex_focus > 0:
            raise ValueError(f"vertex_focus={self.vertex_focus} must be a positive distance, in spreads of the vertices, or None")
        super().__post_init__(**kwargs)
        self.architectures = self.architectures or []  # the library's Auto classes iterate over them

    @property
    def pretrains_on_truth(self) -> bool:
        """Whether pre-training with this configuration learns what a simulation says of voxels, and is so not purely self-supervised."""
        return False

    @property
    def needs_summary(self) -> bool:
        """Whether models with heads read `summary_features`, which the processor then has to have been fitted for."""
        return False

    def _complete(self, spec: DetectorSpec) -> None:
        """Fill in what depends on the detector, and check; a family's own."""

    def _check_shares(self, *names: str, up_to_one: Collection[str] = ()) -> None:
        """Raises ValueError when a field is no share in [0, 1), or in [0, 1] for those in `up_to_one`."""
        for name in names:
            value = getattr(self, name)
            if not 0 <= value <= 1 or (value == 1 and name not in up_to_one):
                raise ValueError(f"{name}={value} must be a share in [0, 1{']' if name in up_to_one else ')'}")

    @property
    def spec(self) -> DetectorSpec:
        """The detector as an object."""
        return _spec_from_json(json.dumps(self.detector, sort_keys=True))

    @classmethod
    def preset(cls, name: str, detector: str | Path | Mapping[str, Any] | DetectorSpec = "fasercal", **overrides: Any) -> Self:
        """Configuration of a named size for a detector.

        Args:
            name: one of `presets`.
            detector: anything `load_detector` takes.
            overrides: any field of the configuration.

        Raises:
            ValueError: an unknown preset or field, or values that do not fit together.
        """
        cls.check_fields(overrides)
        if name not in cls.presets:
            raise ValueError(f"unknown preset {name!r}: give one of {sorted(cls.presets)}")
        spec = load_detector(detector)
        return cls(detector=spec.to_dict(), **(cls._preset_sizes(name, spec) | overrides))

    @classmethod
    def _preset_sizes(cls, name: str, spec: DetectorSpec) -> dict[str, Any]:
        """Fields of a preset for a detector."""
        return dict(cls.presets[name])

    def for_detector(self, detector: str | Path | Mapping[str, Any] | DetectorSpec, **overrides: Any) -> Self:
        """This configuration for another detector: sizes stay, what hangs on the detector is derived anew; `overrides` as in `preset`."""
        self.check_fields(overrides)
        spec = load_detector(detector)
        kept = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _NOT_INHERITED | self.detector_fields}
        return type(self)(**(kept | self._sizes_on(spec) | overrides | {"detector": spec.to_dict()}))

    def _sizes_on(self, spec: DetectorSpec) -> dict[str, Any]:
        """Values of `detector_fields` for another detector where they are not the defaults."""
        return {}

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in the library; values that replace those of the dictionary are checked like those."""
        own = {f.name for f in fields(cls)} - {"dtype"}  # the library also hands that on to the model
        replaced = {name: kwargs.pop(name) for name in own & kwargs.keys()}
        return super().from_dict(config_dict | replaced, **kwargs)

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """As in the library; an id of a checkpoint that comes with the package is read from there."""
        from nufm_hub.checkpoints import resolve

        folder = resolve(pretrained_model_name_or_path, revision=explicit_revision(kwargs))
        config, unused = super().get_config_dict(folder, **kwargs)
        if str(folder) != str(pretrained_model_name_or_path):
            config["name_or_path"] = str(pretrained_model_name_or_path)
        return config, unused

    @classmethod
    def check_fields(cls, names: Collection[str]) -> None:
        """Raises ValueError when some names are no fields besides the detector: the library would keep such, without effect."""
        known = {f.name for f in fields(cls)} | {"num_labels", "attn_implementation", "output_attentions"}
        if unknown := set(names) - (known - {"detector"}):
            own = known - {f.name for f in fields(PreTrainedConfig)} - {"detector", "num_labels", "attn_implementation", "output_attentions"}
            raise ValueError(f"unknown configuration fields {sorted(unknown)}: known are {sorted(own)}, and those of the library, such as num_labels")


class SparseConfig(DetectorConfig):
    """Base of the configurations of families that stand on the sparse operations of `nufm_hub.sparse`.

    Args:
        sparse_backend: who computes them: `"torch"`, `"minkowski"` or `"spconv"`. Weights and outputs are the same; it may change on loading.

    Raises:
        ImportError: the backend's library is not installed; says how to install it.
    """

    sparse_backend: str = "torch"

    def _complete(self, spec: DetectorSpec) -> None:
        from nufm_hub.sparse.backends import get_backend  # with torch, which a configuration can be read without

        get_backend(self.sparse_backend)


def explicit_revision(options: Mapping[str, Any]) -> str | None:
    """The revision the caller asked for; the library's own default, `"main"`, counts as none."""
    revision = options.get("revision")
    return None if revision == "main" else revision
