"""What the first command of the README shows, through the command line."""

import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner

from nufm_hub.cli import app
from nufm_hub.detectors import load_detector
from nufm_hub.events import read_events
from nufm_hub.events.samples import sample_path

CLASSES = load_detector("fasercal").classes("flavour")


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "out"
    result = CliRunner().invoke(app, ["demo", "--out", str(out)])
    assert result.exit_code == 0, result.output
    return out, result.output


def test_predictions_file_and_metrics_agree_with_scikit_learn(demo):
    out, _ = demo
    table = pq.read_table(out / "predictions.parquet").to_pydict()
    metrics = json.loads((out / "metrics.json").read_text())
    events = list(read_events(sample_path("fasercal")))
    assert table["index"] == [e.provenance["index"] for e in events]
    probabilities = np.array([table[f"probability_{c}"] for c in CLASSES]).T
    labels = np.array([e.truth["flavour"] for e in events])
    assert metrics["flavour"]["macro_auroc"] == pytest.approx(roc_auc_score(labels, probabilities, multi_class="ovr"), abs=1e-9)
    predicted = np.array([[table[f"predicted_vertex_{a}_mm"][i] for a in "xyz"] for i in range(len(events))])
    true = np.array([e.truth["vertex"] for e in events])
    assert metrics["vertex"]["vertex_error_mean"] == pytest.approx(np.linalg.norm(predicted - true, axis=1).mean())


def test_bundled_models_know_something(demo):
    """Far from chance, outside the intervals, on events that no training saw."""
    metrics = json.loads((demo[0] / "metrics.json").read_text())
    assert metrics["flavour"]["num_events"] == 120
    assert metrics["flavour"]["macro_auroc_low"] > 0.5
    assert metrics["vertex"]["vertex_error_mean_high"] < metrics["vertex_baseline"]["vertex_error_mean_low"]


def test_the_readme_says_what_the_demonstration_measures(demo):
    metrics = json.loads((demo[0] / "metrics.json").read_text())
    text = " ".join((Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8").split())
    flavour = re.search(r"macro-AUROC ([\d.]+) \(95 % interval ([\d.]+) to ([\d.]+)\)", text)
    vertex = re.search(r"vertex error (\d+) mm \((\d+) to (\d+); (\d+) mm for always", text)
    keys = ("macro_auroc", "macro_auroc_low", "macro_auroc_high")
    assert [float(x) for x in flavour.groups()] == pytest.approx([metrics["flavour"][k] for k in keys], abs=0.002)
    keys = ("vertex_error_mean", "vertex_error_mean_low", "vertex_error_mean_high")
    measured = [*(metrics["vertex"][k] for k in keys), metrics["vertex_baseline"]["vertex_error_mean"]]
    assert [float(x) for x in vertex.groups()] == pytest.approx(measured, abs=1)


def test_displays_and_report(demo):
    out, text = demo
    assert len(list(out.glob("*.png"))) == 3
    page = next(out.glob("*.html")).read_text(encoding="utf-8")
    assert "plotly" in page
    assert 'src="http' not in page
    for word in (*CLASSES, "purity", "efficiency", "macro-AUROC", "vertex error", "predictions.parquet"):
        assert word in text


def test_an_existing_folder_is_refused_and_kept(tmp_path):
    (tmp_path / "mine").write_text("precious")
    result = CliRunner().invoke(app, ["demo", "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert "--overwrite" in result.output
    assert (tmp_path / "mine").read_text() == "precious"


def test_sample_is_balanced_and_small():
    path = sample_path("fasercal")
    assert path.stat().st_size <= 10e6
    events = list(read_events(path))
    assert np.bincount([e.truth["flavour"] for e in events]).tolist() == [20] * 6
    provenance = json.loads(path.with_suffix(".json").read_text())
    assert {e.provenance["seed"] for e in events} == {provenance["seed"]}
    with pytest.raises(ValueError, match="no sample of detector 'nope'"):
        sample_path("nope")
