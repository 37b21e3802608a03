"""Bring your own detector: describe it in a JSON file, transfer a pretrained encoder to it, fine-tune, save, reload, publish.

    python examples/new_detector.py                                # on a CPU, without a network
    python examples/new_detector.py --push my-name/gasbox-tracks   # and publish it (log in with `hf auth login` first)

The package knows nothing of the detector here; replace `DETECTOR` and `make_event` by your own, and the rest stays as it is.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import HfApi
from transformers import Trainer, TrainingArguments, set_seed

from nufm_hub import (
    AutoModelForParticleID,
    Event,
    EventDataset,
    NuFMForParticleID,
    NuFMProcessor,
    Voxels,
    load_detector,
    transfer_encoder,
    write_events,
)
from nufm_hub.training.data import EventCollator
from nufm_hub.training.optimiser import parameter_groups
from nufm_hub.transfer import WarmUpNewWeights

# A gas chamber with 15 mm voxels that measure energy and time, and light sensors on one wall. Lengths in mm, energies in MeV.
DETECTOR = {
    "name": "gasbox",
    "description": "Gas chamber with pixel read-out and a wall of light sensors.",
    "event_labels": {"particle": ["track", "shower"]},
    "branches": [
        {
            "kind": "voxels", "name": "pixels", "shape": [24, 24, 32], "voxel_size": [15, 15, 15], "origin": [-180, -180, 0],
            "patch": [6, 6, 8], "window": [2, 2, 2], "channels": ["energy", "time"],
        },
        {"kind": "image", "name": "light", "shape": [4, 4]},
    ],
}  # fmt: skip


def make_event(rng: np.random.Generator, index: int) -> Event:
    """A straight track of even energy, or a shower that widens along its axis."""
    shower = index % 2
    steps = np.arange(0, 28, 0.25)
    direction = rng.normal(0, 0.15, 2)
    points = np.column_stack([rng.uniform(8, 16, 2) + direction * steps[:, None], steps])
    energy = rng.gamma(4, 0.5, len(steps))
    if shower:
        points = points.repeat(4, axis=0)
        points[:, :2] += rng.normal(0, 0.12 * (points[:, 2:] + 1))
        energy = rng.exponential(2, len(points))
    inside = ((points >= 0) & (points < (24, 24, 32))).all(axis=1)
    voxels, of_point = np.unique(points[inside].astype(np.int64), axis=0, return_inverse=True)
    deposits = np.bincount(of_point.ravel(), energy[inside])
    light = np.histogram2d(points[inside, 0], points[inside, 1], bins=4, range=[(0, 24), (0, 24)], weights=energy[inside])[0]
    return Event(
        detector="gasbox",
        voxels={"pixels": Voxels(voxels, np.column_stack([deposits, 0.1 * voxels[:, 2] + rng.normal(0, 0.05, len(voxels))]))},
        images={"light": light},
        truth={"particle": shower},
        provenance={"generator": "gasbox toy", "seed": 7, "index": index},
    )


def accuracy(model: torch.nn.Module, processor: NuFMProcessor, events: EventDataset) -> float:
    batch = processor([events[i] for i in range(len(events))], labels="particle")
    labels = batch.pop("labels")
    with torch.inference_mode():
        return (model.eval()(**batch).logits.argmax(-1) == labels).float().mean().item()


def main(source: str, out: Path, steps: int, push: str | None) -> float:
    set_seed(7)
    # 1. the detector is a JSON file; its events are a parquet file
    out.mkdir(parents=True)
    (out / "gasbox.json").write_text(json.dumps(DETECTOR, indent=1))
    detector = load_detector(out / "gasbox.json")
    rng = np.random.default_rng(7)
    for name, count in (("train", 240), ("test", 100)):
        write_events((make_event(rng, i) for i in range(count)), out / f"{name}.parquet", detector)
    train, test = (EventDataset(out / f"{name}.parquet") for name in ("train", "test"))

    # 2. statistics of the inputs, and the encoder
    processor = NuFMProcessor.fit((train[i] for i in range(len(train))), detector)
    model, report = transfer_encoder(source, NuFMForParticleID, detector)
    print(report)

    # 3. fine-tuning: new weights alone at first, then everything, lower layers more slowly
    before = accuracy(model, processor, test)
    Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(out / "run"), max_steps=steps, per_device_train_batch_size=24, remove_unused_columns=False, save_strategy="no",
            lr_scheduler_type="cosine", warmup_steps=5, use_cpu=True, seed=7,
        ),
        train_dataset=train,
        data_collator=EventCollator(processor, labels="particle"),
        optimizers=(torch.optim.AdamW(parameter_groups(model, learning_rate=2e-3, weight_decay=0.05, layer_decay=0.85)), None),
        callbacks=[WarmUpNewWeights(report, steps // 5)],
    ).train()  # fmt: skip
    after = accuracy(model, processor, test)
    print(f"accuracy on {len(test)} held-out events: {before:.2f} before, {after:.2f} after {steps} steps")

    # 4. one folder with weights, processor, and a card that says what was carried over; add what you know
    folder = out / "model"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    with (folder / "README.md").open("a", encoding="utf-8") as card:
        card.write(f"\nAccuracy on {len(test)} held-out simulated events: {after:.2f}.\n")

    # 5. anybody can load it
    place = str(folder)
    if push is not None:
        HfApi().create_repo(push, exist_ok=True)
        HfApi().upload_folder(repo_id=push, folder_path=folder)
        place = push
    again = AutoModelForParticleID.from_pretrained(place)
    loaded = accuracy(again, NuFMProcessor.from_pretrained(place), test)
    assert loaded == after, "the reloaded model predicts something else"
    print(f"reloaded from {place}: {loaded:.2f}")
    return after


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", default="nufm/fasercal-mae-rel", help="bundled id, Hub id or folder of the pretrained model")
    parser.add_argument("--out", type=Path, default=Path("runs/new-detector"), help="folder to make")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--push", metavar="ID", help="publish under this id; HF_ENDPOINT says where")
    arguments = parser.parse_args()
    if arguments.out.exists():
        parser.error(f"{arguments.out} exists: remove it, or give another folder with --out")
    main(arguments.source, arguments.out, arguments.steps, arguments.push)
