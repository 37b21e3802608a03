"""The benchmark of training steps runs, and the page shows the figures that it wrote."""

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")  # what a script has
    spec = importlib.util.spec_from_file_location("benchmark_of_training", ROOT / "benchmarks" / "training.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_counts_and_times_both_trainings(benchmark):
    result = benchmark.measure(["nano"], num_events=3, rounds=1)
    assert [row["training"] for row in result["rows"]] == ["pre-training", "reconstruction"]
    for row in result["rows"]:
        assert 0.2 < row["gflop_per_event"] < 2
        assert 1 < row["ms_per_event"] < 1e4
        assert 0.9e6 < row["parameters"] < 1.2e6
    assert benchmark.table(result).count("| `nano` |") == 2


def test_the_page_shows_the_figures_in_the_repository(benchmark):
    result = json.loads((ROOT / "benchmarks" / "training.json").read_text(encoding="utf-8"))
    assert benchmark.table(result) in (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
