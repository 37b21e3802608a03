"""Cards put rivals on the same events beside the model, and say where they win."""

import json
import shutil
from pathlib import Path

import pytest

from nufm_hub.cards import make_card

RESULTS = Path(__file__).parents[2] / "model_cards" / "results"
NAME = "nufm/fasercal-mae-rel-vertex"


@pytest.fixture
def results(tmp_path):
    shutil.copy(RESULTS / "fasercal-mae-rel-vertex.json", tmp_path)
    own = json.loads((tmp_path / "fasercal-mae-rel-vertex.json").read_text())
    scores = own["metrics"]["vertex"]

    def write(factor, labels=300, sha=own["data"]["events_sha256"]):
        """A rival whose errors are the model's, times a factor."""
        metrics = {f"vertex.{name}": {"mean": factor * scores[name]} for name in ("vertex_error_mean", "vertex_error_median")}
        entries = [{"rival": "extra-trees", "labels": labels, "runs": 2, "metrics": metrics}]
        held = {"study": "baselines", "data": {"test": {"sha256": sha}}, "seeds": [0, 1], "summary": entries, "git_revision": "abc"}
        (tmp_path / "baselines.json").write_text(json.dumps(held))
        return make_card(NAME, tmp_path).text

    return write


def test_a_better_rival_is_named(results):
    text = results(0.5)
    assert "### Against an afternoon's work" in text
    assert "**With no more labels, a rival is better in: vertex: median distance, mm; vertex: mean distance, mm.**" in text
    row = next(line for line in text.splitlines() if line.startswith("| extra-trees"))
    assert row.startswith("| extra-trees | 300 |")


def test_a_worse_rival_or_one_with_more_labels_is_not(results):
    for text in (results(2.0), results(0.5, labels=10**6)):
        assert "No rival with as many labels or fewer is better in any of these." in text


def test_rivals_on_other_events_say_nothing(results):
    assert "afternoon" not in results(0.5, sha="other")
