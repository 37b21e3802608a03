"""How much particle identification loses when light leaks more, or less, than in training.

The test events of a transfer study are simulated again: the same particles and deposits (same seed and event numbers), with another share of the
light in the neighbours of a cube. Leaked light is counted, and cut by the threshold, as all light is. Adding crosstalk to events that are
finished (`nufm_hub.events.effects`) could do neither, and would come on top of what they have.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from nufm_hub.evaluation import evaluate
from nufm_hub.events import EventDataset, list_shards, write_events
from nufm_hub.events.crop_files import PROVENANCE, CropSettings
from nufm_hub.events.splits import read_truth
from nufm_hub.files import sha256_of
from nufm_hub.simulation.runner import simulate_events
from nufm_hub.simulation.superfgd import SuperFGDSettings
from nufm_hub.training.folder import MODEL_FOLDER

from .comparison import STUDY_FOLDER
from .label_factor import REFERENCE
from .plots import Panel, new_figure, plot_curves
from .runs import RESULT, StudyRun, execute, finished
from .tables import flatten, summarise, write_results
from .transfer import CROPS_FOLDER, QUALITY

NAME = "crosstalk"


def crosstalk(
    models: str | Path,
    levels: Sequence[float],
    out: str | Path,
    results: str | Path,
    labels: Sequence[int] | None = None,
    use_cpu: bool = False,
    workers: int = 1,
    summarise_only: bool = False,
) -> dict[str, Any]:
    """Evaluate the models of a transfer study on its test particles at each level of crosstalk.

    May be interrupted and repeated, and executed by several processes at once.

    Args:
        models: folder of the transfer study, of events that `nufm simulate superfgd` made.
        levels: light in each of the six neighbours as a share of that in the cube, 0 to 0.3.
        out: folder of the runs, and of the events.
        results: folder for `crosstalk.csv`, `.json` and `-*.png`.
        labels: numbers of labelled events of the models to take; those with most when None.
        use_cpu: stay on the CPU even where there is a GPU.
        workers: processes that simulate.
        summarise_only: evaluate nothing; write the results of what is finished.

    Returns:
        What is in the JSON file.

    Raises:
        ValueError: no finished models, events that were not simulated as needed, or levels out of range.
        ImportError: the simulation's packages are missing.
    """
    new_figure()  # what plots need is missing now, not after hours
    models, out = Path(models), Path(out)
    chosen = _models(models / STUDY_FOLDER, labels)
    test = models / CROPS_FOLDER / "test"
    record = json.loads((test / PROVENANCE).read_text(encoding="utf-8"))
    settings, seed = _simulation(record)
    indices = [event.provenance["index"] for event in read_truth(test)]
    crops = CropSettings.load(record["crops"])
    simulations = {level: replace(settings, crosstalk=level) for level in sorted(set(levels))}
    # Events of another test set, or of the same particles simulated or cropped in another way, never stand in for these.
    made_of = json.dumps([seed, indices, asdict(settings), asdict(crops)], sort_keys=True)
    folder = out / CROPS_FOLDER / hashlib.sha256(made_of.encode()).hexdigest()[:16]
    files = {level: folder / f"crosstalk-{level:g}.parquet" for level in simulations}
    for level, path in files.items():
        simulated = simulations[level]
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if not path.exists() and not summarise_only:
                simulate_crops(simulated, seed, indices, crops, path, workers)
    runs, places = [], {}
    for level, path in files.items():
        if not path.exists():
            continue
        identity = {"crosstalk": level, "events": sha256_of([path])}
        for model, held in chosen.items():
            run = StudyRun(f"{model}-crosstalk{level:g}", identity | held)
            places[run.name] = (models / STUDY_FOLDER / model / MODEL_FOLDER, path)
            runs.append(run)

    def work(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
        model, path = places[folder.name]
        return evaluate(model, path, use_cpu=use_cpu)

    records = finished(runs, out / "runs") if summarise_only else execute(runs, out / "runs", work)
    rows = [_row(r) for r in records]
    summary = {
        "study": NAME,
        "trained_at": settings.crosstalk,
        "levels": list(files),
        "test_events": len(indices),
        "same_as_test_set_at_training_level": _reproduced(files.get(settings.crosstalk), test),
        "runs": {"finished": len(records), "planned": len(files) * len(chosen)},
        "summary": summarise(rows, ["initialisation", "labels", "crosstalk"]),
        "simulation": {k: v for k, v in record["source"][0].items() if k != "summary"},
        "git_revisions": sorted({str(r["git_revision"]) for r in records}),
    }
    write_results(NAME, rows, summary, results)
    for n in sorted({row["labels"] for row in rows}):
        panels = [Panel(column, title) for column, title in QUALITY.items()]
        axis = {"x": "crosstalk", "x_title": f"crosstalk to each neighbour, trained at {settings.crosstalk:g}", "logarithmic": False}
        plot_curves([r for r in rows if r["labels"] == n], panels, Path(results) / f"{NAME}-n{n}.png", **axis, title=f"{n:,} labelled particles")
    return summary


def simulate_crops(settings: SuperFGDSettings, seed: int, indices: Sequence[int], crops: CropSettings, path: Path, workers: int = 1) -> int:
    """Write the crops of simulated events, for as many as still have enough voxels; returns their number."""
    spec = settings.detector
    crop_spec = crops.detector(spec)
    events = simulate_events(settings, seed, indices, workers)
    return write_events((crop for event in events for crop in crops.crops(event, spec, crop_spec)), path, crop_spec)


def _models(folder: Path, labels: Sequence[int] | None) -> dict[str, dict[str, Any]]:
    """What there is, by name of the run."""
    found = {}
    for path in sorted(folder.glob(f"*/{RESULT}")):
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["result"]["evaluation"] is not None and (path.parent / MODEL_FOLDER).is_dir():
            settings = record["settings"]
            keys = {key: settings[key] for key in ("initialisation", "labels", "seed")}
            found[record["name"]] = keys | {"weights_sha256": record["result"]["evaluation"]["weights_sha256"]}
    if not found:
        raise ValueError(f"{folder.parent} has no finished models: run nufm study transfer superfgd first")
    wanted = set(labels or ()) or {max(held["labels"] for held in found.values())}
    chosen = {name: held for name, held in found.items() if held["labels"] in wanted}
    chosen = dict(sorted(chosen.items(), key=lambda item: item[1]["initialisation"] != REFERENCE))  # what all else is compared with comes first
    if missing := wanted - {held["labels"] for held in chosen.values()}:
        there = sorted({held["labels"] for held in found.values()})
        raise ValueError(
            f"{folder.parent} has no finished models with {sorted(missing)} labels, only with {there}: run nufm study transfer superfgd first"
        )
    return chosen


def _simulation(record: Mapping[str, Any]) -> tuple[SuperFGDSettings, int]:
    """What made the test events."""
    sources = record["source"]
    if len(sources) != 1 or sources[0].get("simulation") != SuperFGDSettings.name:
        raise ValueError(f"the events of the transfer study must come from one run of nufm simulate superfgd, not from {sources}")
    return SuperFGDSettings(**sources[0]["settings"]), sources[0]["seed"]


def _reproduced(path: Path | None, test: Path) -> bool | None:
    """Whether simulating the test events again gave the same voxels; None when that level was not asked for."""
    if path is None or not path.exists():
        return None
    again, before = EventDataset(path), EventDataset(list_shards(test))
    if len(again) != len(before):
        return False
    branch = before.spec.voxel_branches[0].name
    pairs = ((a.voxels[branch], b.voxels[branch]) for a, b in zip(again, before))
    return all(a.coordinates.tobytes() == b.coordinates.tobytes() and a.values.tobytes() == b.values.tobytes() for a, b in pairs)


def _row(record: Mapping[str, Any]) -> dict[str, Any]:
    settings, result = record["settings"], record["result"]
    kept = {key: settings[key] for key in ("initialisation", "labels", "seed", "crosstalk", "weights_sha256")}
    return {"run": record["name"], **kept, "events": result["num_events"], **flatten(result["metrics"]), "git_revision": record["git_revision"]}
