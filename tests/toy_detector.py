"""A toy detector whose events can be learnt in seconds: the class is where the hits are, the vertex is the first hit, and the momenta follow it."""

import numpy as np

from nufm_hub.detectors import DetectorSpec
from nufm_hub.events import Event, Voxels

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
