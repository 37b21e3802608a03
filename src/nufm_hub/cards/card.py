"""The card of a checkpoint, from a template and what the files say."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import ModelCard
from jinja2 import Environment, PackageLoader, StrictUndefined

from nufm_hub.files import new_file

from . import origin
from .facts import Facts, load_facts
from .kinds import KINDS, SIMULATIONS, STAND_IN
from .markdown import number, revision
from .metadata import metadata
from .rivals import rivals_of
from .scores import class_tables, scores_table
from .studies import WORSE, studies_of

_TEMPLATE = "card.md.jinja"


def write_card(checkpoint: str | Path, results: str | Path, out: str | Path) -> Path:
    """Write `out/<name>.md`; see `make_card`."""
    facts = load_facts(checkpoint, Path(results))
    path = Path(out) / f"{facts.stem}.md"
    with new_file(path, overwrite=True) as temporary:
        temporary.write_text(str(_card(facts)), encoding="utf-8")
    return path


def make_card(checkpoint: str | Path, results: str | Path) -> ModelCard:
    """The card of a checkpoint.

    Args:
        checkpoint: bundled id or folder, with its `training.json`.
        results: folder with `<name>.json` of `nufm evaluate`, and what studies wrote.

    Raises:
        ValueError: a file is missing or belongs to other weights, or the evaluation is of training events.
    """
    return _card(load_facts(checkpoint, Path(results)))


def _card(facts: Facts) -> ModelCard:
    environment = Environment(
        loader=PackageLoader(__package__, "."), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    studies, outdated = studies_of(facts)
    step, metrics = facts.step, facts.evaluation["metrics"]
    simulated = origin.simulations(facts)
    notes = [SIMULATIONS[name] for name in dict.fromkeys(s["simulation"] for s in simulated) if name in SIMULATIONS]
    text = environment.get_template(_TEMPLATE).render(
        f=facts,
        kind=KINDS[step.task.name],
        step=step,
        method=step.config.method,
        training=step.training,
        evaluation=facts.evaluation,
        metrics=metrics,
        truth=[f"`{s.name}`" for s in facts.steps if s.uses_truth],
        labels=[label.name for label in facts.steps[-1].config.spec.voxel_branches[0].labels],
        code=_code(facts),
        scores=scores_table(metrics),
        classes=class_tables(metrics),
        splits=origin.crop_splits(facts),
        rivals=rivals_of(facts),
        studies=studies,
        outdated=outdated,
        worse=WORSE,
        events=origin.events_table(facts),
        simulation_notes=[*notes, *([STAND_IN] if any(s["geant4_data"].startswith("geant4-") for s in simulated) else [])],
        simulate_commands=origin.simulate_commands(facts),
        evaluate_command=origin.evaluate_command(facts),
        train_command=origin.train_command,
        recipe_table=origin.recipe_table,
        cost=origin.cost_table(facts),
        number=number,
        revision=revision,
    )
    return ModelCard(f"---\n{metadata(facts).to_yaml()}\n---\n\n{text}")


def _code(facts: Facts) -> str:
    """Lines that load the model and use it on an event, a packaged one where there is one."""
    kind = KINDS[facts.step.task.name]
    model = "AutoModel" if facts.step.is_pretraining else facts.step.task.auto.__name__
    names = [kind.pipeline] if kind.pipeline else [model, "AutoProcessor"]
    source = f'sample_path("{facts.sample.stem}")' if facts.sample else '"events.parquet"'
    lines = [f"from nufm_hub import {', '.join([*names, 'read_events', *(['sample_path'] if facts.sample else [])])}"]
    lines += ["", f"event = next(read_events({source}))"]
    loaded = {"predict": kind.pipeline} if kind.pipeline else {"model": model, "processor": "AutoProcessor"}
    lines += [f'{name} = {cls}.from_pretrained("{facts.name}")' for name, cls in loaded.items()]
    return "\n".join([*lines, kind.code])
