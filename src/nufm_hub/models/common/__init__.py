"""What every family of models shares: configuration, loading, processor, heads, and objectives."""

from nufm_hub.lazy import lazy_names

_PUBLIC = {
    **dict.fromkeys(("DetectorConfig", "SparseConfig"), "configuration"),
    "DetectorModel": "modeling",
    "EventProcessor": "processing",
    **dict.fromkeys(("EncoderOutput", "HeadOutput", "PreTrainingOutput", "ReconstructionOutput", "VoxelOutput"), "outputs"),
    **dict.fromkeys(
        ("CharmClassification", "FlavourClassification", "ParticleID", "VertexRegression"),
        "heads",
    ),
    **dict.fromkeys(("EventReconstruction", "MomentumRegression"), "reconstruction"),
    "VoxelClassification": "voxels",
}

__all__ = sorted(_PUBLIC)

# A family's configuration is read long before its models are, see `nufm_hub.models.families`.
__getattr__ = lazy_names(__name__, _PUBLIC)
