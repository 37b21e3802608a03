"""The NuFM family: configuration, models, processor."""

from .configuration_nufm import NuFMConfig
from .modeling_nufm import (
    NuFMForFlavourClassification,
    NuFMForParticleID,
    NuFMForVertexRegression,
    NuFMHeadOutput,
    NuFMModel,
    NuFMModelOutput,
    NuFMPreTrainedModel,
)
from .particles_nufm import NuFMForEventParticleID
from .pretraining_nufm import NuFMForPreTraining, NuFMForPreTrainingOutput
from .processing_nufm import NuFMProcessor
from .reconstruction_nufm import NuFMForCharmClassification, NuFMForEventReconstruction, NuFMForMomentumRegression, NuFMReconstructionOutput
from .voxels_nufm import NuFMForVoxelClassification, NuFMVoxelOutput

__all__ = [
    "NuFMConfig",
    "NuFMForCharmClassification",
    "NuFMForEventParticleID",
    "NuFMForEventReconstruction",
    "NuFMForFlavourClassification",
    "NuFMForMomentumRegression",
    "NuFMForParticleID",
    "NuFMForPreTraining",
    "NuFMForPreTrainingOutput",
    "NuFMForVertexRegression",
    "NuFMForVoxelClassification",
    "NuFMHeadOutput",
    "NuFMModel",
    "NuFMModelOutput",
    "NuFMPreTrainedModel",
    "NuFMProcessor",
    "NuFMReconstructionOutput",
    "NuFMVoxelOutput",
]
