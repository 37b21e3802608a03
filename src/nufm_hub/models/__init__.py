"""Models, by family; `auto` finds the one that fits a checkpoint. Importing this tells transformers' Auto classes of them, and imports none."""

from nufm_hub.lazy import lazy_names

from .families import list_families as list_families
from .families import register_family as register_family

_PUBLIC = {
    **dict.fromkeys(
        (
            "AutoConfig",
            "AutoModel",
            "AutoModelForCharmClassification",
            "AutoModelForEventParticleID",
            "AutoModelForEventReconstruction",
            "AutoModelForFlavourClassification",
            "AutoModelForMomentumRegression",
            "AutoModelForParticleID",
            "AutoModelForPreTraining",
            "AutoModelForVertexRegression",
            "AutoModelForVoxelClassification",
            "AutoProcessor",
        ),
        "auto",
    ),
    **dict.fromkeys(
        (
            "NuFMConfig",
            "NuFMForCharmClassification",
            "NuFMForEventParticleID",
            "NuFMForEventReconstruction",
            "NuFMForFlavourClassification",
            "NuFMForMomentumRegression",
            "NuFMForParticleID",
            "NuFMForPreTraining",
            "NuFMForVertexRegression",
            "NuFMForVoxelClassification",
            "NuFMModel",
            "NuFMProcessor",
        ),
        "nufm",
    ),
}

__all__ = sorted([*_PUBLIC, "list_families", "register_family"])

__getattr__ = lazy_names(__name__, _PUBLIC)
