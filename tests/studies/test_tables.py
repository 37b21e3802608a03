"""Rows, their spread over seeds, and the files."""

import csv
import json

import pytest

from nufm_hub.studies.tables import better, flatten, metrics_of, spread, summarise, write_results

EVALUATION = {
    "flavour": {
        "macro_auroc": 0.8, "macro_auroc_low": 0.7, "macro_auroc_high": 0.9,
        "auroc": {"a": 0.75, "b": None}, "auroc_low": {"a": 0.6, "b": None}, "auroc_high": {"a": 0.8, "b": None},
        "num_true": {"a": 3, "b": 0}, "classes_left_out": ["b"], "name": "x", "done": True,
    },
}  # fmt: skip


def test_numbers_get_dotted_names():
    flat = flatten(EVALUATION)
    assert flat["flavour.macro_auroc"] == 0.8
    assert flat["flavour.auroc_low.a"] == 0.6
    assert flat["flavour.auroc.b"] is None
    assert flat["flavour.num_true.a"] == 3
    assert not {"flavour.classes_left_out", "flavour.name", "flavour.done"} & flat.keys()
    assert metrics_of([flat]) == ["flavour.macro_auroc", "flavour.auroc.a", "flavour.auroc.b"]


def test_direction():
    assert better("flavour.auroc.a") == better("charm.macro_auroc") == "higher"
    assert better("vertex.vertex_error_mean") == better("visible_momentum.resolution68") == "lower"
    assert better("vertex.vertex_bias_x") is better("seed") is better("missing_pt.resolution68") is None


def test_spread_by_hand():
    assert spread([1.0, None, 3.0, 5.0]) == {"mean": 3.0, "std": 2.0, "lowest": 1.0, "highest": 5.0, "count": 3}
    assert spread([2.0])["std"] is None
    assert spread([None])["mean"] is None


def rows():
    return [
        {"labels": n, "seed": s, "f.auroc": n + s, "f.auroc_low": n + s - 1, "f.auroc_high": n + s + 1, "f.num_events": 9}
        for s in (0, 1)
        for n in (10, 20)
    ]


def test_summary_over_seeds():
    first, second = summarise(rows(), ["labels"])
    assert (first["labels"], first["runs"], second["labels"]) == (10, 2, 20)
    assert list(first["metrics"]) == ["f.auroc"]
    metric = first["metrics"]["f.auroc"]
    assert metric["mean"] == 10.5
    assert metric["std"] == pytest.approx(0.5**0.5)
    assert (metric["values"], metric["low"], metric["high"]) == ([10, 11], [9, 10], [11, 12])


def test_files_are_replaced(tmp_path):
    write_results("study", rows(), {"runs": 4}, tmp_path / "new")
    write_results("study", [{"a": 1, "b": None}, {"a": 0.1, "c": "x,y"}], {"runs": 2}, tmp_path / "new")
    assert json.loads((tmp_path / "new" / "study.json").read_text()) == {"runs": 2}
    with open(tmp_path / "new" / "study.csv", newline="") as file:
        assert list(csv.DictReader(file)) == [{"a": "1", "b": "", "c": ""}, {"a": "0.1", "b": "", "c": "x,y"}]
    assert {p.name for p in (tmp_path / "new").iterdir()} == {"study.csv", "study.json"}
