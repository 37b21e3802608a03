"""Models. Importing this registers NuFM with transformers' `AutoConfig`, `AutoModel`
and `AutoFeatureExtractor`, and with the Auto classes here."""

from .auto import AutoModelForFlavourClassification, AutoModelForParticleID, AutoModelForVertexRegression, AutoModelForVoxelClassification
from .nufm import (
    NuFMConfig,
    NuFMForFlavourClassification,
    NuFMForParticleID,
    NuFMForPreTraining,
    NuFMForVertexRegression,
    NuFMForVoxelClassification,
    NuFMModel,
    NuFMProcessor,
)

__all__ = [
    "AutoModelForFlavourClassification",
    "AutoModelForParticleID",
    "AutoModelForVertexRegression",
    "AutoModelForVoxelClassification",
    "NuFMConfig",
    "NuFMForFlavourClassification",
    "NuFMForParticleID",
    "NuFMForPreTraining",
    "NuFMForVertexRegression",
    "NuFMForVoxelClassification",
    "NuFMModel",
    "NuFMProcessor",
]
