import json
from dataclasses import replace

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nufm_hub.detectors import load_detector
from nufm_hub.events import PARTICLE_FIELDS, TRUTH_FIELDS, Event, Voxels, event_features, event_from_row, read_detector, read_events, write_events
from nufm_hub.events.parquet import ROW_GROUP

SPEC, LAR = load_detector("fasercal"), load_detector("pilarnet")


def full_event(rng, index=0, n=50):
    """An event that has everything that an event can have."""
    labels = {"ghost": rng.random((n, 1)), "hierarchy": rng.dirichlet([1, 1, 1], n), "category": np.zeros((n, 3))}
    labels["ghost"][0] = np.nan
    cal = Voxels(rng.integers(0, 48, (n, 3)), rng.exponential(1.0, n), labels, {}, rng.integers(0, n, 2 * n))
    truth = {"flavour": 5, "charm": 0}
    for name, field in TRUTH_FIELDS.items():
        value = rng.normal(size=field.shape).astype(field.dtype) if field.dtype != "bool" else np.bool_(True)
        truth[name] = value if field.shape else value.item()
    particles = {name: rng.normal(size=(4, *f.shape)).astype(f.dtype) for name, f in PARTICLE_FIELDS.items()}
    provenance = {"generator": "gén", "seed": 2**40, "file": "a/b.npz", "index": index}
    voxels = {"3dcal": cal, "ahcal": Voxels(rng.integers(0, 18, (7, 3)), rng.random(7))}
    images = {"ecal": rng.random((5, 5), dtype=np.float32)}
    return Event("fasercal", voxels, images, {"muon": rng.normal(size=(3, 11)).astype(np.float32)}, truth, particles, provenance)


def round_trip(same, events, path, spec=SPEC):
    assert write_events(events, path, spec) == len(events)
    for a, b in zip(events, read_events(path), strict=True):
        same(a, b)


def test_everything_comes_back_bit_for_bit(same_event, tmp_path):
    rng = np.random.default_rng(0)
    round_trip(same_event, [full_event(rng, i) for i in range(3)], tmp_path / "a.parquet")
    assert read_detector(tmp_path / "a.parquet") == SPEC


def test_instances_come_back(same_event, tmp_path):
    voxels = Voxels([[0, 0, 767], [5, 6, 7]], [1.0, 2.0], {}, {"particle": [-1, 3], "interaction": [0, 2**31 - 1]})
    round_trip(same_event, [Event("pilarnet", {"lar": voxels})], tmp_path / "a.parquet", LAR)


def test_absent_is_not_empty_and_neither_is_the_other(same_event, tmp_path):
    nothing = Voxels(np.zeros((0, 3)), np.zeros((0, 1)), {"ghost": np.zeros((0, 1))}, {}, np.zeros(0))
    events = [
        Event("fasercal"),
        Event("fasercal", {"3dcal": nothing}),
        Event("fasercal", {"3dcal": Voxels([[0, 0, 0]], [1.0])}, tracks={"muon": np.zeros((0, 11), np.float32)}),
        full_event(np.random.default_rng(0)),
        Event("fasercal", {"ahcal": nothing.select([])}, truth={"is_cc": False, "charm_pdg": 0}, particles={"id": np.zeros(0, np.int32)}),
    ]
    events[4].voxels["ahcal"].labels.clear()
    round_trip(same_event, events, tmp_path / "a.parquet")
    round_trip(same_event, [], tmp_path / "none.parquet")


def test_more_than_a_row_group(same_event, tmp_path):
    rng = np.random.default_rng(0)
    round_trip(same_event, [full_event(rng, i, n=i % 3 + 1) for i in range(2 * ROW_GROUP + 1)], tmp_path / "a.parquet")
    assert pq.ParquetFile(tmp_path / "a.parquet").num_row_groups == 3


def test_same_events_same_bytes(tmp_path):
    for name in ("a", "b"):
        rng = np.random.default_rng(1)
        write_events([full_event(rng, i) for i in range(20)], tmp_path / f"{name}.parquet", SPEC)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


