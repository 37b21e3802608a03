"""What an encoder of one detector is worth on another: particle identification from different initialisations, with few and many labels."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from nufm_hub.events import list_shards, read_detector
from nufm_hub.events.crop_files import PROVENANCE, CropSettings, origins, write_crops
from nufm_hub.events.splits import SPLITS
from nufm_hub.training.folder import MODEL_FOLDER
from nufm_hub.transfer import TransferReport

from .comparison import STUDY_FOLDER, Outcome, Study, compare
from .fine_tuning import Paths
from .label_factor import REFERENCE
from .plan import Plan, load_plan, read_plan
from .plots import Panel, add_legend, colours_of, draw_spread, new_figure, plot_curves, save, set_style
from .tables import Row, better, interval_of, metrics_of, spread, write_results

CROPS_FOLDER = "crops"
TRANSFER_TASKS = ("particle", "event-particles")
QUALITY = {
    "particle.accuracy": "accuracy",
    "particle.macro_auroc": "macro-AUROC",
    "particle.error_detection_auroc": "error-detection AUROC",
    "particle.expected_calibration_error": "calibration error",
}


@dataclass(frozen=True)
class TransferPlan:
    """What is done with a detector's events.

    Attributes:
        task: `"particle"` (each particle by itself) or `"event-particles"` (all particles of an event at once).
        crops: values that differ from the packaged crop settings of the detector; or all of them, `fit` included, for another detector. See
            `nufm_hub.events.crop_files.CropSettings`.
        fractions: shares of the events for training, validation and test.
        evaluations: looks at the validation loss during a training.
        training: recipe, epochs and tuning.
    """

    task: str
    crops: dict[str, Any]
    fractions: tuple[float, float, float]
    evaluations: int
    training: Plan

    def __post_init__(self) -> None:
        if self.task not in TRANSFER_TASKS:
            raise ValueError(f"task {self.task!r} of a transfer is one of {sorted(TRANSFER_TASKS)}")
        if not isinstance(self.evaluations, int) or self.evaluations < 0:
            raise ValueError(f"evaluations={self.evaluations!r} is a number of looks at the validation loss, 0 or more")
        if len(self.fractions) != 3 or not all(isinstance(f, (int, float)) and f > 0 for f in self.fractions):
            raise ValueError(f"fractions {list(self.fractions)} must be the three positive shares of training, validation and test")

    @classmethod
    def load(cls, plan: str | Path, **changes: Any) -> TransferPlan:
        """A packaged plan (`transfer-superfgd`, ...) or a JSON file with these fields; `changes` as in `load_plan`."""
        data = read_plan(plan)
        try:
            training = load_plan(data["training"], **changes)
            return cls(**data | {"training": training, "fractions": tuple(data["fractions"])})
        except (KeyError, TypeError) as error:
            raise ValueError(f"plan {plan} does not hold what a plan of a transfer must: {error}") from error


def transfer(
    name: str,
    events: Paths,
    initialisations: Mapping[str, str | None],
    shares: Sequence[int | str],
    seeds: Sequence[int],
    plan: TransferPlan,
    out: str | Path,
    results: str | Path,
    use_cpu: bool = False,
    workers: int = 0,
    summarise_only: bool = False,
    rivals: Sequence[str] = ("extra-trees",),
) -> dict[str, Any]:
    """Crop and split the events, tune each initialisation on validation, train it with each share of the labels and each seed, and compare on test.

    Test events are not opened before the tuning is complete. May be interrupted at any time and repeated, and executed by several processes
    at once, see `nufm_hub.studies.runs.execute`.

    Args:
        name: of the files with the results, `transfer-<name>`.
        events: parquet shards of one detector; crops of these are made in `out/crops`.
        initialisations: name -> id or folder of the checkpoint whose encoder is taken along, None for random weights.
        shares: of the training events, such as `"1%"`, or numbers of them.
        seeds: each decides the subset of events, the new weights and the order.
        plan: see `TransferPlan`.
        out: folder of the runs; the models stay in it, as `out/study/<run>/model`.
        results: folder for `transfer-<name>.csv` (a row a run), `.json` (summary and where it came from), `-*.png`, `-tuning.csv`.
        use_cpu: stay on the CPU even where there is a GPU.
        workers: processes that prepare batches.
        summarise_only: train nothing; write the results of what is finished.
        rivals: of `nufm_hub.baselines.RIVALS`, with the same labels beside every training.

    Returns:
        What is in the JSON file.

    Raises:
        ValueError: bad events, checkpoints or shares, or `out` holds crops or runs that were made with other settings.
    """
    out, results = Path(out), Path(results)
    if summarise_only and not (out / CROPS_FOLDER).exists():
        raise ValueError(f"{out} holds nothing that could be summarised: run the study first")
    crops = make_crops(events, out / CROPS_FOLDER, plan)
    options = {"transfer": True, "evaluations": plan.evaluations, "rivals": rivals}
    study = Study(plan.task, f"transfer-{name}", initialisations, shares, seeds, plan.training, **options)
    outcome = compare(study, *([crops[split]] for split in SPLITS), out, results, use_cpu, workers, summarise_only, keep_models=True)
    summary = outcome.summary | {
        "carried": _carried(outcome, out / STUDY_FOLDER),
        "outside_intervals": outside_intervals(outcome.rows),
        "steps_to_reference_loss": steps_to_reference(outcome.trainings),
    }
    write_results(study.name, outcome.rows, summary, results)
    _plot(outcome, study, results)
    return summary


def make_crops(events: Paths, folder: Path, plan: TransferPlan) -> dict[str, Path]:
    """Folders with the crops of each split; made once, by one of the processes.

    Raises:
        ValueError: they were made from other events or with other settings.
    """
    shards = list_shards(list(events))
    settings = CropSettings.load(plan.crops) if "fit" in plan.crops else CropSettings.load(read_detector(shards[0]).name, **plan.crops)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            write_crops(shards, folder, settings, plan.fractions)
    if missing := [split for split in SPLITS if not (folder / split / PROVENANCE).is_file()]:
        raise ValueError(f"no events are left for {' and '.join(missing)} in {folder}: give more events, or other fractions than {plan.fractions}")
    record = json.loads((folder / "train" / PROVENANCE).read_text(encoding="utf-8"))
    names = [Path(shard).name for shard in shards]
    wanted = {"crops": asdict(settings), "fractions": plan.fractions, "shards": names, "events": origins(shards)}
    made = {"crops": record["crops"], "fractions": record["split"]["fractions"], "shards": record["shards"], "events": record["source"]}
    if differing := [key for key, value in json.loads(json.dumps(wanted)).items() if made[key] != value]:
        raise ValueError(f"{folder} was made with other {' and '.join(differing)}: choose another folder, or remove it")
    return {split: folder / split for split in SPLITS}


def steps_to_reference(records: Sequence[Mapping[str, Any]], reference: str = REFERENCE) -> list[dict[str, Any]]:
    """After how many steps a training reaches the validation loss of the reference with the same labels and seed.

    Losses are looked at as often as the study evaluates, and the first look at which the loss is reached counts, for the reference too.

    Args:
        records: as of `nufm_hub.studies.runs.finished`, with `curve`.
        reference: the initialisation to compare with.

    Returns:
        `{"initialisation", "labels", "target", "runs", "reached", "steps", "reference_steps", "share"}` each: `target` is `"final"` (the
        reference's loss at the end of its training) or `"lowest"`; `reference_steps` are those after which the reference first got there, and
        `share` is steps over these; the last three are the `spread` over the seeds that reach the loss.
    """
    curves: dict[tuple[str, int], dict[int, list[list[float]]]] = {}
    for record in records:
        settings, curve = record["settings"], [point for point in record["result"]["training"].get("curve") or () if point[1] is not None]
        if curve:
            curves.setdefault((settings["initialisation"], settings["labels"]), {})[settings["seed"]] = curve
    entries = []
    for (initialisation, labels), by_seed in sorted(curves.items(), key=lambda item: item[0][1]):
        against = curves.get((reference, labels), {})
        pairs = [(curve, against[seed]) for seed, curve in by_seed.items() if seed in against]
        if initialisation == reference or not pairs:
            continue
        for target in ("final", "lowest"):
            found = []
            for curve, own in pairs:
                loss = own[-1][1] if target == "final" else min(loss for _, loss in own)
                found.append((_first_step(curve, loss), _first_step(own, loss)))
            reached = [pair for pair in found if pair[0] is not None]
            entries.append(
                {
                    "initialisation": initialisation,
                    "labels": labels,
                    "target": target,
                    "runs": len(found),
                    "reached": len(reached),
                    "steps": spread([steps for steps, _ in reached]),
                    "reference_steps": spread([steps for _, steps in reached]),
                    "share": spread([steps / own for steps, own in reached]),
                }
            )
    return entries


def _first_step(curve: Sequence[Sequence[float]], loss: float) -> int | None:
    return next((int(step) for step, value in curve if value <= loss), None)


def outside_intervals(rows: Sequence[Row], reference: str = REFERENCE) -> list[dict[str, Any]]:
    """For how many seeds the interval of a metric lies wholly on the better, or the worse, side of that of the reference with the same seed.

    Returns:
        `{"initialisation", "labels", "metric", "seeds", "better", "worse"}` each.
    """
    by_run = {(row["initialisation"], row["labels"], row["seed"]): row for row in rows}
    counts: dict[tuple[str, int, str], dict[str, int]] = {}
    for (initialisation, labels, seed), row in by_run.items():
        base = by_run.get((reference, labels, seed))
        if initialisation == reference or base is None:
            continue
        for metric in metrics_of(rows):
            direction, (low, high) = better(metric), interval_of(metric)
            if direction is None or None in (row.get(low), base.get(low)):
                continue
            above, below = row[low] > base[high], row[high] < base[low]
            count = counts.setdefault((initialisation, labels, metric), {"seeds": 0, "better": 0, "worse": 0})
            count["seeds"] += 1
            count["better"] += above if direction == "higher" else below
            count["worse"] += below if direction == "higher" else above
    return [dict(zip(("initialisation", "labels", "metric"), key)) | count for key, count in counts.items()]


def _carried(outcome: Outcome, folder: Path) -> dict[str, Any]:
    """What each initialisation took along, from the report of one of its models."""
    carried: dict[str, Any] = {}
    for record in outcome.trainings:
        name, model = record["settings"]["initialisation"], folder / record["name"] / MODEL_FOLDER
        if record["settings"].get("transfer") and name not in carried and model.is_dir():
            report = TransferReport.load(model)
            modules = [dict(zip(("module", "status", "tensors", "parameters", "why"), line)) for line in report.summary()]
            carried[name] = {"fraction": report.fraction, "parameters": report.carried_parameters, "modules": modules}
    return carried


def _plot(outcome: Outcome, study: Study, results: Path) -> None:
    columns = metrics_of(outcome.rows)
    title = f"{study.name}, all particles of an event at once" if study.task == "event-particles" else study.name
    classes = [Panel(c, f"share of {c.rsplit('.', 1)[1]} recognised") for c in columns if ".efficiency." in c]
    for figure, panels in (("curves", [Panel(c, text) for c, text in QUALITY.items() if c in columns]), ("classes", classes)):
        if panels:
            plot_curves(outcome.rows, panels, results / f"{study.name}-{figure}.png", title=title)
    if study.evaluations and outcome.trainings:
        plot_losses(outcome.trainings, results / f"{study.name}-loss.png", title)


def plot_losses(records: Sequence[Mapping[str, Any]], path: str | Path, title: str) -> None:
    """Validation loss against steps: a panel for each number of labels, a line through the means over seeds, a band from lowest to highest; the
    loss of `scratch` at the end as a dashed line."""
    curves: dict[int, dict[str, list[np.ndarray]]] = {}
    for record in records:
        if not (points := record["result"]["training"].get("curve")):
            continue
        curve = np.array(points, dtype=np.float64)
        curves.setdefault(record["settings"]["labels"], {}).setdefault(record["settings"]["initialisation"], []).append(curve)
    colours = colours_of(list(dict.fromkeys(name for by in curves.values() for name in by)))
    figure = new_figure(figsize=(3.9 * len(curves), 3.9))
    for axes, (labels, by) in zip(figure.subplots(1, len(curves), squeeze=False)[0], sorted(curves.items())):
        for name, runs in by.items():
            steps, losses = runs[0][:, 0], np.stack([run[:, 1] for run in runs], axis=1)
            draw_spread(axes, steps, losses, colours[name], name)
            if name == REFERENCE:
                axes.axhline(losses[-1].mean(), color=colours[name], lw=1, ls="--")
        set_style(axes, f"{labels:,} labelled events")
    figure.supxlabel("optimiser steps", fontsize=10)
    figure.supylabel("validation loss", fontsize=10)
    add_legend(figure, title)
    save(figure, path)
