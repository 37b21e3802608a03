"""The registry of model families: a line each. Nothing of a family is imported before it is used.

A family is a module whose `__all__` holds, with one prefix, its configuration, its processor, its encoder and its heads: `NuFMConfig`,
`NuFMProcessor`, `NuFMModel`, `NuFMForFlavourClassification`, ... `docs/families.md` says what they must keep to.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from types import ModuleType
from typing import TYPE_CHECKING, Any

from wrapt import register_post_import_hook

if TYPE_CHECKING:
    from .common import DetectorConfig

DEFAULT_FAMILY = "nufm"


@dataclass(frozen=True)
class Family:
    """Where the classes of a family are.

    Attributes:
        model_type: name of the family, as in the `config.json` of its checkpoints.
        module: import name of the module that has the classes; those it has are named in its `__all__`.
        prefix: what all their names start with.
    """

    model_type: str
    module: str
    prefix: str

    def names(self) -> frozenset[str]:
        """Names of its classes, without the prefix: `"Config"`, `"Model"`, `"ForFlavourClassification"`, ..."""
        return frozenset(name.removeprefix(self.prefix) for name in import_module(self.module).__all__ if name.startswith(self.prefix))

    def get(self, name: str) -> Any:
        """A class by its name without the prefix."""
        return getattr(import_module(self.module), self.prefix + name)

    @property
    def config(self) -> type[DetectorConfig]:
        return self.get("Config")


_FAMILIES = {family.model_type: family for family in (Family(DEFAULT_FAMILY, "nufm_hub.models.nufm", "NuFM"),)}


def registered_families() -> list[Family]:
    """Those whose classes the Auto classes know."""
    return list(_FAMILIES.values())


def known_families() -> list[Family]:
    """The families that are registered, and those that installed packages name as entry points of the group `nufm_hub.families`.

    Raises:
        ValueError: an installed package gives another family the name of one.
    """
    known = dict(_FAMILIES)
    for entry in entry_points(group="nufm_hub.families"):
        family = Family(entry.name, entry.module, entry.attr)
        if known.setdefault(family.model_type, family) != family:
            raise ValueError(
                f"two families are called {family.model_type!r}: that of {known[family.model_type].module} and that of {family.module}, which is "
                "named by an installed package: rename or uninstall one"
            )
    return sorted(known.values(), key=lambda family: family.model_type)


def list_families() -> list[str]:
    """Names of `known_families`."""
    return [family.model_type for family in known_families()]


def get_family(model_type: str | None, where: str = "") -> Family:
    """A family by name. One that an installed package names is registered when it is first asked for.

    Args:
        model_type: its name.
        where: what says so, for the message: the checkpoint or recipe.

    Raises:
        ValueError: this version of the package has no such family.
    """
    if model_type in _FAMILIES:
        return _FAMILIES[model_type]
    for family in known_families():
        if family.model_type == model_type:
            return register_family(family.model_type, family.module, family.prefix)
    start = f"{where} is of the family" if where else "unknown family"
    raise ValueError(
        f"{start} {model_type!r}, which this version of nufm_hub does not know: it has {list_families()}. Install the version (or import the "
        "package) that brings it, or register it with nufm_hub.register_family"
    )


def family_of(config_class: type) -> Family:
    """The family of a configuration class.

    Raises:
        ValueError: it is none of a registered family.
    """
    return get_family(getattr(config_class, "model_type", None), config_class.__name__)


def register_family(model_type: str, module: str, prefix: str) -> Family:
    """Make a family of models known to the Auto classes, here and in transformers, and so to everything else. Again the same: nothing.

    Args:
        model_type: of its configuration class.
        module: import name of the module that has its classes, see `Family`.
        prefix: what their names start with.

    Raises:
        ValueError: another family, or a model of transformers, has this name, or another family the prefix; configuration, processor or encoder
            are missing from the module's `__all__`; or the configuration class has another `model_type`.
    """
    family = Family(model_type, module, prefix)
    if model_type in _FAMILIES:
        if _FAMILIES[model_type] != family:
            raise ValueError(f"the name {model_type!r} is taken by the family in {_FAMILIES[model_type].module}: choose another model_type")
        return family
    if taken := [other.model_type for other in _FAMILIES.values() if other.prefix == prefix]:
        raise ValueError(f"the prefix {prefix!r} is that of the family {taken[0]!r}, and processors are told apart by it: choose another one")
    if absent := [prefix + name for name in ("Config", "Processor", "Model") if name not in family.names()]:
        raise ValueError(f"the family {model_type!r} is incomplete: {module}.__all__ does not name {absent}")
    if (own := family.config.model_type) != model_type:
        raise ValueError(f"{family.config.__name__}.model_type is {own!r}, not {model_type!r}: register it under its own name")
    from transformers import CONFIG_MAPPING

    from .auto import register_heads

    if model_type in CONFIG_MAPPING:
        raise ValueError(f"the name {model_type!r} is taken by a model of transformers: choose another model_type")
    _FAMILIES[model_type] = family
    register_heads(family)
    _register_with_transformers(family)
    return family


class StandIn:
    """Stands in for a class of a family in the mappings of Auto classes, and imports it when it is first used."""

    def __init__(self, family: Family, name: str) -> None:
        self.__name__, self.__module__ = family.prefix + name, family.module
        self.config_class, self._import = family.config, lambda: family.get(name)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._import(), name)


def _register_with_transformers(family: Family) -> None:
    """Tell the Auto classes of transformers as soon as they are imported. They can be in the middle of the library's own import then, so that
    nothing but the configuration may be."""

    def configuration(module: ModuleType) -> None:
        module.AutoConfig.register(family.model_type, family.config, exist_ok=True)

    def models(module: ModuleType) -> None:
        module.AutoModel.register(family.config, StandIn(family, "Model"), exist_ok=True)
        if "ForPreTraining" in family.names():
            module.AutoModelForPreTraining.register(family.config, StandIn(family, "ForPreTraining"), exist_ok=True)

    def processor(module: ModuleType) -> None:
        module.AutoFeatureExtractor.register(family.config, StandIn(family, "Processor"), exist_ok=True)

    for hook, name in ((configuration, "configuration_auto"), (models, "modeling_auto"), (processor, "feature_extraction_auto")):
        register_post_import_hook(hook, f"transformers.models.auto.{name}")


for _family in _FAMILIES.values():
    _register_with_transformers(_family)
