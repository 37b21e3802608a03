"""The choice of settings, by hand."""

import math

import pytest

from nufm_hub.studies.plan import Tuning
from nufm_hub.studies.tuning import choose, objective

METRICS = {
    "flavour": {"macro_auroc": 0.9, "auroc": {"nc": 0.8}},
    "charm": {"macro_auroc": 0.75},
    "vertex": {"vertex_error_mean": 20.0},
    "vertex_baseline": {"vertex_error_mean": 500.0},
    "visible_momentum": {"resolution68": 0.25},
}


@pytest.mark.parametrize(
    ("task", "value"),
    [
        ("reconstruction", math.log(20) + math.log(0.1)),
        ("flavour", math.log(0.1)),
        ("charm", math.log(0.25)),
        ("vertex", math.log(20)),
        ("momentum", math.log(0.25)),
        ("voxels", math.log(0.1) + math.log(0.25)),
    ],
)
def test_objective(task, value):
    assert objective(task, METRICS) == pytest.approx(value)


def test_objective_at_the_ends():
    assert objective("flavour", {"flavour": {"macro_auroc": 1.0}}) == pytest.approx(math.log(1e-6))
    with pytest.raises(ValueError, match=r"do not define \['flavour.macro_auroc'\]"):
        objective("reconstruction", {"vertex": {"vertex_error_mean": 1.0}, "flavour": {"macro_auroc": None}})


def rows(values):
    """(initialisation, labels, rate, factor) -> objective of each seed."""
    keys = ("initialisation", "labels", "base_learning_rate", "epoch_factor")
    return [{**dict(zip(keys, key)), "seed": seed, "objective": v} for key, found in values.items() for seed, v in enumerate(found)]


def test_the_smallest_mean_over_seeds_wins_for_each_initialisation_and_budget():
    tuning = Tuning((0.1, 0.2, 0.3), (1,), (10, 20), (5, 6))
    found = choose(
        rows(
            {
                ("scratch", 10, 0.1, 1): (0.0, 4.0), ("scratch", 10, 0.2, 1): (1.5, 1.5), ("scratch", 10, 0.3, 1): (-9.0, None),
                ("scratch", 20, 0.1, 1): (1.0, 1.0), ("scratch", 20, 0.2, 1): (1.5, 1.5), ("scratch", 20, 0.3, 1): (1.0, 1.0),
                ("mae", 10, 0.1, 1): (3.0, 3.0), ("mae", 10, 0.2, 1): (2.0, 2.0), ("mae", 10, 0.3, 1): (1.0, 1.0),
            }
        ),
        tuning,
    )  # fmt: skip
    assert [(c["initialisation"], c["labels"], c["base_learning_rate"], c["objective"], c["edge"]) for c in found] == [
        ("scratch", 10, 0.2, 1.5, None),
        ("scratch", 20, 0.1, 1.0, "lowest base_learning_rate"),
        ("mae", 10, 0.3, 1.0, "highest base_learning_rate"),
    ]


def test_an_initialisation_that_always_diverges_is_an_error():
    with pytest.raises(ValueError, match="'mae' with 10 labels diverged"):
        choose(rows({("mae", 10, 0.1, 1): (None,)}), Tuning((0.1,), (1,), (10,), (5,)))


def test_both_ends_of_a_grid_are_named():
    found = choose(rows({("mae", 10, r, f): (-r - f,) for r in (0.1, 0.2) for f in (1, 2)}), Tuning((0.1, 0.2), (2, 1), (10,), (5,)))
    assert found[0]["edge"] == "highest base_learning_rate, highest epoch_factor"
