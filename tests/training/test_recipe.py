import json
from dataclasses import fields

import pytest

from nufm_hub.events.augmentation import Augmentation
from nufm_hub.models import NuFMConfig
from nufm_hub.training.recipe import Recipe, list_recipes, load_recipe


def test_every_packaged_recipe_loads_and_survives_json():
    assert "fasercal-pretrain-nano" in list_recipes()
    for name in list_recipes():
        recipe = load_recipe(name)
        assert load_recipe(json.loads(json.dumps(recipe.to_dict()))) == recipe


@pytest.mark.parametrize(
    ("name", "rate", "warmup_epochs", "values"),
    [
        ("fasercal-pretrain", 3e-4, 40, {"epochs": 400, "batch_size": 512, "betas": (0.9, 0.95), "layer_decay": 1, "ema_decay": 0}),
        ("fasercal-finetune", 2e-3, 5, {"epochs": 20, "batch_size": 1024, "betas": (0.9, 0.999), "layer_decay": 0.75, "ema_decay": 0.9999}),
        ("fasercal-scratch", 4e-3, 5, {"epochs": 40, "batch_size": 1024, "betas": (0.9, 0.999), "layer_decay": 1, "ema_decay": 0.9999}),
        ("superfgd-transfer", 1e-3, 10, {"epochs": 30, "layer_decay": 0.75, "ema_decay": 0.9999}),
        ("pilarnet-transfer", 1e-3, 10, {"epochs": 30, "layer_decay": 0.75, "ema_decay": 0.9999}),
        ("pilarnet-multi-transfer", 1e-2, 10, {"epochs": 30, "layer_decay": 0.75, "ema_decay": 0.9999}),
    ],
)
def test_published_settings(name, rate, warmup_epochs, values):
    """Numbers of arXiv:2604.07037; rates are given per 256 events and scale with the batch."""
    recipe = load_recipe(name)
    assert recipe.preset == "base"
    assert recipe.learning_rate == pytest.approx(rate)
    assert recipe.warmup * recipe.epochs == pytest.approx(warmup_epochs)
    assert {key: getattr(recipe, key) for key in values} == values
    config = NuFMConfig.preset(recipe.preset, **recipe.model)
    pretraining = name == "fasercal-pretrain"
    assert (config.mask_ratio, config.drop_path_rate) == ((0.75, 0) if pretraining else (0.75, 0.2))
    assert config.label_smoothing == (0.02 if name in ("fasercal-finetune", "fasercal-scratch") else 0)
    if name.startswith("fasercal"):
        axes = ((0, 1, 2), (0, 1, 2)) if pretraining else ((0, 1), (2,))
        assert (recipe.make_augmentation().mirror_axes, recipe.make_augmentation().rotate_axes) == axes
        assert recipe.make_augmentation().energy_scale == 0.1


@pytest.mark.parametrize("name", [name for name in list_recipes() if name.endswith("-nano")])
def test_nano_recipes_leave_the_energy_scale_to_the_momenta(name):
    assert load_recipe(name).make_augmentation().energy_scale == 0


def test_the_record_of_a_recipe_does_not_depend_on_later_defaults():
    record = load_recipe("fasercal-finetune-nano", augmentation={"max_drop": 0.1}).to_dict()["augmentation"]
    assert record.keys() == {f.name for f in fields(Augmentation)}
    assert (record["max_drop"], record["max_shift"], record["noise"]) == (0.1, 4, [0.06, 0.18])


def test_learning_rate_scales_with_the_batch():
    recipe = Recipe(preset="nano", epochs=1, batch_size=128, base_learning_rate=1e-3)
    assert recipe.learning_rate == pytest.approx(5e-4)
    assert load_recipe(recipe, batch_size=512).learning_rate == pytest.approx(2e-3)


def test_overrides_and_files(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(load_recipe("fasercal-finetune-nano", epochs=3).to_dict()))
    assert load_recipe(path).epochs == 3
    assert load_recipe(path, epochs=4, augmentation=None).make_augmentation() is None


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"epochs": 0}, "out of range"),
        ({"layer_decay": 1.5}, "out of range"),
        ({"batch_size": 50}, "out of range"),
        ({"ema_decay": 1}, "out of range"),
        ({"learning_rate": 1e-3}, "unknown fields"),
        ({"augmentation": {"max_drop": 2}}, "max_drop"),
        ({"augmentation": {"mirror": 2}}, "mirror"),
        ({"model": 5}, "model=5 must be a dictionary"),
        ({"model": {"drop_path": 0.1}}, r"\['drop_path'\]: known are .*'drop_path_rate'"),
        ({"model": {"detector": "superfgd"}}, "detector"),
    ],
)
def test_bad_values_are_named(overrides, message):
    with pytest.raises(ValueError, match=message):
        load_recipe("fasercal-finetune-nano", **overrides)


def test_unknown_or_broken_recipe(tmp_path):
    with pytest.raises(ValueError, match="fasercal-pretrain-nano"):
        load_recipe("no-such-recipe")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ValueError, match=r"broken\.json"):
        load_recipe(tmp_path / "broken.json")


def test_steps_and_epochs_take_each_others_place():
    recipe = load_recipe("fasercal-finetune-nano", steps=300)
    assert (recipe.steps, recipe.epochs) == (300, None)
    assert "epochs" not in recipe.to_dict()
    assert load_recipe(recipe.to_dict()) == recipe
    assert "steps" not in load_recipe("fasercal-finetune-nano").to_dict()  # what runs are compared by has not changed
    back = load_recipe(recipe, epochs=2)
    assert (back.steps, back.epochs) == (None, 2)
    assert load_recipe(recipe, batch_size=64).steps == 300


@pytest.mark.parametrize("values", [{"steps": 5, "epochs": 1}, {"steps": None}, {"steps": 2.5}, {"steps": 0}, {"epochs": -1}])
def test_a_length_that_makes_no_sense_is_refused(values):
    with pytest.raises(ValueError, match=r"steps or in epochs|out of range"):
        load_recipe("fasercal-finetune-nano", **values)
