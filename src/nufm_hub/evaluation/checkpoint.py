"""A checkpoint, events, and what comes out."""

from __future__ import annotations

import resource
import time
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from transformers import BatchFeature, PreTrainedModel

from nufm_hub import checkpoints
from nufm_hub.events import Event
from nufm_hub.models import AutoConfig, AutoProcessor
from nufm_hub.models.common import EventProcessor
from nufm_hub.provenance import git_revision, machine, package_versions
from nufm_hub.tasks import find_task, task_of

from .scores import Scores, save_predictions
from .source import is_held_out, open_events, packaged_sample, weights_sha256


def evaluate(
    checkpoint: str | Path,
    events: str | Path | Sequence[str | Path] | Sequence[Event] | None = None,
    batch_size: int = 32,
    seed: int = 0,
    num_resamples: int = 1000,
    absent: Sequence[str] = (),
    use_cpu: bool = False,
    predictions: str | Path | None = None,
) -> dict[str, Any]:
    """Metrics of a checkpoint of any architecture, with 95 % bootstrap intervals.

    Args:
        checkpoint: bundled id, folder, or id on the Hub.
        events: parquet file, folder, glob or a list of these; or events. A model of crops (`nufm_hub.events.crops`) also takes
            the whole events that the crops are made from. None: the packaged events of the detector.
        batch_size: events of one forward pass. Losses of pre-training checkpoints depend on it; nothing else does beyond rounding.
        seed: of the bootstrap, and of the masks of pre-training checkpoints.
        num_resamples: of the bootstrap; 0 for values without intervals.
        absent: branches to treat as absent in every event (`branch_mask` False).
        use_cpu: stay on the CPU even where there is a GPU.
        predictions: npz file to leave what was predicted of each event in, see `save_predictions`.

    Returns:
        JSON-able: `checkpoint` (id, or name of the folder), `architecture`, `weights_sha256`, `data` (detector, files, `events_sha256`,
        simulations), `held_out` (False when one of those simulations also made training or validation events; None when unknown),
        `num_events`, `batch_size`, `seed`, `num_resamples`, `absent`, `git_revision`, `versions`, `machine`, `device`, `events_per_second`
        (processor and model; on the CPU per second of processor time, threads added up, so that waiting for other work does not count),
        `peak_memory_mb` of the process, and `metrics` by quantity:

        - `flavour`, `charm`, `particle`: macro-AUROC, purity and efficiency, (balanced) accuracy, error-detection AUROC, calibration error;
        - `vertex`: distances in mm; `vertex_baseline`: those of always predicting the mean vertex of the training events;
        - `visible_momentum`, `jet_momentum`, `lepton_momentum`, `missing_pt`: relative residuals, see `kinematic_sizes`;
        - `missing_pt_above_1gev`: whether missing pT tells events with more than 1 GeV of it from the others;
        - each voxel label by its name: see `VoxelClassification`;
        - `pretraining`: losses with all masks drawn from `seed`, means over events.

    Raises:
        ValueError: a checkpoint without a head or with missing weights, events of another detector or without any truth that
            the head predicts, or an unknown branch.
    """
    folder = checkpoint_folder(checkpoint)
    model, processor = load_with_head(checkpoint, folder)
    spec = model.config.spec
    if unknown := set(absent) - {b.name for b in spec.branches}:
        raise ValueError(f"absent={sorted(unknown)}: {spec.name!r} has the branches {[b.name for b in spec.branches]}")
    present = torch.tensor([b.name not in absent for b in spec.branches])
    if not present.any():
        raise ValueError(f"absent={list(absent)} leaves no branch of {spec.name!r}")
    model.to(device := torch.device("cuda" if torch.cuda.is_available() and not use_cpu else "cpu"))
    task = task_of(model)
    options = {"generator": torch.Generator(device).manual_seed(seed)} if task.judged == "losses" else {}
    data, groups = open_events(packaged_sample(spec) if events is None else events, spec, task.grouped, folder)
    scores, seconds, count = Scores(task, processor), 0.0, 0
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    while group := list(islice(groups, batch_size)):
        started = clock()
        batch = [event for image in group for event in image]
        inputs = processor(batch, labels=None if task.judged == "events" else task.labels)
        if absent:
            inputs = without_branches(inputs, present)
        if task.grouped:
            inputs["particle_event"] = torch.tensor([i for i, image in enumerate(group) for _ in image])
        with torch.inference_mode():
            outputs = model(**inputs.to(device), **options)
        scores.add(outputs, batch, inputs.get("voxel_labels"))
        seconds += clock() - started
        count += len(batch)
    if not count:
        raise ValueError(f"there are no events to evaluate {checkpoint} on")
    metrics = scores.metrics(num_resamples, seed)
    if not metrics:
        raise ValueError(f"none of the {count} events has a truth that {checkpoint} ({type(model).__name__}) predicts")
    if predictions is not None:
        save_predictions(predictions, scores.arrays()[0])
    return {
        "checkpoint": checkpoint_name(checkpoint),
        "architecture": type(model).__name__,
        "weights_sha256": weights_sha256(folder),
        "data": {**data, "events": count},
        "held_out": is_held_out(folder, data["simulations"]),
        "num_events": count,
        "batch_size": batch_size,
        "seed": seed,
        "num_resamples": num_resamples,
        "absent": list(absent),
        "metrics": metrics,
        "git_revision": git_revision(),
        "versions": package_versions(),
        "machine": machine(),
        "device": device.type,
        "events_per_second": round(count / seconds, 2),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    }


def without_branches(inputs: Mapping[str, Any], present: torch.Tensor) -> BatchFeature:
    """Inputs of a model with the branches taken away where `present`, bool (branches,), is False.

    Raises:
        ValueError: models of this family do not tell an absent branch from an empty one.
    """
    if "branch_mask" not in inputs:
        raise ValueError("models of this family take no branch_mask: they cannot do without a branch of their detector")
    return BatchFeature({**inputs, "branch_mask": inputs["branch_mask"] & present})


def checkpoint_folder(checkpoint: str | Path) -> Path:
    """The files of a bundled id, a folder, or an id on the Hub.

    Raises:
        ValueError: there is no such checkpoint, or the Hub cannot be reached.
    """
    resolved = checkpoints.resolve(checkpoint)
    try:
        return Path(resolved if Path(resolved).is_dir() else snapshot_download(resolved))
    except OSError as error:
        raise ValueError(f"{checkpoint} is neither a folder nor the id of a checkpoint that can be fetched: {error}") from error


def checkpoint_name(checkpoint: str | Path) -> str:
    """An id as it is; of a folder its name, since paths of a machine do not belong into what is published."""
    return Path(checkpoint).resolve().name if Path(checkpoint).is_dir() else str(checkpoint)


def load_with_head(checkpoint: str | Path, folder: Path) -> tuple[PreTrainedModel, EventProcessor]:
    """Model, in evaluation mode, and processor from the files of a checkpoint.

    Raises:
        ValueError: the checkpoint has no head, or weights are missing.
    """
    config = AutoConfig.from_pretrained(folder)
    name = (config.architectures or ["(nothing)"])[0]
    if (task := find_task(name, type(config))) is None:
        raise ValueError(f"{checkpoint} holds a {name}, which predicts nothing: give a checkpoint with a head")
    model, info = task.model_class(type(config)).from_pretrained(folder, output_loading_info=True)
    if info["missing_keys"] or info["mismatched_keys"]:
        raise ValueError(f"{checkpoint} is incomplete: no weights of {name} named {sorted(info['missing_keys'])[:3]} ...; save it again")
    return model.eval(), AutoProcessor.from_pretrained(folder)
