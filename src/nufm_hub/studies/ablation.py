"""What each sub-detector is worth to a fine-tuned model: its predictions without it, on the same events."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from nufm_hub.detectors import DetectorSpec
from nufm_hub.evaluation.checkpoint import checkpoint_folder, checkpoint_name, load_with_head, without_branches
from nufm_hub.evaluation.scores import Scores, event_differences
from nufm_hub.evaluation.source import is_held_out, open_events, weights_sha256
from nufm_hub.events import Event
from nufm_hub.provenance import git_revision, machine, package_versions
from nufm_hub.tasks import task_of

from .plots import new_figure, save
from .tables import Row, flatten, interval_of, summarise, write_results

ABSENT, EMPTIED = "absent", "emptied"
# Of a figure: quantity and metric, and what the axis says.
_PANELS = {
    "flavour.macro_auroc_change": "flavour macro-AUROC",
    "charm.macro_auroc_change": "charm macro-AUROC",
    "vertex.vertex_error_mean_change": "mean vertex error in mm",
    "visible_momentum.resolution68_change": "visible momentum, relative resolution",
    "jet_momentum.resolution68_change": "jet momentum, resolution",
    "lepton_momentum.resolution68_change": "lepton momentum, resolution",
    "missing_pt_above_1gev.detection_auroc_change": "AUROC of missing pT above 1 GeV",
    "particle.macro_auroc_change": "particle macro-AUROC",
}


@dataclass(frozen=True)
class Variant:
    """Events as a model gets them: `removed` is the branch that is taken away (None: nothing), `how` is `ABSENT` or `EMPTIED`."""

    removed: str | None = None
    how: str = ABSENT


def variants(spec: DetectorSpec) -> list[Variant]:
    """All there, then each branch absent, and then emptied where that is something else: a voxel branch without voxels makes no token anyway."""
    emptied = [Variant(b.name, EMPTIED) for b in (*spec.image_branches, *spec.track_branches)]
    return [Variant(), *(Variant(b.name) for b in spec.branches), *emptied]


def emptied(event: Event, name: str) -> Event:
    """A copy whose image or tracks are there, and empty; the event itself where it lacks them."""
    if name in event.images:
        return replace(event, images={**event.images, name: np.zeros_like(event.images[name])})
    if name in event.tracks:
        return replace(event, tracks={**event.tracks, name: event.tracks[name][:0]})
    return event


def study_ablation(
    checkpoint: str | Path,
    test: Sequence[str | Path],
    results: str | Path,
    batch_size: int = 32,
    seed: int = 0,
    num_resamples: int = 1000,
    use_cpu: bool = False,
) -> list[dict[str, Any]]:
    """Evaluate a model that predicts events with each branch taken away in turn, and write `ablation.csv`, `.json` and `.png`.

    Args:
        checkpoint: bundled id, folder, or id on the Hub.
        test: parquet shards.
        results: folder of the tables and the figure, which are replaced.
        batch_size: events of one forward pass.
        seed: of the bootstrap.
        num_resamples: of the bootstrap.
        use_cpu: stay on the CPU even where there is a GPU.

    Returns:
        The rows of the table: `removed`, `how`, `empty_share` (of the events, how many have nothing in this branch as they are), the metrics
        of `nufm_hub.evaluation`, and `<metric>_change` with the difference to all branches present and its paired 95 % interval.

    Raises:
        ValueError: a checkpoint that does not predict events, or events of another detector or without the truth.
    """
    folder = checkpoint_folder(checkpoint)
    model, processor = load_with_head(checkpoint, folder)
    task = task_of(model)
    if task.judged != "events" or task.grouped:
        raise ValueError(f"{checkpoint} is a {type(model).__name__}: give a checkpoint that predicts quantities of single events")
    spec = model.config.spec
    if len(spec.branches) < 2:
        raise ValueError(f"{checkpoint} reads {spec.name!r}, whose only branch is {spec.branches[0].name!r}: nothing would be left")
    model.to("cuda" if torch.cuda.is_available() and not use_cpu else "cpu")
    scores = {variant: Scores(task, processor) for variant in variants(spec)}
    data, groups = open_events(list(test), spec, as_images=False, folder=folder)
    events = iter(tqdm((event for group in groups for event in group), desc="ablation", unit="event"))
    empty, count = dict.fromkeys((b.name for b in spec.branches), 0), 0
    while batch := list(islice(events, batch_size)):
        inputs = processor(batch)
        for variant, kept in scores.items():
            changed = inputs if variant.how == ABSENT else processor([emptied(event, variant.removed) for event in batch])
            changed = without_branches(changed, torch.tensor([variant != Variant(b.name) for b in spec.branches]))
            with torch.inference_mode():
                outputs = model(**changed.to(model.device))
            kept.add(outputs, batch, None)
        for name in empty:
            empty[name] += sum(_is_empty(event, name) for event in batch)
        count += len(batch)
    if not count:
        raise ValueError(f"there are no events in {[str(t) for t in test]}")

    options = {"num_resamples": num_resamples, "seed": seed}
    whole = scores[Variant()]
    rows = []
    for variant, kept in scores.items():
        found = kept.metrics(**options)
        if not found:
            raise ValueError(f"none of the {count} events has a truth that {checkpoint} ({type(model).__name__}) predicts")
        if variant.removed is not None:
            (found_by, truth), (before, _) = kept.arrays(), whole.arrays()
            for quantity, changes in event_differences(found_by, before, truth, spec, **options).items():
                found[quantity] |= {_renamed(name): value for name, value in changes.items() if name != "num_events"}
        share = None if variant.removed is None else empty[variant.removed] / count
        rows.append({"removed": variant.removed or "nothing", "how": variant.how if variant.removed else "", "empty_share": share, **flatten(found)})
    summary = {
        "study": "ablation",
        "checkpoint": checkpoint_name(checkpoint),
        "architecture": type(model).__name__,
        "weights_sha256": weights_sha256(folder),
        "data": {**data, "events": count},
        "held_out": is_held_out(folder, data["simulations"]),
        **options,
        "empty_share": {name: number / count for name, number in empty.items()},
        "summary": summarise(rows, ["removed", "how"]),
        "git_revision": git_revision(),
        "versions": package_versions(),
        "machine": machine(),
    }
    write_results("ablation", rows, summary, results)
    plot_changes(rows, Path(results) / "ablation.png", f"{checkpoint_name(checkpoint)}, {count} events")
    return rows


def _is_empty(event: Event, name: str) -> bool:
    if name in event.voxels:
        return not len(event.voxels[name])
    if name in event.images:
        return not event.images[name].any()
    return not len(event.tracks.get(name, ()))


def _renamed(name: str) -> str:
    """`macro_auroc_low` to `macro_auroc_change_low`: the interval of a metric of its own."""
    for end in ("_low", "_high"):
        if name.endswith(end):
            return f"{name.removesuffix(end)}_change{end}"
    return f"{name}_change"


def plot_changes(rows: Sequence[Row], path: str | Path, title: str) -> None:
    """A panel a metric: what changes without each branch, with 95 % intervals; open circles for branches that are emptied.

    Args:
        rows: as of `study_ablation`.
        path: PNG file to write or replace.
        title: of the figure.
    """
    removed = [row for row in rows if row["how"]]
    columns = [column for column in _PANELS if any(row.get(column) is not None for row in removed)]
    branches = list(dict.fromkeys(row["removed"] for row in removed))
    twice = {row["removed"] for row in removed if row["how"] == EMPTIED}
    lines = -(-len(columns) // 4)
    figure = new_figure(figsize=(max(5.5, 3.6 * min(len(columns), 4)), 0.8 + (0.9 + 0.45 * len(branches)) * lines))
    all_axes = figure.subplots(lines, min(len(columns), 4), squeeze=False, sharey=True).ravel()
    for axes, column in zip(all_axes, columns):
        low, high = interval_of(column)
        for row in removed:
            if row.get(column) is None:
                continue
            aside = 0.0 if row["removed"] not in twice else 0.18 if row["how"] == EMPTIED else -0.18
            ends = None
            if row.get(low) is not None:  # a percentile interval may lie on one side of the value
                ends = np.maximum([[row[column] - row[low]], [row[high] - row[column]]], 0)
            face = "white" if row["how"] == EMPTIED else "#0072B2"
            axes.errorbar(row[column], branches.index(row["removed"]) + aside, xerr=ends, fmt="o", ms=5, color="#0072B2", mfc=face, capsize=2, lw=1.2)
        axes.axvline(0, color="#999999", lw=1)
        axes.set_title(_PANELS[column], fontsize=9)
        axes.set_yticks(range(len(branches)), [f"without {name}" for name in branches], fontsize=8)
        axes.tick_params(axis="x", labelsize=8)
        axes.grid(axis="x", alpha=0.25, lw=0.6)
    for axes in all_axes[len(columns) :]:
        axes.set_visible(False)
    all_axes[0].invert_yaxis()
    figure.suptitle(f"{title}\nchange when a sub-detector is absent (filled), or empty (open)", fontsize=10)
    save(figure, path)
