"""What the Hub reads of a card: licence, library, tags, base model, and the results as a `model-index`."""

from __future__ import annotations

from huggingface_hub import EvalResult, ModelCardData

from .facts import Facts
from .kinds import KINDS
from .scores import metric_name, quantity_name, single_values


def metadata(facts: Facts) -> ModelCardData:
    """The YAML block. Intervals and how they were made stand in the `args` of each metric."""
    step, kind = facts.step, KINDS[facts.step.task.name]
    optional = {}
    if (source := step.source) is not None and "/" in source:
        optional = {"base_model": source, "base_model_relation": "finetune"}
    if step.is_pretraining:
        optional["pipeline_tag"] = "feature-extraction"
    return ModelCardData(
        license="apache-2.0",
        library_name="transformers",
        tags=[step.config.model_type, "neutrino", "particle-physics", "sparse", "simulated-data", facts.spec.name, *kind.tags],
        model_name=facts.stem,
        eval_results=eval_results(facts),
        **optional,
    )


def eval_results(facts: Facts) -> list[EvalResult]:
    """Every metric that is one number and defined, but for the baselines."""
    e, kind = facts.evaluation, KINDS[facts.step.task.name]
    seeds = sorted({s["seed"] for record in e["data"]["simulations"] for s in record.get("source", [record])})
    results = []
    for quantity, scores in e["metrics"].items():
        if quantity == "vertex_baseline":
            continue
        for key, (value, low, high) in single_values(scores).items():
            if value is None:
                continue
            bootstrap = {} if low is None else {"low": low, "high": high, "num_resamples": e["num_resamples"]}
            results.append(
                EvalResult(
                    task_type="other",
                    task_name=kind.title,
                    dataset_type=e["data"]["detector"],
                    dataset_name=f"simulated {e['data']['detector']} events" + (f", seed {', '.join(map(str, seeds))}" if seeds else ""),
                    dataset_revision=e["data"]["events_sha256"],
                    dataset_split="test",
                    metric_type=key,
                    metric_name=f"{quantity_name(quantity)}: {metric_name(key)}",
                    metric_value=value,
                    metric_args={"num_events": scores["num_events"], "seed": e["seed"], **bootstrap},
                )
            )
    return results
