"""Auto classes: `AutoModelForFlavourClassification.from_pretrained(id_or_folder)` picks the model that fits the checkpoint, of any family.

The only file that touches private names of transformers (two of them).
"""

from __future__ import annotations

import os
from collections import OrderedDict
from typing import Any, ClassVar

from transformers import FeatureExtractionMixin, PreTrainedConfig
from transformers.models.auto.auto_factory import _BaseAutoModelClass, _LazyAutoMapping
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from nufm_hub.checkpoints import resolve

from .common.configuration import DetectorConfig, explicit_revision
from .common.loading import saved_config, with_own_classes
from .common.modeling import DetectorModel
from .common.processing import EventProcessor
from .families import Family, StandIn, family_of, get_family, known_families, list_families, registered_families


class AutoConfig:
    """The configuration of a checkpoint of any family; unlike the library's, this knows the checkpoints that come with the package."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> DetectorConfig:
        """As in the library.

        Raises:
            ValueError: a family that this version of the package does not know.
        """
        return saved_family(pretrained_model_name_or_path, kwargs).config.from_pretrained(pretrained_model_name_or_path, **kwargs)


class AutoProcessor:
    """The processor that was saved with a checkpoint of any family."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> EventProcessor:
        """As in the library; an id of a checkpoint that comes with the package is read from there.

        Raises:
            ValueError: a processor that is none of a family which this version of the package knows.
        """
        folder = resolve(pretrained_model_name_or_path, explicit_revision(kwargs))
        saved = FeatureExtractionMixin.get_feature_extractor_dict(folder, **kwargs)[0].get("feature_extractor_type")
        for family in known_families():
            if family.prefix + "Processor" == saved:
                return get_family(family.model_type).get("Processor").from_pretrained(pretrained_model_name_or_path, **kwargs)
        raise ValueError(
            f"{pretrained_model_name_or_path} holds the processor {saved!r}, which this version of nufm_hub does not know: it has those of the "
            f"families {list_families()}"
        )


def saved_family(name: str | os.PathLike[str], options: dict[str, Any]) -> Family:
    """The family of a checkpoint, by its `config.json`; `options` are those of `from_pretrained`.

    Raises:
        ValueError: this version of the package does not know it.
    """
    folder = resolve(name, explicit_revision(options))
    return get_family(saved_config(folder, options).get("model_type"), str(name))


class AutoTaskModel(_BaseAutoModelClass):
    """What an Auto class picks from: of each family the models with the same name as its own, and `also`."""

    heads: ClassVar[tuple[str, ...]]

    def __init_subclass__(cls, also: tuple[str, ...] = ()) -> None:
        cls._model_mapping = _LazyAutoMapping(CONFIG_MAPPING_NAMES, OrderedDict())
        cls.heads = (cls.__name__.removeprefix("AutoModel") or "Model", *also)
        _AUTO_CLASSES.append(cls)

    @classmethod
    def model_class(cls, config_class: type[PreTrainedConfig]) -> type[DetectorModel]:
        """The model of a family, by its configuration class.

        Raises:
            ValueError: the family has none.
        """
        family = family_of(config_class)
        if cls.heads[0] not in family.names():
            raise ValueError(f"the family {family.model_type!r} has no {family.prefix}{cls.heads[0]}: {cls.__name__} has nothing to give for it")
        return family.get(cls.heads[0])

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Any:
        """As in the library; an id of a checkpoint that comes with the package is read from there. Heads and classes of other tasks are not taken.

        Raises:
            ValueError: a family that this version of the package does not know, or that has no such model.
        """
        family = saved_family(pretrained_model_name_or_path, kwargs)
        cls.model_class(family.config)
        folder = resolve(pretrained_model_name_or_path, explicit_revision(kwargs))
        saved = (saved_config(folder, kwargs).get("architectures") or [None])[0]
        if saved not in (None, *(family.prefix + head for head in cls.heads)):
            kwargs = with_own_classes(kwargs)
        loaded = super().from_pretrained(folder, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.config.name_or_path = model.name_or_path = str(pretrained_model_name_or_path)
        return loaded


_AUTO_CLASSES: list[type[AutoTaskModel]] = []


class AutoModel(AutoTaskModel):
    """Encoders without a task; unlike the library's, this knows the checkpoints that come with the package."""


class AutoModelForPreTraining(AutoTaskModel):
    """Encoders with what their pre-training needs."""


class AutoModelForFlavourClassification(AutoTaskModel):
    """Neutrino flavour heads."""


class AutoModelForVertexRegression(AutoTaskModel):
    """Vertex heads."""


class AutoModelForParticleID(AutoTaskModel, also=("ForEventParticleID",)):
    """Heads of particles: of those of whole events where the checkpoint was saved as one, else of single particles."""


class AutoModelForEventParticleID(AutoTaskModel):
    """Heads of all particles of an event at once."""


class AutoModelForVoxelClassification(AutoTaskModel):
    """Labels of single voxels."""


class AutoModelForCharmClassification(AutoTaskModel):
    """Charm heads."""


class AutoModelForMomentumRegression(AutoTaskModel):
    """Visible, jet and lepton momentum heads."""


class AutoModelForEventReconstruction(AutoTaskModel):
    """All quantities of an event jointly."""


def register_heads(family: Family) -> None:
    """Tell the Auto classes here what a family has; done for all registered ones."""
    names = family.names()
    for auto in _AUTO_CLASSES:
        if heads := tuple(StandIn(family, head) for head in auto.heads if head in names):
            auto.register(family.config, heads, exist_ok=True)


for _family in registered_families():
    register_heads(_family)
