"""Models. Importing this registers NuFM with transformers' `AutoConfig`, `AutoModel`
and `AutoFeatureExtractor`, and with the Auto classes here."""

from .auto import AutoModelForFlavourClassification, AutoModelForParticleID, AutoModelForVertexRegression
from .nufm import NuFMConfig, NuFMForFlavourClassification, NuFMForParticleID, NuFMForPreTraining, NuFMForVertexRegression, NuFMModel, NuFMProcessor

__all__ = [
    "AutoModelForFlavourClassification",
    "AutoModelForParticleID",
    "AutoModelForVertexRegression",
    "NuFMConfig",
    "NuFMForFlavourClassification",
    "NuFMForParticleID",
    "NuFMForPreTraining",
    "NuFMForVertexRegression",
    "NuFMModel",
    "NuFMProcessor",
]
