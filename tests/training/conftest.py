"""A toy detector whose events can be learnt in seconds: the class is where the hits are, the vertex is the first hit, and the momenta follow it."""

from pathlib import Path

import numpy as np
import pytest

from nufm_hub.detectors import DetectorSpec
from nufm_hub.events import Event, Voxels, write_events

SPEC = DetectorSpec.from_dict(
    {
        "name": "toy",
        "event_labels": {"flavour": ["low", "high"]},
        "branches": [
            {
                "kind": "voxels", "name": "cubes", "shape": [8, 8, 16], "voxel_size": [1, 1, 1], "origin": [-4, -4, 0],
                "patch": [4, 4, 4], "window": [2, 2, 2], "labels": [{"name": "ghost", "classes": ["ghost"]}],
            },
            {"kind": "image", "name": "towers", "shape": [2, 2]},
            {"kind": "tracks", "name": "muon", "features": ["q", "px", "py", "pz"], "max_count": 2},
        ],
    }
)  # fmt: skip
SMALL = {
    "hidden_size": 24, "num_attention_heads": 2, "window_depths": [1], "fusion_depth": 1,
    "decoder_hidden_size": 12, "decoder_num_attention_heads": 2, "decoder_depth": 1,
}  # fmt: skip
RECIPE = {"preset": "nano", "model": SMALL, "epochs": 4, "batch_size": 8, "micro_batch_size": 8, "base_learning_rate": 0.1, "warmup": 0.1}


def toy_event(rng: np.random.Generator, index: int) -> Event:
    flavour = index % 2
    start = np.array([*rng.integers(2, 6, 2), rng.integers(0, 4) + 8 * flavour])
    hits = np.unique(np.clip(start + rng.integers(0, (2, 2, 4), (12, 3)), 0, (7, 7, 15)), axis=0)
    is_cc, visible = index % 3 > 0, np.array([start[0] - 3.5, start[1] - 3.5, 100.0 + 20.0 * start[2]])
    return Event(
        "toy",
        {"cubes": Voxels(hits, rng.lognormal(0, 1, len(hits)), {"ghost": (hits[:, 0] // 2 % 2).astype(np.float32)})},
        {"towers": rng.lognormal(0, 1, (2, 2)).astype(np.float32)},
        {"muon": rng.normal(size=(index % 3, 4)).astype(np.float32)},
        {
            "flavour": flavour, "vertex": start + np.array([-3.5, -3.5, 0.5]), "is_cc": is_cc,
            "visible_momentum": visible, "jet_momentum": visible * [-0.5, 0.5, 0.5] if is_cc else visible,
        },
        provenance={"generator": "toy", "seed": 1, "file": "toy", "index": index},
    )  # fmt: skip


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
