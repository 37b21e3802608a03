"""The NuFM family: configuration, models, processor."""

from nufm_hub.lazy import lazy_names

_PUBLIC = {
    "NuFMConfig": "configuration_nufm",
    **dict.fromkeys(
        (
            "NuFMForCharmClassification",
            "NuFMForEventReconstruction",
            "NuFMForFlavourClassification",
            "NuFMForMomentumRegression",
            "NuFMForParticleID",
            "NuFMForPreTrainingOutput",
            "NuFMForVertexRegression",
            "NuFMHeadOutput",
            "NuFMInputs",
            "NuFMModel",
            "NuFMModelOutput",
            "NuFMPreTrainedModel",
            "NuFMReconstructionOutput",
            "NuFMVoxelOutput",
        ),
        "modeling_nufm",
    ),
    "NuFMForEventParticleID": "particles_nufm",
    "NuFMForPreTraining": "pretraining_nufm",
    "NuFMForVoxelClassification": "voxels_nufm",
    "NuFMProcessor": "processing_nufm",
}

__all__ = sorted(_PUBLIC)

# The configuration is read long before the models are, see `nufm_hub.models.families`.
__getattr__ = lazy_names(__name__, _PUBLIC)
