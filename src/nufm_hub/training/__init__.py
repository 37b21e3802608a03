"""Training: recipes as data, on top of transformers' Trainer."""

from .recipe import Recipe, list_recipes, load_recipe

__all__ = ["TASKS", "Recipe", "list_recipes", "load_recipe", "train"]


def __getattr__(name: str):
    # The Trainer costs seconds to import; recipes and the command line do not need it.
    if name in ("TASKS", "train"):
        from . import run

        return getattr(run, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
