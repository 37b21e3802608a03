"""Models. Importing this registers NuFM with transformers' `AutoConfig`, `AutoModel`
and `AutoFeatureExtractor`, and with the Auto classes here."""

from .auto import (
    AutoModelForCharmClassification,
    AutoModelForEventReconstruction,
    AutoModelForFlavourClassification,
    AutoModelForMomentumRegression,
    AutoModelForParticleID,
    AutoModelForVertexRegression,
    AutoModelForVoxelClassification,
)
from .nufm import (
    NuFMConfig,
    NuFMForCharmClassification,
    NuFMForEventParticleID,
    NuFMForEventReconstruction,
    NuFMForFlavourClassification,
    NuFMForMomentumRegression,
    NuFMForParticleID,
    NuFMForPreTraining,
    NuFMForVertexRegression,
    NuFMForVoxelClassification,
    NuFMModel,
    NuFMProcessor,
)

__all__ = [
    "AutoModelForCharmClassification",
    "AutoModelForEventReconstruction",
    "AutoModelForFlavourClassification",
    "AutoModelForMomentumRegression",
    "AutoModelForParticleID",
    "AutoModelForVertexRegression",
    "AutoModelForVoxelClassification",
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
]
