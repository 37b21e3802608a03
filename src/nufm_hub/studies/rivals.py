"""Rivals in a study of trainings: the same labels, the same events, and what a model is better or worse than them, event by event."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from nufm_hub.baselines.trees import Table, predict, tabulate
from nufm_hub.detectors import DetectorSpec
from nufm_hub.evaluation.scores import event_differences, event_scores, groups_of, load_predictions, save_predictions
from nufm_hub.events import Event
from nufm_hub.tasks import get_task
from nufm_hub.training.data import EventSubset, open_task

from .fine_tuning import PREDICTIONS, Events
from .runs import Work
from .tables import better


class Tables:
    """Summary numbers and truth of training and test events of a study, made when they are first needed."""

    def __init__(self, task: str, train_events: Events, evaluated: Events):
        self._task, self._paths = get_task(task), (train_events.paths, evaluated.paths)
        self.test = cache(lambda: self._open(self._paths[1])[0])
        self.train = cache(lambda: self._open(self._paths[0]))

    def _open(self, paths: Sequence[str | Path]) -> tuple[Table, list[np.ndarray], Any]:
        """A table, the rows of each item of the data set (the particles of an image, or one event), and the data set."""
        data = open_task(self._task, list(paths))
        sizes: list[int] = []

        def singles() -> Any:
            for i in range(len(data)):
                item = data[i]
                events: list[Event] = item if isinstance(item, list) else [item]
                sizes.append(len(events))
                yield from events

        table = tabulate(singles(), data.spec)
        return table, np.split(np.arange(len(table)), np.cumsum(sizes)[:-1]), data

    def subset(self, labels: int, seed: int) -> Table:
        """The training events that a training with `max_events=labels` and this seed has."""
        table, rows, data = self.train()
        return table.select(np.concatenate([rows[i] for i in EventSubset(data, labels, seed).indices]))


def predict_and_score(tables: Tables, spec: DetectorSpec, num_resamples: int = 1000) -> Work:
    """The `work` of `runs.execute` for settings with `rival`, `labels` and `seed`; its result is as of a training, without one."""

    def work(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
        train, test = tables.subset(settings["labels"], settings["seed"]), tables.test()
        asked = _quantities(settings["task"])
        found = {n: p for n, p in predict(settings["rival"], train, test, spec, settings["seed"]).items() if asked is None or n in asked}
        save_predictions(folder / PREDICTIONS, found)
        known = train.truth["vertex"][np.isfinite(train.truth["vertex"]).all(axis=1)]
        mean = known.mean(axis=0) if len(known) else np.full(3, np.nan)
        metrics = event_scores(found, test.truth, spec, mean, groups_of(test.origin), num_resamples)
        return {"evaluation": {"metrics": metrics, "num_resamples": num_resamples}}

    return work


def _quantities(task: str) -> set[str] | None:
    """What a task predicts of events; None: all there is."""
    if (label := get_task(task).event_label) is not None:
        return {label}
    return {"vertex": {"vertex"}, "momentum": {"visible_momentum", "jet_momentum", "lepton_momentum", "missing_pt"}}.get(task)


def compare_with_rivals(
    records: Sequence[Mapping[str, Any]], folder: Path, tables: Tables, spec: DetectorSpec, num_resamples: int = 1000
) -> list[dict[str, Any]]:
    """Every training against every rival with the same labels and seed.

    Args:
        records: of the runs that are done, as of `runs.finished`, whose folders lie in `folder`.
        folder, tables, spec: of the study.
        num_resamples: of the paired intervals.

    Returns:
        `{"initialisation", "rival", "labels", "metric", "better", "seeds", "difference", "low", "high", "better_outside", "worse_outside"}` each:
        lists by seed of the metric of the training minus that of the rival and its paired 95 % interval over events, and for how many seeds
        that interval lies on the better, or on the worse, side of zero.
    """
    rivals: dict[tuple[int, int], list[Mapping[str, Any]]] = {}
    for record in records:
        if "rival" in record["settings"]:
            rivals.setdefault((record["settings"]["labels"], record["settings"]["seed"]), []).append(record)
    entries: dict[tuple[str, str, int, str], dict[str, Any]] = {}
    for record in records:
        settings = record["settings"]
        if "rival" in settings or record["result"]["evaluation"] is None or not (folder / record["name"] / PREDICTIONS).is_file():
            continue
        own = load_predictions(folder / record["name"] / PREDICTIONS)
        for other in rivals.get((settings["labels"], settings["seed"]), []):
            test = tables.test()
            theirs = load_predictions(folder / other["name"] / PREDICTIONS)
            found = event_differences(own, theirs, test.truth, spec, groups_of(test.origin), num_resamples)
            for quantity, values in found.items():
                for metric in (m for m in values if better(f"{quantity}.{m}") and isinstance(values[m], (int, float))):
                    name = f"{quantity}.{metric}"
                    key = (settings["initialisation"], other["settings"]["rival"], settings["labels"], name)
                    fixed = dict(zip(("initialisation", "rival", "labels", "metric"), key), better=better(name))
                    entry = entries.setdefault(key, fixed | {"seeds": [], "difference": [], "low": [], "high": []})
                    entry["seeds"].append(settings["seed"])
                    entry["difference"].append(values[metric])
                    entry["low"].append(values[f"{metric}_low"])
                    entry["high"].append(values[f"{metric}_high"])
    for entry in entries.values():
        ends = [(low, high) for low, high in zip(entry["low"], entry["high"]) if low is not None and high is not None]
        above, below = sum(low > 0 for low, _ in ends), sum(high < 0 for _, high in ends)
        entry["better_outside"], entry["worse_outside"] = (above, below) if entry["better"] == "higher" else (below, above)
    return list(entries.values())
