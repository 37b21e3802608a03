import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
from typer.testing import CliRunner

from nufm_hub.detectors import load_detector
from nufm_hub.events import Event, Voxels, read_events
from nufm_hub.simulation.command import app
from nufm_hub.simulation.fasercal import FaserCalSettings
from nufm_hub.simulation.runner import run_simulation


@dataclass(frozen=True)
class FakeSettings:
    """Events of a few random voxels; event `fails_at` raises."""

    name: ClassVar[str] = "fake"
    packages: ClassVar[tuple[str, ...]] = ()
    batch: ClassVar[int] = 2

    scale: float = 1.0
    fails_at: ClassVar[int | None] = None

    @property
    def detector(self):
        return load_detector("fasercal")

    def build(self):
        return FakeMaker(self)


class FakeMaker:
    made: ClassVar[list[int]] = []

    def __init__(self, settings):
        self.settings = settings
        self.counts = Counter()

    def events(self, run_seed, indices):
        for index in indices:
            if index == FakeSettings.fails_at:
                raise KeyError("broken")
            self.made.append(index)
            self.counts["odd"] += index % 2
            rng = np.random.default_rng([run_seed, index])
            voxels = Voxels(rng.integers(0, 48, (5, 3)), self.settings.scale * rng.random(5))
            yield Event("fasercal", {"3dcal": voxels}, provenance={"generator": "fake", "seed": run_seed, "index": index})


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    monkeypatch.setattr(FakeMaker, "made", [])
    monkeypatch.setattr(FakeSettings, "fails_at", None)


def files(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.glob("*.parquet"))}


def test_shards_hold_all_events_in_order(tmp_path):
    provenance = run_simulation(FakeSettings(), 7, 3, tmp_path / "run", shard_size=3)
    assert list(files(tmp_path / "run")) == [f"fake-0000{i}.parquet" for i in range(3)]
    events = [e for name in files(tmp_path / "run") for e in read_events(tmp_path / "run" / name)]
    assert [e.provenance["index"] for e in events] == list(range(7))
    assert [e.provenance["file"] for e in events] == ["fake-00000.parquet"] * 3 + ["fake-00001.parquet"] * 3 + ["fake-00002.parquet"]
    assert json.loads((tmp_path / "run" / "provenance.json").read_text()) == provenance
    assert provenance["summary"]["complete"]
    assert provenance["summary"]["counts"] == {"odd": 3}
    assert provenance["shards"]["fake-00001.parquet"]["counts"] == {"odd": 2}
    assert {"numpy", "nufm-hub", "python"} <= set(provenance["versions"])
    assert not list((tmp_path / "run").glob(".*"))


def test_an_interrupted_run_resumes_to_the_same_bytes(tmp_path, monkeypatch):
    run_simulation(FakeSettings(), 9, 3, tmp_path / "whole", shard_size=2)
    monkeypatch.setattr(FakeSettings, "fails_at", 5)
    with pytest.raises(RuntimeError, match=r"events 4 to 5 of seed 3 failed.*broken"):
        run_simulation(FakeSettings(), 9, 3, tmp_path / "run", shard_size=2)
    assert len(files(tmp_path / "run")) == 2
    assert not json.loads((tmp_path / "run" / "provenance.json").read_text())["summary"]["complete"]
    # A killed process leaves a partial file, and perhaps a shard that it had no time to record.
    (tmp_path / "run" / ".fake-00002.parquet.1234.tmp").write_bytes(b"half")
    (tmp_path / "run" / "fake-00002.parquet").write_bytes(b"unrecorded")
    monkeypatch.setattr(FakeSettings, "fails_at", None)
    FakeMaker.made.clear()
    provenance = run_simulation(FakeSettings(), 9, 3, tmp_path / "run", shard_size=2)
    assert FakeMaker.made == [4, 5, 6, 7, 8]
    assert files(tmp_path / "run") == files(tmp_path / "whole")
    assert provenance["summary"]["events"] == 9
    assert not list((tmp_path / "run").glob(".*"))
    FakeMaker.made.clear()
    assert run_simulation(FakeSettings(), 9, 3, tmp_path / "run", shard_size=2)["summary"]["complete"]
    assert FakeMaker.made == []


def test_refuses_folders_it_does_not_own(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty"):
        run_simulation(FakeSettings(), 2, 3, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]
    run = tmp_path / "run"
    run_simulation(FakeSettings(), 2, 3, run)
    before = files(run)
    for change, named in (
        ({"seed": 4}, "seed was 3, now 4"),
        ({"events": 3}, "events was 2, now 3"),
        ({"settings": FakeSettings(2.0)}, "scale"),
        ({"shard_size": 1}, "shard_size"),
    ):
        with pytest.raises(ValueError, match=named):
            run_simulation(**{"settings": FakeSettings(), "events": 2, "seed": 3, "out": run, **change})
    assert files(run) == before
    (run / "fake-00000.parquet").write_bytes(b"changed")
    with pytest.raises(ValueError, match=r"fake-00000.parquet is missing or is not the file"):
        run_simulation(FakeSettings(), 2, 3, run)


@pytest.mark.parametrize("bad", [{"events": 0}, {"seed": -1}, {"workers": 0}, {"shard_size": 0}])
def test_numbers_out_of_range(tmp_path, bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        run_simulation(**{"settings": FakeSettings(), "events": 1, "seed": 0, "out": tmp_path / "run", **bad})
    assert not (tmp_path / "run").exists()


def test_fasercal_bytes_do_not_depend_on_workers(tmp_path):
    settings = FaserCalSettings(energy=(20.0, 30.0))
    for workers in (1, 2):
        run_simulation(settings, 4, 5, tmp_path / str(workers), workers=workers, shard_size=3)
    assert files(tmp_path / "1") == files(tmp_path / "2")
    assert len(files(tmp_path / "1")) == 2


def test_command_line(tmp_path):
    run = CliRunner().invoke(app, ["fasercal", "--events", "1", "--seed", "6", "--energy", "20", "25", "--out", str(tmp_path / "run")])
    assert run.exit_code == 0, run.output
    (event,) = read_events(tmp_path / "run" / "fasercal-00000.parquet")
    assert event.provenance == {"generator": "nufm-hub fasercal", "seed": 6, "file": "fasercal-00000.parquet", "index": 0}
    bad = CliRunner().invoke(app, ["fasercal", "--events", "1", "--energy", "1", "25", "--out", str(tmp_path / "other")])
    assert bad.exit_code == 2
    assert not (tmp_path / "other").exists()
