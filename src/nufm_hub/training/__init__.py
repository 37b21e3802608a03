"""Training: recipes as data, on top of transformers' Trainer."""

from nufm_hub.lazy import lazy_names

from .recipe import Recipe, list_recipes, load_recipe

__all__ = ["Recipe", "list_recipes", "load_recipe", "train"]

# The Trainer costs seconds to import; recipes and the command line do not need it.
__getattr__ = lazy_names(__name__, {"train": "run"})
