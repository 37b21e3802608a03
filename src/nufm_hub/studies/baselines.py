"""What geometry and trees on hand-made numbers give, from fewer and more labels: the rows that every model has to beat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from nufm_hub.baselines.trees import GEOMETRY, RIVALS, Table, predict, tabulate
from nufm_hub.evaluation.scores import event_scores, groups_of
from nufm_hub.events import EventDataset
from nufm_hub.files import sha256_of
from nufm_hub.provenance import git_revision, machine, package_versions
from nufm_hub.training.data import EventSubset, describe_data

from .comparison import label_numbers
from .fine_tuning import Events, refuse_shared_files
from .runs import StudyRun, execute
from .tables import flatten, summarise, write_results


def study_baselines(
    events: Sequence[str | Path],
    test: Sequence[str | Path],
    budgets: Sequence[int | str],
    seeds: Sequence[int],
    folder: str | Path,
    results: str | Path,
    rivals: Sequence[str] = RIVALS,
    num_resamples: int = 1000,
) -> list[dict[str, Any]]:
    """Evaluate rivals as models are evaluated, and write `baselines.csv` and `.json`.

    Args:
        events: parquet shards of labelled events, or of crops.
        test: parquet shards that are judged, of the same detector.
        budgets: numbers of labelled events, shares such as `"10%"`, or `"all"`. Of one seed they are the events that a training with
            `max_events` has.
        seeds: each decides the subset of events, and the trees.
        folder: of the runs; what is done there is not done again, see `nufm_hub.studies.runs.execute`.
        results: folder of the tables, which are replaced.
        rivals: of `nufm_hub.baselines.RIVALS`.
        num_resamples: of the bootstrap intervals.

    Returns:
        The rows of the table: `rival`, `labels` (0: it needs none), `seed`, and metrics as of `nufm_hub.evaluation.evaluate`.

    Raises:
        ValueError: unknown rivals, budgets that are no numbers of events, events of different detectors, or files in both sets.
    """
    if not rivals or (unknown := set(rivals) - set(RIVALS)):
        raise ValueError(f"unknown rivals {sorted(unknown) if rivals else []}: give some of {', '.join(RIVALS)}")
    refuse_shared_files({"events": events, "test": test})
    train_events = EventDataset(list(events))
    test_events = EventDataset(list(test), train_events.spec)
    spec, labels = train_events.spec, label_numbers(budgets, len(train_events))
    data = {name: Events(given, describe_data(held) | {"sha256": sha256_of(held.files)}) for name, given, held in (
        ("train", events, train_events), ("test", test, test_events),
    )}  # fmt: skip
    common = {**{name: held.identity for name, held in data.items()}, "num_resamples": num_resamples}
    chosen = [(rival, number, seed) for rival in rivals if rival != GEOMETRY for number in labels for seed in seeds]
    chosen += [(GEOMETRY, 0, None)] if GEOMETRY in rivals else []
    runs = [
        StudyRun(rival if seed is None else f"{rival}-n{number}-seed{seed}", {"rival": rival, "labels": number, "seed": seed, **common})
        for rival, number, seed in chosen
    ]

    @cache
    def tables() -> tuple[Table, Table]:
        return tuple(tabulate((held[i] for i in range(len(held))), spec) for held in (train_events, test_events))  # type: ignore[return-value]

    def work(settings: dict[str, Any], run_folder: Path) -> dict[str, Any]:
        everything, judged = tables()
        number, seed = settings["labels"], settings["seed"]
        rows = EventSubset(train_events, number, seed).indices if number else np.zeros(0, dtype=np.int64)
        train = everything.select(rows)
        found = predict(settings["rival"], train, judged, spec, seed or 0)
        mean = train.truth["vertex"][np.isfinite(train.truth["vertex"]).all(axis=1)]
        # what needs no labels is put beside the mean vertex of all training events
        mean = (mean if len(mean) else everything.truth["vertex"]).mean(axis=0)
        return event_scores(found, judged.truth, spec, mean, groups_of(judged.origin), num_resamples)

    records = execute(runs, folder, work)
    rows = rows_of(records)
    summary = {
        "study": "baselines",
        "data": {name: held.description for name, held in data.items()},
        "labels": labels,
        "seeds": list(seeds),
        "num_resamples": num_resamples,
        "summary": summarise(rows, ["rival", "labels"]),
        "git_revision": git_revision(),
        "versions": package_versions(),
        "machine": machine(),
    }
    write_results("baselines", rows, summary, results)
    return rows


def rows_of(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row for each run, with the columns of `nufm_hub.studies.tables`."""
    return [{**{key: r["settings"][key] for key in ("rival", "labels", "seed")}, **flatten(r["result"])} for r in records]
