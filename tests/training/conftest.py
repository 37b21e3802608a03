"""Recipes and files of the toy detector."""

from pathlib import Path

import numpy as np
import pytest
from toy_detector import SPEC, toy_event

from nufm_hub.events import write_events

SMALL = {
    "hidden_size": 24, "num_attention_heads": 2, "window_depths": [1], "fusion_depth": 1,
    "decoder_hidden_size": 12, "decoder_num_attention_heads": 2, "decoder_depth": 1,
}  # fmt: skip
RECIPE = {"preset": "nano", "model": SMALL, "epochs": 4, "batch_size": 8, "micro_batch_size": 8, "base_learning_rate": 0.1, "warmup": 0.1}


@pytest.fixture(scope="session")
def recipe() -> dict:
    return RECIPE


@pytest.fixture(scope="session")
def toy_files(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("toy")
    for seed, (name, count) in enumerate({"train": 64, "validation": 40}.items()):
        rng = np.random.default_rng(seed)
        write_events((toy_event(rng, i) for i in range(count)), folder / f"{name}.parquet", SPEC)
    return {name: folder / f"{name}.parquet" for name in ("train", "validation")}


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """Arrow copies of the toy events go to a temporary folder."""
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
