"""Auto classes: `AutoModelForFlavourClassification.from_pretrained(id_or_folder)` picks the model that fits the checkpoint.

The only file that touches private names of transformers (two of them).
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForPreTraining
from transformers.models.auto.auto_factory import _BaseAutoModelClass, _LazyAutoMapping
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from nufm_hub.checkpoints import resolve

from .nufm.configuration_nufm import NuFMConfig, explicit_revision
from .nufm.modeling_nufm import (
    NuFMForFlavourClassification,
    NuFMForParticleID,
    NuFMForVertexRegression,
    NuFMModel,
    saved_as,
    with_own_classes,
)
from .nufm.particles_nufm import NuFMForEventParticleID
from .nufm.pretraining_nufm import NuFMForPreTraining
from .nufm.processing_nufm import NuFMProcessor
from .nufm.reconstruction_nufm import NuFMForCharmClassification, NuFMForEventReconstruction, NuFMForMomentumRegression
from .nufm.voxels_nufm import NuFMForVoxelClassification


class _AutoTaskModel(_BaseAutoModelClass):
    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args: Any, **kwargs: Any):
        """As in the library; an id of a checkpoint that comes with the package is read from there. Heads and classes of other tasks are not taken."""
        folder = resolve(pretrained_model_name_or_path, revision=explicit_revision(kwargs))
        own = cls._model_mapping[NuFMConfig]
        if saved_as(folder, kwargs) not in (None, *(model.__name__ for model in (own if isinstance(own, tuple) else (own,)))):
            kwargs = with_own_classes(kwargs)
        loaded = super().from_pretrained(folder, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.config.name_or_path = model.name_or_path = str(pretrained_model_name_or_path)
        return loaded


class AutoModelForFlavourClassification(_AutoTaskModel):
    """Neutrino flavour heads."""

    _model_mapping = _LazyAutoMapping(CONFIG_MAPPING_NAMES, OrderedDict())


class AutoModelForVertexRegression(_AutoTaskModel):
    """Vertex heads."""

    _model_mapping = _LazyAutoMapping(CONFIG_MAPPING_NAMES, OrderedDict())


class AutoModelForParticleID(_AutoTaskModel):
    """Heads of particles: `NuFMForEventParticleID` where the checkpoint was saved as one, else `NuFMForParticleID`."""

    _model_mapping = _LazyAutoMapping(CONFIG_MAPPING_NAMES, OrderedDict())


class AutoModelForVoxelClassification(_AutoTaskModel):
    """Labels of single voxels."""

    _model_mapping = _LazyAutoMapping(CONFIG_MAPPING_NAMES, OrderedDict())


class AutoModelForCharmClassification(_AutoTaskModel):
    """Charm heads."""

    _model_mapping = _LazyAutoMapping(CONFIG_MAPPING_NAMES, OrderedDict())


class AutoModelForMomentumRegression(_AutoTaskModel):
    """Visible, jet and lepton momentum heads."""

    _model_mapping = _LazyAutoMapping(CONFIG_MAPPING_NAMES, OrderedDict())


class AutoModelForEventReconstruction(_AutoTaskModel):
    """All quantities of an event jointly."""

    _model_mapping = _LazyAutoMapping(CONFIG_MAPPING_NAMES, OrderedDict())


AutoConfig.register(NuFMConfig.model_type, NuFMConfig, exist_ok=True)
AutoModel.register(NuFMConfig, NuFMModel, exist_ok=True)
AutoModelForPreTraining.register(NuFMConfig, NuFMForPreTraining, exist_ok=True)
AutoFeatureExtractor.register(NuFMConfig, NuFMProcessor, exist_ok=True)
AutoModelForFlavourClassification.register(NuFMConfig, NuFMForFlavourClassification, exist_ok=True)
AutoModelForVertexRegression.register(NuFMConfig, NuFMForVertexRegression, exist_ok=True)
AutoModelForParticleID.register(NuFMConfig, (NuFMForParticleID, NuFMForEventParticleID), exist_ok=True)
AutoModelForVoxelClassification.register(NuFMConfig, NuFMForVoxelClassification, exist_ok=True)
AutoModelForCharmClassification.register(NuFMConfig, NuFMForCharmClassification, exist_ok=True)
AutoModelForMomentumRegression.register(NuFMConfig, NuFMForMomentumRegression, exist_ok=True)
AutoModelForEventReconstruction.register(NuFMConfig, NuFMForEventReconstruction, exist_ok=True)
