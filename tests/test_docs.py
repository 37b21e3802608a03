"""The Python blocks of the documentation run, in order, in a folder that holds the files they name."""

import importlib.util
import json
import re
from itertools import islice
from pathlib import Path

import pytest

from nufm_hub import load_detector, read_events, sample_path, write_events

ROOT = Path(__file__).parents[1]
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md"]


def blocks(page: Path) -> list[tuple[int, str, str | None]]:
    """Line of the first statement, code, and the text that is shown as its output, of every Python block."""
    text = page.read_text(encoding="utf-8")
    found = re.finditer(r"^```python\n(.*?)^```$(?:\s*^```text\n(.*?)^```$)?", text, re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, m.start(1)) + 1, m[1], m[2]) for m in found]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with a small file of every foreign format, and a few events to train on."""
    spec = importlib.util.spec_from_file_location("formats", ROOT / "tests" / "events" / "formats.py")
    formats = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(formats)
    data = tmp_path / "data"
    formats.write_fasercal(data / "fasercal-npz" / "0.npz")
    formats.write_scintillator(data / "cubes" / "muon" / "0.pt")
    formats.write_pilarnet_m(data / "pilarnet-m.h5", [formats.pilarnet_event()], "v2")
    particle = (13, 1, 0.0, 0.0, 250.0)
    formats.write_larcv(data / "pilarnet-larcv.h5", [{"coordinates": [[1, 2, 3]], "values": [1.0], "groups": [0], "particles": [particle]}])
    formats.write_edepsim(data / "edep.h5", [(0, 1, 13, 1.0, (0, 0, 0), (9, 0, 0))])
    write_events(islice(read_events(sample_path("fasercal")), 4), data / "train" / "0.parquet", load_detector("fasercal"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_run(page, capsys):
    names = {"__name__": "__main__"}
    code = blocks(page)
    assert code, f"{page.name} has no Python block"
    for line, block, output in code:
        capsys.readouterr()
        # Blank lines in front, so that a traceback points into the page.
        exec(compile("\n" * (line - 1) + block, str(page), "exec"), names)
        if output is not None:
            assert capsys.readouterr().out == output, f"{page.name}:{line} prints something else"


def test_links_between_pages_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
            assert target.startswith("http") or (page.parent / target).exists(), f"{page.name}: {target}"


STARTS = ("scratch", "mae", "mae-rel")
TRANSFERS = {
    "transfer-superfgd": "SuperFGD-like, with features",
    "transfer-superfgd-voxels": "SuperFGD-like, voxels alone",
    "transfer-pilarnet": "PILArNet-like, with features",
}


def means_of(study: str) -> dict[int, list[dict[str, float]]]:
    """Means over the seeds of all metrics, for each start; by number of labels."""
    held = json.loads((ROOT / "model_cards" / "results" / f"{study}.json").read_text(encoding="utf-8"))
    means = {(e["labels"], e["initialisation"]): {name: m["mean"] for name, m in e["metrics"].items()} for e in held["summary"]}
    return {labels: [means[labels, name] for name in STARTS] for labels in held["labels"]}


def data_efficiency_rows() -> list[list[str]]:
    columns = {"flavour.macro_auroc": ".3f", "vertex.vertex_error_mean": ".0f", "visible_momentum.resolution68": ".2f"}
    return [
        [f"{labels:,}{note}"] + [f"{m[column]:{digits}}" for column, digits in columns.items() for m in by]
        for study, note in (("data-efficiency", ""), ("longer/data-efficiency", ", twice the steps"))
        for labels, by in means_of(study).items()
    ]


def transfer_rows() -> list[list[str]]:
    columns = ("particle.macro_auroc", "particle.accuracy")
    return [
        [title, f"{labels:,}"] + [f"{m[column]:.3f}" for column in columns for m in by]
        for study, title in TRANSFERS.items()
        for labels, by in means_of(study).items()
    ]


RIVAL_COLUMNS = {
    "flavour.macro_auroc": ("flavour", ".3f"),
    "vertex.vertex_error_median": ("vertex", ".1f"),
    "vertex.vertex_error_mean": ("vertex", ".0f"),
    "vertex.vertex_beyond_100mm": ("vertex", ".3f"),
    "visible_momentum.resolution68": ("reconstruction", ".3f"),
    "visible_momentum.bias": ("reconstruction", ".2f"),
    "missing_pt_above_1gev.detection_auroc": ("reconstruction", ".3f"),
}


def rival_rows() -> list[list[str]]:
    """The packaged models, each on what it is for, and their rivals on the same events."""
    results = ROOT / "model_cards" / "results"
    cells = []
    for column, (model, digits) in RIVAL_COLUMNS.items():
        quantity, metric = column.split(".")
        own = json.loads((results / f"fasercal-mae-rel-{model}.json").read_text(encoding="utf-8"))
        cells.append(f"{own['metrics'][quantity][metric]:{digits}}")
    rows = [["packaged models", "3,400", *cells]]
    for entry in json.loads((results / "baselines.json").read_text(encoding="utf-8"))["summary"]:
        if entry["rival"] != "mean":
            means = [entry["metrics"].get(column, {}).get("mean") for column in RIVAL_COLUMNS]
            shown = ["" if mean is None else f"{mean:{digits}}" for mean, (_, digits) in zip(means, RIVAL_COLUMNS.values())]
            rows.append([entry["rival"], f"{entry['labels']:,}", *shown])
    return rows


@pytest.mark.parametrize("rows", [data_efficiency_rows, transfer_rows, rival_rows])
def test_tables_of_the_readme_are_those_of_the_studies(rows):
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows())
    assert table in (ROOT / "README.md").read_text(encoding="utf-8"), f"README.md does not show\n{table}"
