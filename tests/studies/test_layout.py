"""Variants of a layout on toy events: trained alike, compared with the first; and the packaged plan."""

import csv
import json

import pytest
from typer.testing import CliRunner

from nufm_hub.cli import app
from nufm_hub.models import NuFMConfig
from nufm_hub.studies.plan import load_plan


@pytest.fixture
def arguments(toy_files, recipe, tmp_path):
    def make(plan=None, **values):
        settings = {name: value for name, value in recipe.items() if name != "epochs"} | {"steps": 3} | values
        (tmp_path / "recipe.json").write_text(json.dumps(settings))
        tuning = {"base_learning_rates": [0.1], "epoch_factors": [1], "budgets": [1], "seeds": [1000]}
        variants = {"plain": {}, "read-out": {"model": {"readout_depth": 1}}, "summary": {"model": {"readout_depth": 1, "event_summary": True}}}
        given = {"recipe": str(tmp_path / "recipe.json"), "overrides": variants, "tuning": tuning} | (plan or {})
        (tmp_path / "plan.json").write_text(json.dumps(given))
        return [
            *("study", "layout", "--cpu", "--plan", str(tmp_path / "plan.json"), "--labels", "24", "--seed", "0", "--seed", "1"),
            *("--events", str(toy_files["train"]), "--test", str(toy_files["validation"])),
            *("--out", str(tmp_path / "runs"), "--results", str(tmp_path / "results")),
        ]

    return make


def test_variants_are_trained_alike_and_compared(arguments, tmp_path):
    result = CliRunner().invoke(app, arguments())
    assert result.exit_code == 0, result.output
    assert "6 of 6 runs" in result.output
    with (tmp_path / "results" / "layout.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["initialisation"], row["seed"], row["steps"], row["labels"]) for row in rows] == [
        (variant, seed, "3", "24") for seed in "01" for variant in ("plain", "read-out", "summary")
    ]
    sizes = {row["initialisation"]: int(row["parameters"]) for row in rows}
    assert sizes["plain"] < sizes["read-out"] < sizes["summary"]
    summary = json.loads((tmp_path / "results" / "layout.json").read_text())
    assert summary["reference"] == "plain"
    assert "validation" not in summary["data"]
    against = {(c["initialisation"], c["metric"]): c for c in summary["against_reference"]}
    values = {v: [float(r["vertex.vertex_error_mean"]) for r in rows if r["initialisation"] == v] for v in ("plain", "summary")}
    pairs = [a - b for a, b in zip(values["summary"], values["plain"])]
    assert against["summary", "vertex.vertex_error_mean"]["difference"]["mean"] == pytest.approx(sum(pairs) / 2)


@pytest.mark.parametrize(
    ("plan", "values", "message"),
    [
        ({"overrides": {"one": {}}}, {}, "two or more variants"),
        ({"tuning": {"base_learning_rates": [0.1, 0.2], "epoch_factors": [1], "budgets": [1], "seeds": [9]}}, {}, "one learning rate"),
        ({"epochs": {"10": 2}}, {"steps": None, "epochs": 1}, "a recipe in steps"),
    ],
)
def test_plans_that_compare_nothing_are_refused(plan, values, message, arguments):
    result = CliRunner().invoke(app, arguments(plan, **values))
    assert result.exit_code == 2
    assert "".join(message.split()) in "".join(result.output.replace("│", "").split())


def test_the_packaged_plan_changes_one_thing_at_a_time():
    plan = load_plan("layout")
    models = {name: plan.recipe_for(name, 1, plan.tuning.grid[0]).model for name in plan.overrides}
    configs = {name: NuFMConfig.preset("nano", **model) for name, model in models.items()}
    published = NuFMConfig.preset("nano", head_dropout=configs["full"].head_dropout)
    assert configs["published"].to_dict() == published.to_dict()
    for name, model in models.items():
        if name not in ("full", "published"):
            changed = {key for key in model if model[key] != models["full"].get(key)}
            assert changed <= {"readout_depth", "event_summary"} or len(changed) == 1
