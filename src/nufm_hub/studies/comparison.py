"""Trainings from different initialisations with fewer and more labels: tuned on validation events, compared on test events."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nufm_hub.baselines import RIVALS
from nufm_hub.tasks import TASKS, get_task
from nufm_hub.training.data import open_task
from nufm_hub.training.folder import MODEL_FOLDER

from .fine_tuning import PREDICTIONS, Events, Paths, describe_source, fine_tune_and_evaluate, refuse_shared_files
from .label_factor import REFERENCE, compare_with_reference
from .plan import Plan, Setting
from .plots import new_figure
from .rivals import Tables, compare_with_rivals, predict_and_score
from .runs import StudyRun, execute, finished
from .tables import flatten, summarise, write_table
from .tuning import choose, objective

ALL = "all"
STUDY_FOLDER = "study"


@dataclass(frozen=True)
class Study:
    """What is compared.

    Attributes:
        task: of `nufm_hub.tasks.TASKS`.
        name: of the files with the results.
        initialisations: name -> id or folder of the checkpoint to start from, None for random weights.
        budgets: numbers of labelled events, shares of them such as `"1%"`, or `"all"`.
        seeds: each decides the subset of events, the new weights, the order and the augmentation.
        plan: recipe, epochs and tuning.
        transfer: the checkpoints read another detector: take their encoders along.
        evaluations: how often to look at the validation loss during a training, for its curve; never for 0.
        rivals: of `nufm_hub.baselines.RIVALS`, with the same labels beside every training.
    """

    task: str
    name: str
    initialisations: Mapping[str, str | None]
    budgets: Sequence[int | str]
    seeds: Sequence[int]
    plan: Plan
    transfer: bool = False
    evaluations: int = 0
    rivals: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.task not in TASKS or self.task == "pretraining":
            raise ValueError(f"task {self.task!r} is not one of {sorted(TASKS.keys() - {'pretraining'})}")
        for what in ("initialisations", "budgets", "seeds"):
            if not getattr(self, what) or len(set(getattr(self, what))) < len(getattr(self, what)):
                raise ValueError(f"{what} {list(getattr(self, what))}: give one or more, each once")
        if unknown := set(self.rivals) - set(RIVALS) | set(self.rivals) & set(self.initialisations):
            raise ValueError(f"rivals {sorted(unknown)}: give some of {', '.join(RIVALS)}, none of them the name of an initialisation")
        if self.rivals and TASKS[self.task].judged != "events":
            raise ValueError(f"rivals {list(self.rivals)} say nothing of what {self.task!r} learns: they predict quantities of events")
        if shared := set(self.seeds) & set(self.plan.tuning.seeds):
            raise ValueError(f"seeds {sorted(shared)} are those of the tuning: give others, so that no run is one that settings were chosen by")

    def labels(self, available: int) -> list[int]:
        """The budgets as ascending numbers of events.

        Raises:
            ValueError: a budget that is no number, or larger than what there is.
        """
        return label_numbers(self.budgets, available)


def label_numbers(budgets: Sequence[int | str], available: int) -> list[int]:
    """Budgets (numbers, shares like `"1%"`, or `"all"`) as ascending numbers of events.

    Raises:
        ValueError: a budget that is no number, or larger than what there is.
    """
    numbers = set()
    for budget in budgets:
        if share := re.fullmatch(r"(\d+(?:\.\d+)?)%", str(budget)):
            number = round(float(share[1]) / 100 * available)
        else:
            number = available if budget == ALL else int(budget) if str(budget).isdecimal() else 0
        if not 0 < number <= available:
            raise ValueError(f"budget {budget!r}: give numbers from 1 to {available}, the number of training events, shares like 10%, or {ALL!r}")
        numbers.add(number)
    return sorted(numbers)


@dataclass(frozen=True)
class Outcome:
    """Results of the runs that are finished: records as of `runs.finished`, a row each, and the summary."""

    records: list[dict[str, Any]]
    rows: list[dict[str, Any]]
    summary: dict[str, Any]

    @property
    def trainings(self) -> list[dict[str, Any]]:
        """The records but for those of rivals."""
        return [record for record in self.records if "rival" not in record["settings"]]


def compare(
    study: Study,
    events: Paths,
    validation: Paths | None,
    test: Paths,
    out: str | Path,
    results: str | Path,
    use_cpu: bool,
    workers: int,
    summarise_only: bool,
    keep_models: bool = False,
) -> Outcome:
    """Tune each initialisation, then train it with each budget and seed and evaluate it on test events, which are not opened before.

    Arguments and errors as of `nufm_hub.studies.data_efficiency.data_efficiency`; `results` gets the table of the tuning only. `keep_models`
    leaves each model as `model` in the folder of its run. Where nothing is tuned and no curve is wanted, no `validation` is needed.
    """
    out, results = Path(out), Path(results)
    new_figure()  # what plots need is missing now, not after hours
    if validation is None and (len(study.plan.tuning.grid) > 1 or study.evaluations):
        raise ValueError(f"{study.name}: give validation events: there are settings to choose, or losses to watch")
    refuse_shared_files({"events": events, "test": test} | ({} if validation is None else {"validation": validation}))
    sources = {name: describe_source(source) for name, source in study.initialisations.items()}
    train_events = Events.open(events, study.task)
    validation_events = None if validation is None else Events.open(validation, study.task)
    labels, spec = study.labels(len(train_events)), open_task(get_task(study.task), list(events)).spec

    def go(runs: Sequence[StudyRun], folder: Path, evaluated: Events, keep: Sequence[str] = ()) -> list[dict[str, Any]]:
        if summarise_only:
            return finished(runs, folder)
        work = fine_tune_and_evaluate(train_events, evaluated, study.initialisations, use_cpu, workers, validation_events)
        rival = predict_and_score(Tables(study.task, train_events, evaluated), spec)
        return execute(runs, folder, lambda settings, run: (rival if "rival" in settings else work)(settings, run), [*keep, PREDICTIONS])

    trials = _tuning_runs(study, sources, train_events, validation_events)
    tried = go(trials, out / "tuning", validation_events) if trials else []
    tuning_rows = [_tuning_row(record) for record in tried]
    if tuning_rows:
        write_table(tuning_rows, results / f"{study.name}-tuning.csv")
    chosen = choose(tuning_rows, study.plan.tuning) if len(tried) == len(trials) else []

    planned = len(study.seeds) * len(labels) * (len(sources) + len(study.rivals))
    records: list[dict[str, Any]] = []
    against: list[dict[str, Any]] = []
    data = {"train": train_events.description} | ({} if validation_events is None else {"validation": validation_events.description})
    if chosen or not trials:
        # The settings are fixed: only from here on is there anything that reads test events.
        test_events = Events.open(test, study.task)
        data["test"] = test_events.description
        runs = _study_runs(study, sources, labels, chosen, train_events, validation_events, test_events)
        records = go(runs, out / STUDY_FOLDER, test_events, [MODEL_FOLDER] if keep_models else [])
        against = compare_with_rivals(records, out / STUDY_FOLDER, Tables(study.task, train_events, test_events), spec)
    rows = [_row(record) for record in records]
    summary = {
        "study": study.name,
        "task": study.task,
        "runs": {"finished": len(records), "planned": planned, "diverged": sum(r["result"]["evaluation"] is None for r in records)},
        "labels": labels,
        "seeds": list(study.seeds),
        "initialisations": sources,
        "plan": {**asdict(study.plan), "recipe": study.plan.full_recipe.to_dict()},
        "tuning": {
            "finished": len(tried),
            "planned": len(trials),
            "chosen": chosen,
            "trials": [{k: v for k, v in row.items() if "." not in k} for row in tuning_rows],
        },
        "summary": summarise(rows, ["initialisation", "labels"]),
        "against_scratch": compare_with_reference(rows) if REFERENCE in sources else [],
        "against_rivals": against,
        "data": {name: _short(description) for name, description in data.items()},
        **_origin([*tried, *records]),
    }
    return Outcome(records, rows, summary)


def _tuning_runs(study: Study, sources: Mapping[str, Any], train_events: Events, validation: Events | None) -> list[StudyRun]:
    """None where there is nothing to choose from."""
    plan, runs = study.plan, []
    if len(plan.tuning.grid) == 1:
        return runs
    if max(plan.tuning.budgets) > len(train_events):
        raise ValueError(f"tuning budget {max(plan.tuning.budgets)} is larger than the {len(train_events)} training events: choose another")
    for seed in plan.tuning.seeds:
        for labels in plan.tuning.budgets:
            for setting in plan.tuning.grid:
                for name in sources:
                    run = f"n{labels}-seed{seed}-{name}-lr{setting.base_learning_rate:g}-epochs{setting.epoch_factor:g}"
                    settings = _settings(study, sources, name, labels, seed, setting, train_events, {"validation": validation})
                    runs.append(StudyRun(run, settings))
    return runs


def _study_runs(
    study: Study,
    sources: Mapping[str, Any],
    labels: Iterable[int],
    chosen: Sequence[Mapping[str, Any]],
    train_events: Events,
    validation: Events | None,
    test: Events,
) -> list[StudyRun]:
    """Seed by seed, and within a seed from few labels to many, initialisations next to each other: the first results say most."""
    best = {(c["initialisation"], c["labels"]): Setting(c["base_learning_rate"], c["epoch_factor"]) for c in chosen}
    runs = []
    for seed in study.seeds:
        for n in labels:
            for name in sources:
                setting = best[name, study.plan.tuning.nearest_budget(n)] if best else study.plan.tuning.grid[0]
                evaluated = {"test": test, **({"validation": validation} if study.evaluations else {})}
                settings = _settings(study, sources, name, n, seed, setting, train_events, evaluated)
                if study.evaluations:
                    settings["evaluations"] = study.evaluations
                runs.append(StudyRun(f"n{n}-seed{seed}-{name}", settings))
            identity = {"train": train_events.identity, "evaluated": {"test": test.identity}}
            for rival in study.rivals:
                settings = {"task": study.task, "rival": rival, "initialisation": rival, "labels": n, "seed": seed, **identity}
                runs.append(StudyRun(f"n{n}-seed{seed}-{rival}", settings))
    return runs


def _settings(
    study: Study,
    sources: Mapping[str, Any],
    initialisation: str,
    labels: int,
    seed: int,
    setting: Setting,
    train_events: Events,
    evaluated: Mapping[str, Events],
) -> dict[str, Any]:
    return {
        "task": study.task,
        "initialisation": initialisation,
        "source": sources[initialisation],
        "labels": labels,
        "seed": seed,
        "epoch_factor": setting.epoch_factor,
        "recipe": study.plan.recipe_for(initialisation, labels, setting).to_dict(),
        "train": train_events.identity,
        "evaluated": {name: events.identity for name, events in evaluated.items()},
        **({"transfer": True} if study.transfer and sources[initialisation] else {}),
    }


def _row(record: Mapping[str, Any]) -> dict[str, Any]:
    settings, evaluation = record["settings"], record["result"]["evaluation"]
    recipe, training = settings.get("recipe", {}), record["result"].get("training", {})  # a rival has neither
    return {
        "run": record["name"],
        **{key: settings[key] for key in ("initialisation", "labels", "seed")},
        **{key: recipe.get(key) for key in ("base_learning_rate", "epochs", "batch_size", "layer_decay")},  # no epochs: in steps
        "epoch_factor": settings.get("epoch_factor"),
        **{key: training.get(key) for key in ("steps", "last_loss", "parameters")},
        "training_seconds": training.get("seconds"),
        "seconds": record["seconds"],
        "settings_sha256": hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16],
        "weights_sha256": evaluation and evaluation.get("weights_sha256"),
        "git_revision": record["git_revision"],
        "held_out": evaluation and evaluation.get("held_out"),
        **(flatten(evaluation["metrics"]) if evaluation else {}),
    }


def _tuning_row(record: Mapping[str, Any]) -> dict[str, Any]:
    evaluation, row = record["result"]["evaluation"], _row(record)
    value = None if evaluation is None else objective(record["settings"]["task"], evaluation["metrics"])
    position = list(row).index("steps")
    items = list(row.items())
    return dict([*items[:position], ("objective", value), *items[position:]])


def _short(description: Mapping[str, Any]) -> dict[str, Any]:
    """Without what is said of every file."""
    simulations = [{k: v for k, v in s.items() if k not in ("shards", "summary")} for s in description["simulations"]]
    return {**{k: v for k, v in description.items() if k != "files"}, "files": len(description["files"]), "simulations": simulations}


def _origin(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Code and machines that made the runs; each different one once."""

    def different(values: Iterable[Any]) -> list[Any]:
        return [json.loads(text) for text in dict.fromkeys(json.dumps(value, sort_keys=True) for value in values)]

    return {
        "git_revisions": different(r["git_revision"] for r in records),
        "versions": different(r["versions"] for r in records),
        "machines": different(r["result"]["training"]["machine"] for r in records if "training" in r["result"]),
        "num_resamples": different(r["result"]["evaluation"]["num_resamples"] for r in records if r["result"]["evaluation"]),
        "seconds": round(sum(r["seconds"] for r in records), 1),
    }
