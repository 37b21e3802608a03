"""What each option of an encoder's layout is worth: the same training without pre-training, with one thing changed at a time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .comparison import Study, compare
from .fine_tuning import Paths
from .label_factor import compare_with_reference
from .plan import Plan
from .tables import write_results

NAME = "layout"


def study_layout(
    plan: Plan,
    task: str,
    labels: int | str,
    seeds: Sequence[int],
    events: Paths,
    test: Paths,
    out: str | Path,
    results: str | Path,
    use_cpu: bool = False,
    workers: int = 0,
    summarise_only: bool = False,
) -> dict[str, Any]:
    """Train every variant of a plan from random weights with each seed, and write `layout.csv` and `.json`.

    Nothing is tuned, and all variants make the same number of steps. What is chosen by this is chosen by the events it is judged on, so give
    validation events.

    Args:
        plan: its `overrides` are the variants; the others are compared with the first one. One learning rate, one factor.
        task: of `nufm_hub.tasks.TASKS`.
        labels: number of labelled events, a share such as `"10%"`, or `"all"`.
        seeds: each decides the subset of events, the weights, the order and the augmentation.
        events, test: parquet files, folders or globs.
        out, results, use_cpu, workers, summarise_only: as of `nufm_hub.studies.data_efficiency.data_efficiency`.

    Returns:
        What is in the JSON file.

    Raises:
        ValueError: a plan with fewer than two variants, with something to tune, or in epochs; bad events or labels.
    """
    variants = list(plan.overrides)
    if len(variants) < 2:
        raise ValueError(f"a study of layouts compares two or more variants, the overrides of its plan; got {variants}")
    if len(plan.tuning.grid) > 1 or plan.full_recipe.steps is None:
        raise ValueError("a study of layouts trains all variants alike: give a recipe in steps, one learning rate and one factor")
    study = Study(task, NAME, dict.fromkeys(variants), [labels], seeds, plan)
    outcome = compare(study, events, None, test, out, results, use_cpu, workers, summarise_only)
    summary = outcome.summary | {"reference": variants[0], "against_reference": compare_with_reference(outcome.rows, variants[0])}
    write_results(NAME, outcome.rows, summary, results)
    return summary
