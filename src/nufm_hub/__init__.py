"""Pretrained sparse multimodal encoders for neutrino detectors: load one, fine-tune it on your own detector, publish it."""

from __future__ import annotations

from importlib.metadata import version

from . import models
from .lazy import lazy_names

__version__ = version("nufm-hub")

# Public name -> module; imported when first used, so that `import nufm_hub` is quick and touches no network.
_PUBLIC = {
    "DetectorSpec": "detectors",
    "load_detector": "detectors",
    "Event": "events",
    "EventDataset": "events",
    "Voxels": "events",
    "read_events": "events",
    "write_events": "events",
    "sample_path": "events.samples",
    **dict.fromkeys(models.__all__, "models"),
    "EventParticlePipeline": "pipelines",
    "FlavourPipeline": "pipelines",
    "ParticlePipeline": "pipelines",
    "VertexPipeline": "pipelines",
    "checkpoint_path": "checkpoints",
    "list_checkpoints": "checkpoints",
    "train": "training",
    "TransferReport": "transfer",
    "transfer_encoder": "transfer",
}

__all__ = sorted(_PUBLIC)


__getattr__ = lazy_names(__name__, _PUBLIC)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
