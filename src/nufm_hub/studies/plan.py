"""How a study of label budgets trains, as data: recipe, epochs, what each initialisation needs, and the grid of the tuning."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from importlib import resources
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nufm_hub.training import Recipe, load_recipe

_FOLDER = resources.files(__package__) / "plans"


class Setting(NamedTuple):
    """What is tuned: the recipe's `base_learning_rate`, and a factor on the plan's epochs, or on the steps of a recipe in steps."""

    base_learning_rate: float
    epoch_factor: float


@dataclass(frozen=True)
class Tuning:
    """The grid that is searched on validation events for each initialisation.

    Attributes:
        base_learning_rates, epoch_factors: every pair of them is tried.
        budgets: numbers of labels to try them with; a budget of the study takes what was best at the nearest of these.
        seeds: of the trials, none of them a seed of the study; a setting is judged by its mean over them.
    """

    base_learning_rates: tuple[float, ...]
    epoch_factors: tuple[float, ...]
    budgets: tuple[int, ...]
    seeds: tuple[int, ...]

    def __post_init__(self) -> None:
        for f in fields(self):
            values = tuple(getattr(self, f.name))
            if not values or len(set(values)) < len(values) or min(values) < (0 if f.name == "seeds" else 1e-12):
                raise ValueError(f"tuning {f.name} {values}: give one or more different positive numbers")
            object.__setattr__(self, f.name, values)

    @property
    def grid(self) -> list[Setting]:
        return [Setting(*pair) for pair in product(self.base_learning_rates, self.epoch_factors)]

    def nearest_budget(self, labels: int) -> int:
        """The tuned budget nearest in the logarithm."""
        return min(self.budgets, key=lambda budget: abs(math.log(budget / labels)))


@dataclass(frozen=True)
class Plan:
    """How a study trains.

    Attributes:
        recipe: see `load_recipe`.
        epochs: number of labels -> epochs. Between and beyond them, epochs are a power of the number of labels, see `epochs_for`. Not used
            with a recipe in steps: that makes the same number of steps with any number of labels.
        tuning: see `Tuning`.
        overrides: initialisation -> values of the recipe that differ for it; of `model` only the fields given.
        recipe_values: values of the recipe that differ for all.
    """

    recipe: str
    epochs: dict[int, float]
    tuning: Tuning
    overrides: dict[str, dict[str, Any]] = field(default_factory=dict)
    recipe_values: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        in_epochs = self.full_recipe.steps is None
        if (in_epochs and not self.epochs) or min([*self.epochs, *self.epochs.values()], default=1) <= 0:
            raise ValueError(f"epochs {self.epochs}: give positive numbers of epochs for one or more numbers of labels")
        for initialisation in ("", *self.overrides):
            self.recipe_for(initialisation, 1, self.tuning.grid[0])

    def epochs_for(self, labels: int) -> float:
        """Epochs without the tuned factor.

        Between two entries of the table the logarithm of the epochs is linear in that of the labels, so that steps grow like a power of
        the labels; beyond the table, by the power that joins its first and last entry.
        """
        n, epochs = np.log(np.array(sorted(self.epochs.items()), dtype=np.float64)).T
        x, power = math.log(labels), (epochs[-1] - epochs[0]) / (n[-1] - n[0]) if len(n) > 1 else 0.0
        # np.interp stays at the end's value beyond the table; the power goes on from there.
        return math.exp(np.interp(x, n, epochs) + power * (min(x - n[0], 0.0) + max(x - n[-1], 0.0)))

    @property
    def full_recipe(self) -> Recipe:
        """The recipe without what differs between trainings."""
        return load_recipe(self.recipe, **self.recipe_values)

    def recipe_for(self, initialisation: str, labels: int, setting: Setting) -> Recipe:
        """The recipe of one training."""
        common, differing = self.full_recipe, self.overrides.get(initialisation, {})
        own = load_recipe(common, **differing | {"model": common.model | differing.get("model", {})})
        unit, length = ("epochs", self.epochs_for(labels)) if own.steps is None else ("steps", own.steps)
        return load_recipe(own, base_learning_rate=setting.base_learning_rate, **{unit: max(1, round(length * setting.epoch_factor))})


def read_plan(plan: str | Path) -> dict[str, Any]:
    """What a packaged plan or a JSON file says.

    Raises:
        ValueError: there is no such plan, or it is no JSON.
    """
    packaged = sorted(p.name.removesuffix(".json") for p in _FOLDER.iterdir())
    path = _FOLDER / f"{plan}.json" if str(plan) in packaged else Path(plan)
    if not path.is_file():
        raise ValueError(f"unknown plan {str(plan)!r}: give one of {packaged}, or the path of a JSON file")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"plan {plan} is not valid JSON: {error}") from error


def load_plan(plan: str | Path | Mapping[str, Any], recipe: str | None = None, recipe_values: Mapping[str, Any] | None = None, **tuning: Any) -> Plan:
    """A packaged plan or a JSON file; what else is given replaces its values.

    Args:
        plan: name of a packaged plan, JSON file with the fields of `Plan`, or dictionary of them.
        recipe, recipe_values: as in `Plan`.
        **tuning: fields of `Tuning`; None keeps the plan's.

    Raises:
        ValueError: no such plan or recipe, an unknown field, or a value out of range.
    """
    try:
        data = dict(plan) if isinstance(plan, Mapping) else read_plan(plan)
        data["tuning"] = Tuning(**data["tuning"] | {name: value for name, value in tuning.items() if value})
        data["epochs"] = {int(labels): float(epochs) for labels, epochs in data.get("epochs", {}).items()}
        data["recipe_values"] = data.get("recipe_values", {}) | dict(recipe_values or {})
        return Plan(**data | ({"recipe": recipe} if recipe else {}))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"plan {plan} does not hold what a plan must: {type(error).__name__}: {error}") from error
