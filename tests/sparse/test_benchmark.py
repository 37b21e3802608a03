"""The benchmark runs, and the page shows the figures that it wrote."""

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
END = "<!-- end of benchmark -->\n"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")  # what a script has
    spec = importlib.util.spec_from_file_location("benchmark_of_sparse", ROOT / "benchmarks" / "sparse.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_runs_and_writes_its_table_into_a_page(benchmark, tmp_path):
    result = benchmark.measure(voxels=400, rounds=1)
    times = [row[column] for row in result["rows"] for column in ("forward", "both") if column in row]
    assert len(times) > 25
    assert all(0 <= time < 1e5 for time in times)
    assert all(d < 1e-5 for row in result["rows"] for d in row.get("largest difference", {}).values())
    page = tmp_path / "page.md"
    page.write_text(f"before\n{benchmark.MARK}old\n{END}between\n{END}", encoding="utf-8")
    benchmark.write_page(page, benchmark.MARK, benchmark.table(result))
    assert page.read_text(encoding="utf-8") == f"before\n{benchmark.MARK}{benchmark.table(result)}{END}between\n{END}"
    page.write_text("no marks\n", encoding="utf-8")
    with pytest.raises(ValueError, match="has no lines"):
        benchmark.write_page(page, benchmark.MARK, "")


def test_tracks_are_distinct_voxels_of_the_grid(benchmark):
    voxels = benchmark.tracks(500)
    assert voxels.shape == (500, 3)
    assert len(voxels.unique(dim=0)) == 500
    assert (voxels >= 0).all()
    assert (voxels.amax(0) < voxels.new_tensor(benchmark.GRID)).all()


def test_the_page_shows_the_figures_in_the_repository(benchmark):
    result = json.loads((ROOT / "benchmarks" / "sparse.json").read_text(encoding="utf-8"))
    assert benchmark.table(result) in (ROOT / "docs" / "sparse.md").read_text(encoding="utf-8")
