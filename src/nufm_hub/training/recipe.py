"""Training recipes as data: a JSON file says how, the data set says on what."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from importlib import resources
from pathlib import Path
from typing import Any

from nufm_hub.events.augmentation import Augmentation
from nufm_hub.models.families import DEFAULT_FAMILY, get_family

_FOLDER = resources.files(__package__) / "recipes"
_LENGTHS = ("epochs", "steps")


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a training besides data, seed and machine.

    Attributes:
        preset: model size for a model without a pretrained start, see `DetectorConfig.preset`.
        family: of a model without a pretrained start.
        model: overrides of fields of the family's configuration; the detector is that of the events.
        augmentation: `Augmentation` fields, or None for none. Those not given are filled in, so that the record of a run says all of them.
        epochs: passes over the training events, or
        steps: optimiser steps, whatever the number of events. One of the two; in `load_recipe` a value of one takes the place of the other.
        batch_size: events of one optimiser step over all processes, and `micro_batch_size` of one forward pass.
        base_learning_rate: per 256 events; the rate used is this times batch_size / 256.
        warmup: share of the steps with a rising rate; a cosine to zero follows.
        weight_decay: for matrices only; norms, biases, tokens and embeddings have none.
        betas: of AdamW.
        layer_decay: factor of the learning rate from each depth of the encoder to the one below; 1 for none.
        carried_rate: factor of the learning rate of weights that were taken along from another detector: what is new has far to go, they have not.
        max_grad_norm: gradient clipping.
        ema_decay: of the moving average of the weights that is evaluated and saved, see `ExponentialMovingAverage`; 0 for none.

    Raises:
        ValueError: a value out of range, or an unknown field of the model.
    """

    preset: str
    batch_size: int
    base_learning_rate: float
    epochs: int | None = None
    steps: int | None = None
    micro_batch_size: int = 32
    family: str = DEFAULT_FAMILY
    model: dict[str, Any] = field(default_factory=dict)
    augmentation: dict[str, Any] | None = field(default_factory=dict)
    warmup: float = 0.1
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    layer_decay: float = 1.0
    carried_rate: float = 1.0
    max_grad_norm: float = 1.0
    ema_decay: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(self.betas))
        length = {name: value for name in _LENGTHS if (value := getattr(self, name)) is not None}
        if len(length) != 1 or not all(isinstance(value, int) for value in length.values()):
            raise ValueError(f"a recipe says how long it trains in steps or in epochs, as a whole number: give one of them, got {length}")
        positive = min(*length.values(), self.batch_size, self.micro_batch_size, self.base_learning_rate) > 0
        shares = 0 <= self.warmup < 1 and 0 < self.layer_decay <= 1 and 0 <= self.carried_rate <= 1 and 0 <= self.ema_decay < 1
        if not positive or not shares or self.batch_size % self.micro_batch_size:
            raise ValueError(f"recipe values out of range: {self}")
        if not isinstance(self.model, dict):
            raise ValueError(f"model={self.model!r} must be a dictionary of fields of the family's configuration")
        get_family(self.family, "the recipe").config.check_fields(self.model)
        if self.augmentation is not None:
            object.__setattr__(self, "augmentation", asdict(Augmentation(**self.augmentation)))

    @property
    def learning_rate(self) -> float:
        """Of the batch: `base_learning_rate * batch_size / 256`."""
        return self.base_learning_rate * self.batch_size / 256

    def make_augmentation(self) -> Augmentation | None:
        """What is done to events before each step; None for nothing."""
        return None if self.augmentation is None else Augmentation(**self.augmentation)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, with `betas` as a list; `load_recipe` gives an equal recipe back."""
        data = json.loads(json.dumps(asdict(self)))
        # younger than runs that are to stay comparable
        usual = {"carried_rate": 1, "family": DEFAULT_FAMILY, "epochs": None, "steps": None}
        return {name: value for name, value in data.items() if name not in usual or value != usual[name]}


def list_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(p.name.removesuffix(".json") for p in _FOLDER.iterdir() if p.name.endswith(".json"))


def load_recipe(recipe: str | Path | Mapping[str, Any] | Recipe, **overrides: Any) -> Recipe:
    """A recipe from a packaged name, a JSON file, a dictionary or a recipe; keyword arguments replace single values.

    Raises:
        ValueError: unknown recipe or field, or a value out of range.
    """
    replaced = dict.fromkeys(_LENGTHS) if set(_LENGTHS) & set(overrides) else {}
    overrides = replaced | overrides
    if isinstance(recipe, Recipe):
        return replace(recipe, **overrides)
    if isinstance(recipe, Mapping):
        data = dict(recipe)
    else:
        path = _FOLDER / f"{recipe}.json" if str(recipe) in list_recipes() else Path(recipe)
        if not path.is_file():
            raise ValueError(f"unknown recipe {str(recipe)!r}: give one of {list_recipes()}, or the path of a JSON file")
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"recipe {path} is not valid JSON: {error}") from error
    data |= overrides
    if unknown := set(data) - {f.name for f in fields(Recipe)}:
        raise ValueError(f"recipe {recipe}: unknown fields {sorted(unknown)}; known are {[f.name for f in fields(Recipe)]}")
    try:
        return Recipe(**data)
    except TypeError as error:
        raise ValueError(f"recipe {recipe}: {error}") from error
