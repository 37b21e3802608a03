"""A toy chamber of argon: straight lines and balls with as many voxels and as much energy, and sizes of a model that tells them apart."""

import numpy as np

from nufm_hub.detectors import DetectorSpec
from nufm_hub.events import Event, Voxels
from nufm_hub.events.crop_files import CropSettings

SPEC = DetectorSpec.from_dict(
    {
        "name": "chamber",
        "event_labels": {"particle": ["track", "blob"]},
        "branches": [
            {
                "kind": "voxels", "name": "lar", "shape": [32, 32, 32], "voxel_size": [3, 3, 3], "origin": [0, 0, 0],
                "patch": [4, 4, 4], "window": [2, 2, 2], "instances": ["particle"],
            },
        ],
    }
)  # fmt: skip
CROPS = CropSettings(shape=(16, 16, 16), patch=(4, 4, 4), window=(2, 2, 2), fit="scale", group_by="event")
SIZES = {
    "hidden_size": 24, "num_attention_heads": 2, "window_depths": [1, 1], "fusion_depth": 1,
    "decoder_hidden_size": 12, "decoder_num_attention_heads": 2, "decoder_depth": 1,
}  # fmt: skip
# The source's window layers of two branches; a model from scratch has those of the one branch here.
RECIPE = {
    "preset": "nano", "model": {"head_init_std": 0.02}, "epochs": 12, "batch_size": 4, "micro_batch_size": 4, "base_learning_rate": 0.3,
    "warmup": 0.1, "augmentation": None,
}  # fmt: skip


def image(rng: np.random.Generator, index: int) -> Event:
    """Two to four particles with the same number of voxels and energy: straight lines, and balls."""
    parts, labels = [], []
    for _ in range(rng.integers(2, 5)):
        labels.append(int(rng.integers(2)))
        steps = rng.normal(0, 1.3, (12, 3)) if labels[-1] else np.outer(np.arange(12) - 6, rng.choice([-1, 1], 3))
        parts.append(np.unique(np.rint(rng.uniform(8, 24, 3) + steps).astype(int), axis=0))
    coordinates, rows = np.unique(np.concatenate(parts), axis=0, return_index=True)
    owner = np.repeat(np.arange(len(parts)), [len(p) for p in parts])[rows]
    return Event(
        "chamber",
        {"lar": Voxels(coordinates, rng.lognormal(0, 0.3, len(rows)), instances={"particle": owner})},
        particles={"id": np.arange(len(parts)), "label": np.array(labels)},
        provenance={"generator": "toy", "seed": 1, "index": index},
    )
