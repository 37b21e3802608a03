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


def _training(folder: Path, *parts: str) -> list[dict[str, Any]]:
    """The simulations that the training events of a checkpoint came from, by its record; `parts` of `train` and `validation`."""
    if not (path := folder / "training.json").is_file():
        return []
    data = json.loads(path.read_text(encoding="utf-8")).get("data", {})
    return [simulation for part in parts for simulation in (data.get(part) or {}).get("simulations", [])]


def is_held_out(folder: Path, simulations: list[dict[str, Any]]) -> bool | None:
    """False when a simulation of these events also made training or validation events of the checkpoint, or of the one it started from."""
    trained_on = list(_training_simulations(folder))
    if not simulations or not trained_on:
        return None
    here = set().union(*map(_runs, simulations))
    shared = [simulation for simulation in trained_on if _runs(simulation) & here]
    # Parts of one simulation that was split cannot be told apart by its seed.
    return None if shared and all("split" in s for s in shared) else not shared


def _training_simulations(folder: Path) -> Iterator[dict[str, Any]]:
    if not (path := folder / "training.json").is_file():
        return
    record = json.loads(path.read_text(encoding="utf-8"))
    for data in record.get("data", {}).values():
        yield from (data or {}).get("simulations", [])
    if (source := record.get("source")) in checkpoints.list_checkpoints():
        yield from _training_simulations(checkpoints.checkpoint_path(source))


def _runs(simulation: dict[str, Any]) -> set[tuple[str, int]]:
    """Name and seed of a simulation, or of those that crops were made from."""
    return {(s["simulation"], s["seed"]) for s in simulation.get("source", [simulation]) if "seed" in s}
