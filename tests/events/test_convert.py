import json

import pytest
from typer import Typer
from typer.testing import CliRunner

from nufm_hub.detectors import load_detector
from nufm_hub.events import Event, Voxels, read_events, readers, write_events
from nufm_hub.events.command import check_leaks, convert_data, distort
from nufm_hub.events.convert import JOURNAL, convert
from nufm_hub.events.readers import FORMATS

app = Typer()
app.command()(convert_data)
app.command()(check_leaks)
app.command()(distort)


def run(*arguments):
    # Wide and plain, so that messages stay in one piece.
    return CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "300", "TERM": "dumb", "NO_COLOR": "1"})


def pilarnet(formats, folder, counts=(3, 4), bad=()):
    """Files of events told apart by the energy of their first point; events at `bad` positions are broken."""
    folder.mkdir()
    position = 0
    for f, count in enumerate(counts):
        events = []
        for _ in range(count):
            event = formats.pilarnet_event()
            event["points"][0, 3] = position + 1
            if position in bad:
                event["clusters"][0, 4] = 7
            events.append(event)
            position += 1
        formats.write_pilarnet_m(folder / f"{f}.h5", events, "v2")
    return folder


def energies(shards):
    return [e.voxels["lar"].energy[0] for shard in shards for e in read_events(shard)]


def test_shards_hold_all_events_in_order(formats, tmp_path):
    result = convert("pilarnet-m", pilarnet(formats, tmp_path / "in"), tmp_path / "out", events_per_shard=2)
    assert (result.events, result.skipped) == (7, [])
    assert [s.name for s in result.shards] == [f"events-{i:05d}.parquet" for i in range(4)]
    assert energies(result.shards) == [1, 2, 3, 4, 5, 6, 7]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [JOURNAL, *[s.name for s in result.shards]]
    assert str(tmp_path) not in (tmp_path / "out" / JOURNAL).read_text()


