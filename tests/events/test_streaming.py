import os
import pickle
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from torch.utils.data import DataLoader, Subset

from nufm_hub import sample_path
from nufm_hub.detectors import load_detector
from nufm_hub.events import Event, EventDataset, StreamingEvents, Voxels, list_shards, read_events, write_events
from nufm_hub.events.parquet import ROW_GROUP

SPEC = load_detector("superfgd")
EVENTS = 100


def event(i, name="superfgd"):
    voxels = Voxels(np.stack([np.arange(i % 5), np.full(i % 5, i), np.zeros(i % 5)], axis=1), np.full(i % 5, float(i)))
    return Event(name, {"cubes": voxels}, truth={"particle": i % 4}, provenance={"generator": "x", "seed": 0, "index": i})


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    for s, rows in enumerate(np.split(np.arange(EVENTS), [40, 47])):
        write_events(map(event, rows.tolist()), folder / f"events-{s}.parquet", SPEC)
    return folder


def indices(events):
    return [e.provenance["index"] for e in events]


def flat(batches):
    return [index for batch in batches for index in batch]


def test_list_shards(shards, tmp_path):
    names = [str(shards / f"events-{i}.parquet") for i in range(3)]
    assert list_shards(shards) == names
    assert list_shards(str(shards / "*-[12].parquet")) == names[1:]
    assert list_shards([shards / "events-2.parquet", shards]) == [names[2], *names[:2]]
    (tmp_path / ".events.parquet.1234.tmp").touch()
    (tmp_path / ".half.parquet").touch()
    for nothing in (tmp_path, tmp_path / "nowhere", tmp_path / "*.parquet", []):
        with pytest.raises(ValueError, match="no parquet file"):
            list_shards(nothing)


def test_dataset_reads_any_event(shards, tmp_path):
    dataset = EventDataset(shards, cache_dir=tmp_path)
    assert len(dataset) == EVENTS
    assert dataset.spec == SPEC
    for i in (0, 39, 40, 46, 47, 99, np.int64(3), -1):
        got, expected = dataset[i], event(int(i) % EVENTS)
        assert got.provenance == expected.provenance
        assert got.truth == expected.truth
        np.testing.assert_array_equal(got.voxels["cubes"].coordinates, expected.voxels["cubes"].coordinates)
        np.testing.assert_array_equal(got.voxels["cubes"].values, expected.voxels["cubes"].values)
    dataset[4].voxels["cubes"].values[:] = -1  # writable, and nobody else's
    assert dataset[4].voxels["cubes"].values.min() == 4
    with pytest.raises(IndexError, match="event 100 of 100"):
        dataset[EVENTS]


def test_dataset_in_loaders(shards, tmp_path):
    dataset = EventDataset(shards, cache_dir=tmp_path)
    assert indices(dataset.__getitems__([5, 2])) == [5, 2]
    loader = DataLoader(Subset(dataset, range(10, 90)), batch_size=8, shuffle=True, num_workers=2, collate_fn=indices)
    seen = flat(loader)
    assert sorted(seen) == list(range(10, 90))
    assert seen != sorted(seen)


def test_dataset_pickles_without_its_data(shards, tmp_path):
    dataset = EventDataset(shards, cache_dir=tmp_path)
    fresh = len(pickle.dumps(dataset))
    dataset[50]
    data = pickle.dumps(dataset)
    assert len(data) == fresh
    np.testing.assert_array_equal(pickle.loads(data)[54].voxels["cubes"].values, dataset[54].voxels["cubes"].values)


@pytest.mark.parametrize("detector", ["fasercal", "superfgd", "pilarnet"])
def test_dataset_gives_what_the_file_holds(detector, tmp_path, same_event):
    path = sample_path(detector)
    for _ in range(2):  # the second time from the copy that is there
        dataset = EventDataset(path, cache_dir=tmp_path)
        for index, event in enumerate(read_events(path)):
            same_event(dataset[index], event)
    without = EventDataset(path, cache_dir=tmp_path, voxel_truth=False)
    for index, event in enumerate(read_events(path)):
        same_event(without[index], replace(event, voxels={n: replace(v, labels={}, instances={}) for n, v in event.voxels.items()}))


@pytest.mark.parametrize("damage", ["cut", "cut between events", "missing"])
def test_dataset_replaces_a_damaged_copy(shards, tmp_path, damage):
    assert len(EventDataset(shards, cache_dir=tmp_path)) == EVENTS
    copy = max(tmp_path.rglob("*.arrow"), key=os.path.getsize)
    if damage == "missing":
        copy.unlink()
    elif damage == "cut":
        os.truncate(copy, copy.stat().st_size - 1000)
    else:
        with pa.OSFile(str(copy)) as file:
            table = pa.ipc.open_stream(file).read_all()
        with pa.OSFile(str(copy), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table.slice(0, 5))
    assert indices(list(EventDataset(shards, cache_dir=tmp_path))) == list(range(EVENTS))


def test_rows_of_another_width_are_refused(tmp_path):
    path = tmp_path / "events.parquet"
    write_events([event(4)], path, SPEC)
    table = pq.read_table(path)
    ragged = pa.array([[[1, 2, 3], [1, 2], [0, 0, 0], [1, 1, 1]]], type=table.schema.field("cubes.coordinates").type.storage_type)
    position = table.schema.get_field_index("cubes.coordinates")
    column = pa.ExtensionArray.from_storage(table.schema.field(position).type, ragged)
    pq.write_table(table.set_column(position, table.schema.field(position), column), path)
    with pytest.raises(ValueError, match=r"'cubes.coordinates' holds rows that are not 3 wide"):
        list(read_events(path))


