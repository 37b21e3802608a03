"""The toy detector, events and recipe of the training tests."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from nufm_hub.events import write_events

_PATH = Path(__file__).parents[1] / "training" / "conftest.py"
_SPEC = importlib.util.spec_from_file_location("toy", _PATH)
toy = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(toy)


@pytest.fixture(scope="session")
def recipe() -> dict:
    return toy.RECIPE


@pytest.fixture(scope="session")
def toy_files(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("toy")
    for seed, (name, count) in enumerate({"train": 48, "validation": 20, "test": 24}.items()):
        rng = np.random.default_rng(seed)
        write_events((toy.toy_event(rng, i) for i in range(count)), folder / f"{name}.parquet", toy.SPEC)
    return {name: folder / f"{name}.parquet" for name in ("train", "validation", "test")}


own_cache = toy.own_cache