def test_resume_after_an_interruption_gives_the_same_bytes(formats, tmp_path, monkeypatch):
    source = pilarnet(formats, tmp_path / "in")
    whole = convert("pilarnet-m", source, tmp_path / "whole", events_per_shard=2)

    import nufm_hub.events.convert as module

    write, calls = module.write_events, []

    def interrupted(events, path, spec):
        calls.append(path.name)
        if len(calls) == 3:
            next(iter(events))
            raise KeyboardInterrupt
        return write(events, path, spec)

    monkeypatch.setattr(module, "write_events", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert("pilarnet-m", source, tmp_path / "out", events_per_shard=2)
    # Also as if the power went between a shard and its entry in the journal.
    journal = json.loads((tmp_path / "out" / JOURNAL).read_text())
    del journal["shards"]["events-00001.parquet"]
    (tmp_path / "out" / JOURNAL).write_text(json.dumps(journal))
    resumed = convert("pilarnet-m", source, tmp_path / "out", events_per_shard=2)
    assert calls == [f"events-{i:05d}.parquet" for i in (0, 1, 2, 1, 2, 3)]
    assert resumed.events == 7
    for a, b in zip(whole.shards, resumed.shards, strict=True):
        assert a.read_bytes() == b.read_bytes()
    convert("pilarnet-m", source, tmp_path / "out", events_per_shard=2)
    assert len(calls) == 6


def test_another_conversion_is_refused(formats, tmp_path):
    source = pilarnet(formats, tmp_path / "in")
    convert("pilarnet-m", source, tmp_path / "out")
    with pytest.raises(ValueError, match="holds a conversion with another 'options'"):
        convert("pilarnet-m", source, tmp_path / "out", threshold=0.13)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(FileExistsError, match="is not empty"):
        convert("pilarnet-m", source, tmp_path / "mine")
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_bad_events_stop_or_are_skipped_and_listed(formats, tmp_path):
    source = pilarnet(formats, tmp_path / "in", bad=(1, 5))
    (source / "2.h5").write_bytes(b"truncated")
    with pytest.raises(ValueError, match=r"2\.h5: is not a readable HDF5"):
        convert("pilarnet-m", source, tmp_path / "a")
    result = convert("pilarnet-m", source, tmp_path / "b", skip_bad=True, events_per_shard=2)
    assert energies(result.shards) == [1, 3, 4, 5, 7]
    assert [m.split(": ")[0] for m in result.skipped] == ["2.h5", "0.h5, event 1", "1.h5, event 2"]
    again = convert("pilarnet-m", source, tmp_path / "b", skip_bad=True, events_per_shard=2)
    assert again.skipped == result.skipped
    (source / "2.h5").unlink()
    with pytest.raises(ValueError, match=r"0\.h5, event 1: dataset 'cluster', row 0: motif class 7"):
        convert("pilarnet-m", source, tmp_path / "c")
    assert not list((tmp_path / "c").glob("*.parquet"))
    assert not list((tmp_path / "c").glob(".*"))


def test_arguments_are_checked(tmp_path):
    with pytest.raises(ValueError, match="unknown format 'root'"):
        convert("root", tmp_path, tmp_path / "out")
    with pytest.raises(ValueError, match=r"no option \['version'\]"):
        convert("scintillator", tmp_path, tmp_path / "out", version="v1")
    with pytest.raises(ValueError, match="say which"):
        convert("edep-sim", tmp_path, tmp_path / "out", length_unit="mm")
    with pytest.raises(ValueError, match="'v9' is not one of"):
        convert("pilarnet-m", tmp_path, tmp_path / "out", version="v9", skip_bad=True)
    with pytest.raises(ValueError, match="holds no file"):
        convert("scintillator", tmp_path, tmp_path / "out")


def test_command_converts_every_format(formats, same_event, tmp_path):
    formats.write_fasercal(tmp_path / "faser" / "a.npz")
    formats.write_scintillator(tmp_path / "scint" / "muon" / "a.pt")
    pilarnet(formats, tmp_path / "m")
    (tmp_path / "larcv").mkdir()
    formats.write_larcv(
        tmp_path / "larcv" / "a.h5", [{"coordinates": [[1, 2, 3]], "values": [1.0], "groups": [0], "particles": [(13, 1, 0.0, 0.0, 250.0)]}]
    )
    (tmp_path / "edep").mkdir()
    formats.write_edepsim(tmp_path / "edep" / "a.h5", [(0, 1, 13, 1.0, (0, 0, 0), (0, 0, 0))])
    given = {
        "fasercal-npz": ["faser"],
        "scintillator": ["scint", "--momentum-unit", "MeV"],
        "pilarnet-m": ["m", "--version", "v2", "--threshold", "0.05"],
        "pilarnet-larcv": ["larcv"],
        "edep-sim": ["edep", "--detector", "superfgd", "--length-unit", "mm", "--offset", "1", "2", "3"],
    }
    direct = {
        "fasercal-npz": lambda: readers.read_fasercal_npz(tmp_path / "faser"),
        "scintillator": lambda: readers.read_scintillator(tmp_path / "scint"),
        "pilarnet-m": lambda: readers.read_pilarnet_m(tmp_path / "m", threshold=0.05),
        "pilarnet-larcv": lambda: readers.read_pilarnet_larcv(tmp_path / "larcv"),
        "edep-sim": lambda: readers.read_edepsim(tmp_path / "edep", "superfgd", "mm", (1, 2, 3)),
    }
    assert set(given) == set(direct) == set(FORMATS)
    for name, (folder, *options) in given.items():
        result = run("convert-data", name, tmp_path / folder, tmp_path / "out" / name, *options)
        assert result.exit_code == 0, result.output
        events = [e for shard in sorted((tmp_path / "out" / name).glob("*.parquet")) for e in read_events(shard)]
        assert len(events) == (7 if name == "pilarnet-m" else 1)
        assert f"{len(events)} events in 1 shards" in result.output
        for stored, read in zip(events, direct[name](), strict=True):
            same_event(stored, read)
    assert all(name in run("convert-data", "--help").output.replace("\n", "") for name in FORMATS)


def test_command_errors_and_skips(formats, tmp_path):
    source = pilarnet(formats, tmp_path / "in", bad=(1,))
    failed = run("convert-data", "pilarnet-m", source, tmp_path / "a")
    assert failed.exit_code == 2
    assert "0.h5, event 1" in failed.output
    for arguments in (("root", source), ("pilarnet-m", tmp_path / "nowhere"), ("edep-sim", source), ("pilarnet-m", source, "--version", "v9")):
        refused = run("convert-data", arguments[0], arguments[1], tmp_path / "c", *arguments[2:])
        assert refused.exit_code == 2, refused.output
    skipped = run("convert-data", "pilarnet-m", source, tmp_path / "b", "--skip-bad")
    assert skipped.exit_code == 0
    assert "6 events in 1 shards" in skipped.output
    assert "1 skipped" in skipped.output
    assert "skipped 0.h5, event 1: dataset 'cluster', row 0" in skipped.output


def test_command_check_leaks(tmp_path):
    spec = load_detector("superfgd")
    events = [Event("superfgd", {"cubes": Voxels([[i, 0, 0]], [1.0])}, provenance={"generator": "x", "seed": 0, "index": i}) for i in range(4)]
    write_events(events[:2], tmp_path / "train" / "a.parquet", spec)
    write_events(events[2:], tmp_path / "test.parquet", spec)
    write_events(events[1:], tmp_path / "leaky.parquet", spec)
    clean = run("check-leaks", tmp_path / "train", tmp_path / "test.parquet")
    assert clean.exit_code == 0
    assert "2 training and 2 test events" in clean.output
    leaky = run("check-leaks", tmp_path / "train", tmp_path / "leaky.parquet")
    assert leaky.exit_code == 1
    assert "voxels: 1 test events (33.33 %)" in leaky.output
    assert run("check-leaks", tmp_path / "nowhere", tmp_path / "test.parquet").exit_code == 2


def test_command_distort(tmp_path):
    spec = load_detector("superfgd")
    write_events([Event("superfgd", {"cubes": Voxels([[9, 9, 9]], [11.8])})], tmp_path / "a.parquet", spec)
    done = run("distort", tmp_path / "a.parquet", tmp_path / "b.parquet", "--effect", "crosstalk=0.03", "--effect", "energy_scale=2", "--seed", 3)
    assert done.exit_code == 0, done.output
    (event,) = read_events(tmp_path / "b.parquet")
    assert sorted(event.voxels["cubes"].energy.tolist()) == pytest.approx([0.6] * 6 + [20])
    journal = json.loads((tmp_path / "b.json").read_text())
    assert journal == {"source": "a.parquet", "seed": 3, "effects": {"crosstalk": 0.03, "energy_scale": 2}}
    assert run("distort", tmp_path / "a.parquet", tmp_path / "c.parquet").exit_code == 0
    refused = [
        ((tmp_path / "a.parquet", tmp_path / "b.parquet"), "exists already"),
        ((tmp_path / "none.parquet", tmp_path / "d.parquet"), "none.parquet"),
        ((tmp_path / "a.parquet", tmp_path / "d.parquet", "--effect", "crosstalk"), "NAME=VALUE"),
        ((tmp_path / "a.parquet", tmp_path / "d.parquet", "--effect", "crosstalk=1"), "crosstalk = 1"),
        ((tmp_path / "a.parquet", tmp_path / "d.parquet", "--effect", "cross=1"), "cross"),
    ]
    for arguments, message in refused:
        result = run("distort", *arguments)
        assert result.exit_code == 2, (arguments, result.output)
        assert message in result.output
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.parquet", "b.json", "b.parquet", "c.json", "c.parquet"]
