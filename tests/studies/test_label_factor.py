"""Comparisons with the reference, by hand."""

import math

import pytest

from nufm_hub.studies.label_factor import compare_with_reference, label_factor

CURVE = {100: 0.6, 1000: 0.8, 10000: 0.9}


@pytest.mark.parametrize(
    ("labels", "value", "factor"),
    [(100, 0.7, math.sqrt(10)), (100, 0.8, 10), (1000, 0.85, math.sqrt(10)), (1000, 0.7, math.sqrt(10) / 10), (100, 0.6, 1), (1000, 0.8, 1)],
)
def test_factor_is_interpolated_in_the_logarithm(labels, value, factor):
    assert label_factor(CURVE, labels, value, "higher") == {"value": pytest.approx(factor)}
    mirrored = {n: 10 - v for n, v in CURVE.items()}
    assert label_factor(mirrored, labels, 10 - value, "lower") == {"value": pytest.approx(factor)}


def test_outside_of_the_curve_there_is_a_bound_and_a_reason():
    beyond = label_factor(CURVE, 100, 0.95, "higher")
    assert (beyond["value"], beyond["at_least"]) == (None, 100)
    assert "does not reach" in beyond["reason"]
    worse = label_factor(CURVE, 1000, 0.5, "higher")
    assert (worse["value"], worse["at_most"]) == (None, 0.1)
    assert "better already" in worse["reason"]
    assert label_factor({100: 0.5}, 100, 0.6, "higher")["value"] is None


def test_the_first_crossing_counts():
    assert label_factor({10: 0.0, 100: 1.0, 1000: 0.0, 10000: 1.0}, 10, 0.5, "higher")["value"] == pytest.approx(math.sqrt(10))


def rows():
    values = {
        ("scratch", 100): (10.0, 14.0), ("scratch", 1000): (5.0, 7.0),
        ("mae", 100): (6.0, 7.0), ("mae", 1000): (None, 2.0),
    }  # fmt: skip
    return [
        {"initialisation": i, "labels": n, "seed": s, "v.vertex_error_mean": v, "v.vertex_error_mean_low": 0, "v.vertex_error_mean_high": 9}
        for (i, n), pair in values.items()
        for s, v in enumerate(pair)
    ]


def test_comparison_is_paired_by_seed():
    first, second = compare_with_reference(rows())
    assert (first["initialisation"], first["labels"], first["metric"], first["better"]) == ("mae", 100, "v.vertex_error_mean", "lower")
    assert (first["mean"], first["reference_mean"]) == (6.5, 12)
    assert first["ratio"]["of_means"] == pytest.approx(6.5 / 12)
    assert first["ratio"]["mean"] == pytest.approx((0.6 + 0.5) / 2)
    assert (first["difference"]["lowest"], first["difference"]["highest"]) == (-7, -4)
    assert first["label_factor"]["value"] == pytest.approx(10 ** ((12 - 6.5) / 6))
    assert first["label_factor"]["by_seed"] == {"0": pytest.approx(10 ** (4 / 5)), "1": pytest.approx(10)}
    assert (second["ratio"]["count"], second["ratio"]["mean"]) == (1, pytest.approx(2 / 7))
    assert second["label_factor"]["at_least"] == 1
    assert compare_with_reference(rows(), "other") == []
