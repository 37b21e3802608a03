"""Events to evaluate on: where they came from, in what portions they go through a model, and whether a checkpoint has seen them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

from nufm_hub import checkpoints
from nufm_hub.detectors import DetectorSpec
from nufm_hub.events import Event, list_shards, read_detector, read_events
from nufm_hub.events.crop_files import CropSettings
from nufm_hub.events.crops import MIN_VOXELS
from nufm_hub.events.samples import list_samples, sample_path
from nufm_hub.events.splits import group_key
from nufm_hub.files import sha256_of
from nufm_hub.provenance import simulations_of


def open_events(
    events: str | Path | Sequence[str | Path] | Sequence[Event], spec: DetectorSpec, as_images: bool, folder: Path
) -> tuple[dict[str, Any], Iterator[list[Event]]]:
    """A description of the events; and the events, those that go through the model together in one list.

    Whole events become crops as those that the checkpoint in `folder` was trained on.
    """
    if not isinstance(events, (str, Path)) and events and isinstance(events[0], Event):
        data = {"detector": spec.name, "detector_hash": spec.hash, "files": [], "events_sha256": None, "simulations": []}
        return data, _grouped(events, as_images)
    files = [Path(f) for f in list_shards(events)]
    held = read_detector(files[0])
    data = {
        "detector": held.name,
        "detector_hash": held.hash,
        "files": [f.name for f in files],
        "events_sha256": sha256_of(files),
        "simulations": [{k: v for k, v in record.items() if k not in ("shards", "summary")} for record in simulations_of(files)],
    }
    stream = (event for file in files for event in read_events(file))
    if held.hash == spec.hash:
        return data, _grouped(stream, as_images)
    if (settings := crop_settings(held, spec, folder)) is None:
        raise ValueError(f"the checkpoint reads detector {spec.name!r} (hash {spec.hash}), the events are of {held.name!r} (hash {held.hash})")
    cropped = (crops for event in stream if (crops := list(settings.crops(event, held, spec))))
    return data, cropped if as_images else ([crop] for crops in cropped for crop in crops)


def packaged_sample(spec: DetectorSpec) -> Path:
    """The packaged events that a model of this detector, or of crops from it, can be evaluated on.

    Raises:
        ValueError: there are none.
    """
    for name in list_samples():
        held = read_detector(path := sample_path(name))
        if held.hash == spec.hash or crop_settings(held, spec):
            return path
    raise ValueError(f"no events of detector {spec.name!r} come with the package (only of {list_samples()}): give some")


def _grouped(events: Iterable[Event], as_images: bool) -> Iterator[list[Event]]:
    """Single events, or the crops of an event, which follow one another."""
    if not as_images:
        return ([event] for event in events)
    return (list(crops) for _, crops in groupby(events, key=lambda event: group_key(event, "event")))


def crop_settings(detector: DetectorSpec, wanted: DetectorSpec, folder: Path | None = None) -> CropSettings | None:
    """How events of a detector become those of a detector of crops; None where they do not.

    The detector of crops does not say how small a particle may be: as small as in the training of the checkpoint in `folder`, where that is
    recorded, else as usual for the detector.
    """
    branch = wanted.voxel_branches[0]
    if "particle" in detector.event_labels:
        for fit in ("clamp", "scale"):
            for features in (True, False):
                settings = CropSettings(branch.shape, branch.patch, branch.window, fit, "event", features)
                if settings.detector(detector).hash == wanted.hash:
                    return replace(settings, min_voxels=_min_voxels(detector, folder))
    return None


def _min_voxels(detector: DetectorSpec, folder: Path | None) -> int:
    recorded = [s["crops"]["min_voxels"] for s in (_training(folder, "train") if folder else ()) if "crops" in s]
    if recorded:
        return recorded[0]
    try:
        return CropSettings.load(detector.name).min_voxels
    except ValueError:  # no detector of the package
        return MIN_VOXELS


def _record(folder: Path) -> dict[str, Any]:
    path = folder / "training.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _training(folder: Path, *parts: str) -> list[dict[str, Any]]:
    """The simulations behind the events of a checkpoint's training, by its record; `parts` of `train` and `validation`."""
    data = _record(folder).get("data", {})
    return [simulation for part in parts for simulation in (data.get(part) or {}).get("simulations", [])]


def is_held_out(folder: Path, simulations: list[dict[str, Any]]) -> bool | None:
    """Whether a checkpoint, and those it started from, have seen none of these events in training or validation.

    Args:
        folder: of the checkpoint, with its `training.json`.
        simulations: how the events were made, records of `provenance.json`.

    Returns:
        False when a simulation of theirs also made training or validation events, unless both are different parts of one split; None where that
        cannot be told: something is not recorded, or the start of the training is not among the bundled checkpoints.
    """
    seen, complete = _history(folder)
    if not seen or not all(map(_runs, simulations)) or not simulations:
        return None
    apart = [_are_apart(one, other) for one in seen for other in simulations if _runs(one) & _runs(other)]
    return False if False in apart else None if None in apart or not complete else True


def _are_apart(one: dict[str, Any], other: dict[str, Any]) -> bool | None:
    """Whether events that were made of the same simulation are different ones; None where their record does not say which part they are."""
    if "split" not in one or one["split"] != other.get("split"):
        return False
    return one["part"] != other["part"] if "part" in one and "part" in other else None


def _history(folder: Path) -> tuple[list[dict[str, Any]], bool]:
    """Simulations behind training and validation of a checkpoint and of those before it, and whether that is all of them."""
    seen, record = _training(folder, "train", "validation"), _record(folder)
    if (source := record.get("source")) is None:
        return seen, bool(record)
    if source not in checkpoints.list_checkpoints():
        return seen, False
    start = checkpoints.checkpoint_path(source)
    before, complete = _history(start)
    return seen + before, complete and record.get("source_sha256") == weights_sha256(start)


def weights_sha256(folder: Path) -> str:
    """SHA-256 of `model.safetensors`; of a sharded file, of the shards in order."""
    return sha256_of(sorted(folder.glob("*.safetensors")))


def _runs(simulation: dict[str, Any]) -> set[tuple[str, int]]:
    """Name and seed of a simulation, or of those that crops were made from."""
    return {(s["simulation"], s["seed"]) for s in simulation.get("source", [simulation]) if "seed" in s}