@pytest.mark.parametrize("style", [None, "numpy"])
def test_datasets_reads_the_same_file(same_event, tmp_path, style):
    rng = np.random.default_rng(0)
    events = [full_event(rng, i) for i in range(2)]
    if style == "numpy":  # this format of datasets knows single precision only
        for event in events:
            for name, value in event.truth.items():
                if np.asarray(value).dtype == np.float64:
                    rounded = np.asarray(value, dtype=np.float32).astype(np.float64)
                    event.truth[name] = rounded if rounded.ndim else rounded.item()
    # Columns that are null everywhere in an event are the hard part of the formats.
    events.append(Event("fasercal", {"3dcal": Voxels([[1, 2, 3]], [1.0])}))
    write_events(events, tmp_path / "a.parquet", SPEC)
    rows = datasets.Dataset.from_parquet(str(tmp_path / "a.parquet"), cache_dir=str(tmp_path / "cache"))
    assert rows.features == event_features(SPEC)
    for a, row in zip(events, rows.with_format(style), strict=True):
        same_event(a, event_from_row(row, SPEC))


def test_an_existing_path_is_refused_and_untouched(tmp_path):
    path = tmp_path / "a.parquet"
    path.write_bytes(b"precious")
    with pytest.raises(FileExistsError, match="exists already"):
        write_events([Event("fasercal")], path, SPEC)
    assert path.read_bytes() == b"precious"
    assert list(tmp_path.iterdir()) == [path]


def bad_events():
    rng = np.random.default_rng(0)
    good = full_event(rng)
    cal = good.voxels["3dcal"]
    outside, nan = cal.coordinates.copy(), cal.values.copy()
    outside[0, 0], nan[3] = 48, np.nan
    yield "outside the grid", replace(good, voxels={"3dcal": replace(cal, coordinates=outside)})
    yield "nan at row 3", replace(good, voxels={"3dcal": replace(cal, values=nan)})
    yield "belongs to detector 'pilarnet'", replace(good, detector="pilarnet")


@pytest.mark.parametrize(("message", "bad"), list(bad_events()))
def test_a_bad_event_leaves_no_file(tmp_path, message, bad):
    good = [full_event(np.random.default_rng(0), n=2)] * (ROW_GROUP + 3)
    with pytest.raises(ValueError, match=message):
        write_events([*good, bad], tmp_path / "a.parquet", SPEC)
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_leaves_no_file(tmp_path):
    def events():
        yield full_event(np.random.default_rng(0))
        assert [p.name for p in tmp_path.iterdir()] != []  # something is being written, under another name
        assert not (tmp_path / "a.parquet").exists()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_events(events(), tmp_path / "a.parquet", SPEC)
    assert list(tmp_path.iterdir()) == []


def test_truncated_foreign_and_missing_files(tmp_path):
    rng = np.random.default_rng(0)
    write_events([full_event(rng) for _ in range(4)], tmp_path / "a.parquet", SPEC)
    whole = (tmp_path / "a.parquet").read_bytes()
    for cut in (0, 3, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.parquet").write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=r"cut\.parquet is not a readable parquet file"):
            list(read_events(tmp_path / "cut.parquet"))
    (tmp_path / "hurt.parquet").write_bytes(whole[:200] + bytes(2000) + whole[2200:])
    with pytest.raises(ValueError, match=r"hurt\.parquet: row group 0 cannot be read"):
        list(read_events(tmp_path / "hurt.parquet"))
    pq.write_table(pa.table({"x": [1]}), tmp_path / "other.parquet")
    with pytest.raises(ValueError, match="holds no nufm events"):
        list(read_events(tmp_path / "other.parquet"))
    with pytest.raises(ValueError, match=r"nowhere\.parquet is not a readable"):
        read_detector(tmp_path / "nowhere.parquet")


def test_another_schema_version_is_refused(tmp_path):
    write_events([Event("fasercal")], tmp_path / "a.parquet", SPEC)
    table = pq.read_table(tmp_path / "a.parquet")
    metadata = dict(table.schema.metadata)
    metadata[b"nufm"] = json.dumps(json.loads(metadata[b"nufm"]) | {"schema_version": 99}).encode()
    pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "b.parquet")
    with pytest.raises(ValueError, match="event schema version 99; this package reads 1"):
        list(read_events(tmp_path / "b.parquet"))
