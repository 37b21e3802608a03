import json

import pytest

from nufm_hub.training.recipe import Recipe, list_recipes, load_recipe


def test_every_packaged_recipe_loads_and_survives_json():
    assert "fasercal-pretrain-nano" in list_recipes()
    for name in list_recipes():
        recipe = load_recipe(name)
        assert load_recipe(json.loads(json.dumps(recipe.to_dict()))) == recipe


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
        ({"learning_rate": 1e-3}, "unknown fields"),
        ({"augmentation": {"max_drop": 2}}, "max_drop"),
        ({"augmentation": {"mirror": 2}}, "mirror"),
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
