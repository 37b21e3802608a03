"""Registration with transformers: idempotent, and done by importing the models."""

import importlib
import subprocess
import sys

import pytest
from transformers import AutoConfig, AutoModel, AutoModelForPreTraining

from nufm_hub.models import AutoModelForFlavourClassification, AutoModelForParticleID, AutoModelForVertexRegression, NuFMConfig, auto


def test_registering_again_changes_nothing():
    importlib.reload(auto)
    assert AutoConfig.for_model("nufm").model_type == "nufm"


def test_from_config(toy):
    config = toy.config()
    assert type(AutoModel.from_config(config)).__name__ == "NuFMModel"
    for auto_class, name in (
        (AutoModelForPreTraining, "NuFMForPreTraining"),
        (AutoModelForFlavourClassification, "NuFMForFlavourClassification"),
        (AutoModelForVertexRegression, "NuFMForVertexRegression"),
        (AutoModelForParticleID, "NuFMForParticleID"),
    ):
        assert type(auto_class.from_config(config)).__name__ == name


def test_a_foreign_configuration_is_refused():
    with pytest.raises(ValueError, match="NuFMConfig"):
        AutoModelForFlavourClassification.from_config(AutoConfig.for_model("bert"))


def test_importing_models_registers(tmp_path):
    NuFMConfig().save_pretrained(tmp_path)
    code = f"import nufm_hub.models, transformers; print(type(transformers.AutoConfig.from_pretrained({str(tmp_path)!r})).__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "NuFMConfig"