def test_dataset_notices_that_a_file_changed(tmp_path):
    path = tmp_path / "a.parquet"
    write_events([event(1)], path, SPEC)
    assert indices(EventDataset(path, cache_dir=tmp_path / "cache")) == [1]
    path.unlink()
    write_events([event(2)], path, SPEC)
    os.utime(path, (1, 1))
    assert indices(EventDataset(path, cache_dir=tmp_path / "cache")) == [2]


def test_a_copy_belongs_to_the_content(tmp_path):
    """Neither name nor time of change: other content of the same time is another copy, the same content elsewhere the same one."""
    cache, times = tmp_path / "cache", (10**9, 10**9)
    for name, number in (("a", 1), ("b", 2)):
        write_events([event(number)], tmp_path / f"{name}.parquet", SPEC)
        os.utime(tmp_path / f"{name}.parquet", times)
    assert indices(EventDataset(tmp_path / "a.parquet", cache_dir=cache)) == [1]
    (copy,) = cache.rglob("*.arrow")
    made = copy.stat().st_mtime_ns
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "c.parquet").write_bytes((tmp_path / "a.parquet").read_bytes())
    assert indices(EventDataset([tmp_path / "elsewhere", tmp_path / "b.parquet"], cache_dir=cache)) == [1, 2]
    assert len(list(cache.rglob("*.arrow"))) == 2
    assert copy.stat().st_mtime_ns == made
    os.replace(tmp_path / "b.parquet", tmp_path / "a.parquet")
    assert indices(EventDataset(tmp_path / "a.parquet", cache_dir=cache)) == [2]


@pytest.mark.parametrize("reader", [EventDataset, StreamingEvents])
def test_one_detector_at_a_time(shards, tmp_path, reader):
    other = load_detector("pilarnet")
    write_events([Event("pilarnet")], tmp_path / "other.parquet", other)
    with pytest.raises(ValueError, match=r"other\.parquet holds events of detector 'pilarnet'"):
        reader([shards, tmp_path / "other.parquet"])
    with pytest.raises(ValueError, match="not of 'fasercal'"):
        reader(shards, detector="fasercal")


@pytest.mark.parametrize("reader", [EventDataset, StreamingEvents])
def test_damaged_files(shards, tmp_path, reader):
    whole = (shards / "events-0.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(whole[:-10])
    with pytest.raises(ValueError, match=r"a\.parquet is not a readable parquet file"):
        reader(tmp_path)
    # The footer is whole, the data are not.
    (tmp_path / "a.parquet").write_bytes(whole[:100] + bytes(3000) + whole[3100:])
    with pytest.raises(ValueError, match=r"a\.parquet"):
        list(reader(tmp_path, **({"cache_dir": tmp_path / "cache"} if reader is EventDataset else {})))


def test_stream_without_shuffling_keeps_the_order(shards):
    assert indices(StreamingEvents(shards, shuffle_buffer=0)) == list(range(EVENTS))


def test_stream_order_is_a_function_of_seed_and_epoch(shards):
    def order(seed=0, epoch=0, buffer=20):
        stream = StreamingEvents(shards, shuffle_buffer=buffer, seed=seed)
        stream.set_epoch(epoch)
        return indices(stream)

    base = order()
    assert sorted(base) == list(range(EVENTS))
    assert order() == base
    assert order(seed=1) != base
    assert order(epoch=1) != base
    # Really mixed: neighbours rarely stay neighbours, and events travel far.
    steps = np.abs(np.diff(base))
    assert (steps == 1).mean() < 0.2
    assert np.corrcoef(base, np.arange(EVENTS))[0, 1] < 0.6


@pytest.mark.parametrize(("world_size", "workers"), [(1, 0), (1, 2), (2, 2), (3, 0)])
@pytest.mark.parametrize("buffer", [0, 16])
def test_ranks_and_workers_see_disjoint_events(shards, world_size, workers, buffer):
    seen = []
    for rank in range(world_size):
        stream = StreamingEvents(shards, shuffle_buffer=buffer, rank=rank, world_size=world_size)
        loader = DataLoader(stream, batch_size=4, num_workers=workers, collate_fn=indices)
        part = flat(loader)
        assert part
        seen += part
    assert sorted(seen) == list(range(EVENTS))


def test_epoch_reaches_persistent_workers(shards):
    stream = StreamingEvents(shards, shuffle_buffer=16)
    loader = DataLoader(stream, batch_size=4, num_workers=1, persistent_workers=True, collate_fn=indices)
    first = flat(loader)
    again = flat(loader)
    stream.set_epoch(1)
    second = flat(loader)
    assert first == again != second
    assert sorted(second) == sorted(first)


def test_too_many_readers(shards):
    groups = -(-40 // ROW_GROUP) + 1 + -(-53 // ROW_GROUP)
    with pytest.raises(ValueError, match=f"{groups} row groups cannot be shared out among 9 readers"):
        list(StreamingEvents(shards, rank=0, world_size=9))
    with pytest.raises(ValueError, match="0 <= rank < world_size"):
        StreamingEvents(shards, rank=1, world_size=1)
    assert StreamingEvents(shards).num_events == EVENTS
