"""Plans: epochs by number of labels, what each initialisation gets, and errors that say what is wrong."""

import json

import pytest

from nufm_hub.studies.plan import Plan, Setting, Tuning, load_plan

TUNING = Tuning((0.01, 0.02), (1, 2), (100, 1000), (9,))


def plan(epochs):
    return Plan("fasercal-finetune-nano", epochs, TUNING)


def test_epochs_are_a_power_of_the_labels():
    p = plan({100: 40, 400: 20, 6400: 10})
    assert [p.epochs_for(n) for n in (100, 400, 6400)] == pytest.approx([40, 20, 10])
    assert p.epochs_for(200) == pytest.approx(40 / 2**0.5)
    assert p.epochs_for(1600) == pytest.approx(20 / 2**0.5)
    # Beyond the table with the power from the first entry to the last, log(4) / log(64) = 1/3.
    assert p.epochs_for(51200) == pytest.approx(5)
    assert p.epochs_for(12.5) == pytest.approx(80)
    assert plan({100: 7}).epochs_for(9999) == pytest.approx(7)


def test_the_packaged_plan():
    p = load_plan("data-efficiency")
    setting = Setting(0.02, 2)
    scratch, pretrained = (p.recipe_for(name, 100, setting) for name in ("scratch", "mae-rel"))
    assert (scratch.layer_decay, pretrained.layer_decay) == (1.0, 0.85)
    assert scratch.epochs == pretrained.epochs == round(2 * p.epochs_for(100))
    assert scratch.base_learning_rate == 0.02
    steps = [p.recipe_for("mae", n, Setting(0.02, 1)).epochs * n for n in (100, 300, 1000, 3400, 34000)]
    assert steps == sorted(steps), "more labels are never fewer steps"
    assert p.recipe_for("mae", 10**9, setting).epochs == 1


def test_values_can_be_replaced():
    p = load_plan("data-efficiency", None, {"warmup": 0.3}, budgets=[50], seeds=None)
    assert (p.tuning.budgets, p.tuning.seeds) == ((50,), load_plan("data-efficiency").tuning.seeds)
    assert p.recipe_for("scratch", 100, p.tuning.grid[0]).warmup == 0.3
    assert load_plan("data-efficiency", "fasercal-finetune").recipe == "fasercal-finetune"


def test_a_recipe_in_steps_makes_the_same_steps_with_any_number_of_labels():
    p = load_plan("data-efficiency", None, {"steps": 400})
    found = [p.recipe_for("mae", n, Setting(0.02, factor)) for n in (10, 10**5) for factor in (0.5, 1)]
    assert [(r.steps, r.epochs) for r in found] == [(200, None), (400, None)] * 2
    without_table = Plan("fasercal-finetune-nano", {}, TUNING, overrides={"scratch": {"steps": 900}}, recipe_values={"steps": 400})
    assert [without_table.recipe_for(name, 100, Setting(0.02, 1)).steps for name in ("scratch", "mae")] == [900, 400]


def test_the_nearest_tuned_budget():
    assert [TUNING.nearest_budget(n) for n in (10, 300, 330, 9999)] == [100, 100, 1000, 1000]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recipe": "nothing"}, "unknown recipe 'nothing'"),
        ({"overrides": {"mae": {"colour": 1}}}, "colour"),
        ({"epochs": {"0": 5}}, "epochs"),
        ({"epochs": {"many": 5}}, "many"),
        ({"epochs": {}}, "epochs"),
        ({"tuning": {"base_learning_rates": [0.1]}}, "does not hold what a plan must"),
        ({"more": 1}, "more"),
    ],
)
def test_bad_plans_are_named(change, message, tmp_path):
    good = {
        "recipe": "fasercal-finetune-nano",
        "epochs": {"100": 5},
        "tuning": {"base_learning_rates": [1], "epoch_factors": [1], "budgets": [9], "seeds": [1]},
    }
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(good))
    assert load_plan(path).epochs == {100: 5}
    path.write_text(json.dumps(good | change))
    with pytest.raises(ValueError, match=message):
        load_plan(path)


def test_bad_grids_are_named():
    with pytest.raises(ValueError, match="unknown plan"):
        load_plan("nothing")
    for tuning in ({"budgets": [0]}, {"base_learning_rates": [0.1, 0.1]}, {"epoch_factors": [-1.0]}):
        with pytest.raises(ValueError, match=next(iter(tuning))):
            load_plan("data-efficiency", **tuning)
