"""Where weights and events came from, as tables, and the commands that make them again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from .facts import Facts, Step
from .markdown import number, revision, table


def events_table(facts: Facts) -> str:
    """Every simulation that made events, and what these were used for."""
    uses: dict[str, list[str]] = {}
    for use, simulation in _uses(facts):
        uses.setdefault(json.dumps(simulation, sort_keys=True), []).append(use)
    rows = []
    for text, names in uses.items():
        s = json.loads(text)
        settings = ", ".join(f"{k} {_words(v, ' to ')}" for k, v in s["settings"].items())
        revisions = ", ".join(map(revision, s["git_revisions"]))
        tables, detector = f"`{s['geant4_data']}`", f"`{s['detector_hash']}`"
        rows.append((", ".join(dict.fromkeys(names)), number(s["events"]), s["seed"], settings, tables, detector, revisions))
    return table(("used for", "simulated events", "seed", "settings", "Geant4 tables", "detector", "code"), rows, numbers_from=7)


def simulations(facts: Facts) -> list[dict[str, Any]]:
    """All of them, each once."""
    different = {json.dumps(simulation, sort_keys=True): simulation for _, simulation in _uses(facts)}
    return list(different.values())


def simulate_commands(facts: Facts) -> list[str]:
    """One for each."""
    commands = []
    for s in simulations(facts):
        options = " ".join(f"--{key.replace('_', '-')} {_words(value, ' ')}" for key, value in s["settings"].items())
        size = f"--events {s['events']} --seed {s['seed']} --shard-size {s['shard_size']}"
        commands.append(f"nufm simulate {s['simulation']} {size} {options} --out {_place(s)}")
    return commands


def crop_splits(facts: Facts) -> list[dict[str, Any]]:
    """How the evaluated crops were set apart from those of the training, each way once; nothing for events that were not split."""
    records = facts.evaluation["data"]["simulations"]
    different = {json.dumps(record["split"], sort_keys=True): record["split"] for record in records if "split" in record}
    return list(different.values())


def evaluate_command(facts: Facts) -> str:
    """What measures the results again."""
    events = "" if facts.is_on_sample else " --events EVENTS"
    e = facts.evaluation
    usual = {"batch_size": 32, "seed": 0, "num_resamples": 1000}
    options = "".join(f" --{name.replace('_', '-')} {e[name]}" for name, value in usual.items() if e[name] != value)
    return f"nufm evaluate {facts.name}{events}{options} --out model_cards/results/{facts.stem}.json"


def train_command(step: Step) -> str:
    """What trains the weights again, given the recipe as a file."""
    t = step.training
    words = ["nufm pretrain" if step.is_pretraining else f"nufm finetune {t['task']}", "--recipe recipe.json", "--events EVENTS"]
    words += [f"--source {step.source}"] if step.source else []
    words += ["--transfer"] if t.get("transfer") else []
    words += [f"--max-events {t['max_events']}"] if "max_events" in t else []
    words += ["--validation VALIDATION"] if t["data"].get("validation") else []
    return " ".join([*words, f"--seed {t['seed']}", f"--out runs/{step.name.rpartition('/')[2]}"])


def recipe_table(step: Step) -> str:
    """All values of the recipe."""
    t = step.training
    rows = [(f"`{key}`", f"`{json.dumps(value)}`") for key, value in t["recipe"].items()]
    return table(("value", "used"), [*rows, ("`seed`", f"`{t['seed']}`")], numbers_from=2)


def cost_table(facts: Facts) -> str:
    """What the training took, step by step from the first."""
    rows = []
    for step in reversed(facts.steps):
        t = step.training
        machine = f"{t['machine']['platform']}, {t['machine']['cpus']} cores, GPU: {t['machine']['gpu']}"
        threads = f"{t.get('processes', 'not recorded')} x {t['machine']['torch_threads']}"
        seconds = f"{t['seconds']:,.0f}" + (" since the last interruption" if t["resumed"] else "")
        sizes = number(t["data"]["train"]["events"]), number(t["parameters"])
        rows.append((f"`{step.name}`", t["task"], *sizes, seconds, threads, machine, revision(t["git_revision"])))
    return table(("weights", "task", "events", "parameters", "seconds", "processes x threads", "machine", "code"), rows, numbers_from=8)


def _records(facts: Facts) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for step in reversed(facts.steps):
        for part, data in step.training["data"].items():
            for record in (data or {}).get("simulations", []):
                yield ("pre-training" if step.is_pretraining and part == "train" else part.replace("train", "training")), record
    for record in facts.evaluation["data"]["simulations"]:
        yield "evaluation", record


def _uses(facts: Facts) -> Iterator[tuple[str, dict[str, Any]]]:
    """Use and simulation; crops are traced back to the simulations of the events they were cut from."""
    for use, record in _records(facts):
        for simulation in record.get("source", [record]):
            if "simulation" in simulation:
                yield use, {k: v for k, v in simulation.items() if k not in ("shards", "summary", "versions")}


def _words(value: Any, between: str) -> str:
    return between.join(f"{v:g}" for v in value) if isinstance(value, list) else str(value)


def _place(simulation: Mapping[str, Any]) -> str:
    return f"data/{simulation['simulation']}-seed{simulation['seed']}"
