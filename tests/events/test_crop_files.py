"""Data sets of crops: every particle in one split, groups whole, the same crops as made one by one."""

import json
from itertools import pairwise

import numpy as np
import pytest
from typer.testing import CliRunner

from nufm_hub import load_detector, read_events, sample_path, write_events
from nufm_hub.cli import app
from nufm_hub.events import EventDataset, Voxels
from nufm_hub.events.crop_files import CropSettings, write_crops
from nufm_hub.events.crops import crop_detector, crop_particle, particle_crops
from nufm_hub.events.leaks import check_leaks
from nufm_hub.events.splits import SPLITS, group_key

SUPERFGD, PILARNET = load_detector("superfgd"), load_detector("pilarnet")


def some(name, count, folder):
    """Two shards with the first events of a packaged sample."""
    spec, events = load_detector(name), []
    for event in read_events(sample_path(name)):
        events.append(event)
        if len(events) == count:
            break
    folder.mkdir()
    for i, part in enumerate((events[: count // 2], events[count // 2 :])):
        write_events(part, folder / f"{i}.parquet", spec)
    return events


def test_single_particles(tmp_path, same_event):
    events = some("superfgd", 60, tmp_path / "events")
    result = CliRunner().invoke(app, ["crop", str(tmp_path / "events"), str(tmp_path / "crops"), "--fractions", "0.5", "0.2", "0.3"])
    assert result.exit_code == 0, result.output
    small = crop_detector(SUPERFGD, (120, 120, 120), (12, 12, 10), (2, 2, 2), "clamp")
    expected = {e.provenance["index"]: crop_particle(e, SUPERFGD, small) for e in events if len(e.voxels["cubes"]) >= 5}
    found = [crop for name in SPLITS for crop in EventDataset(tmp_path / "crops" / name)]
    assert sorted(c.provenance["index"] for c in found) == sorted(expected)
    for crop in found:
        same_event(crop, expected[crop.provenance["index"]])
    sizes = {name: len(EventDataset(tmp_path / "crops" / name)) for name in SPLITS}
    assert min(sizes.values()) > 3
    assert ", ".join(f"{sizes[name]} {name}" for name in SPLITS) in result.output
    assert not check_leaks(tmp_path / "crops" / "train", tmp_path / "crops" / "test")
    record = json.loads((tmp_path / "crops" / "test" / "provenance.json").read_text())
    assert record["crops"]["group_by"] == "initial_condition"
    assert record["split"] == {"fractions": [0.5, 0.2, 0.3], "seed": 7}


def test_an_initial_condition_that_was_simulated_twice_is_in_one_split_only(tmp_path):
    events = some("superfgd", 40, tmp_path / "first")
    for event in events:
        event.provenance["index"] += 1000
        event.voxels["cubes"].values = 1.1 * event.voxels["cubes"].values
    write_events(events, tmp_path / "again.parquet", SUPERFGD)
    write_crops([tmp_path / "first", tmp_path / "again.parquet"], tmp_path / "crops", fractions=(0.4, 0.3, 0.3))
    place = {name: {c.provenance["index"] % 1000 for c in EventDataset(tmp_path / "crops" / name)} for name in SPLITS}
    assert all(not place[a] & place[b] for a in SPLITS for b in SPLITS if a != b)


def test_a_particle_that_is_not_where_its_bounding_box_is_centred_is_left_out(tmp_path):
    """Six voxels in two opposite corners of the detector: none is within 60 voxels of the middle."""
    event = some("superfgd", 2, tmp_path / "events")[0]
    corners = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [199, 199, 199], [198, 199, 199], [199, 198, 199]])
    event.voxels["cubes"] = Voxels(corners, np.ones(6))
    settings = CropSettings.load("superfgd")
    assert not list(settings.crops(event, SUPERFGD, settings.detector(SUPERFGD)))
    with pytest.raises(ValueError, match="no voxel lies in the crop"):
        crop_particle(event, SUPERFGD, settings.detector(SUPERFGD))


def test_particles_of_images_stay_together_and_in_order(tmp_path, same_event):
    events = some("pilarnet", 12, tmp_path / "events")
    settings = CropSettings.load("pilarnet", features=False)
    counts = write_crops(tmp_path / "events", tmp_path / "crops", settings, (0.5, 0.0, 0.5), seed=3)
    small = crop_detector(PILARNET, (168, 168, 180), (12, 12, 10), (2, 2, 3), "scale", features=False)
    assert small.track_branch is None
    expected = {group_key(e, "event"): list(particle_crops(e, PILARNET, small, settings.min_voxels)) for e in events}
    seen = []
    for name in ("train", "test"):
        crops = list(EventDataset(tmp_path / "crops" / name))
        assert len(crops) == counts[name]
        keys = [group_key(c, "event") for c in crops]
        assert len(set(keys)) == 1 + sum(a != b for a, b in pairwise(keys))  # not divided
        for key in dict.fromkeys(keys):
            mine = [c for c, k in zip(crops, keys) if k == key]
            for a, b in zip(mine, expected[key], strict=True):
                same_event(a, b)
        seen += dict.fromkeys(keys)
    assert sorted(seen) == sorted(key for key, crops in expected.items() if crops)
    assert not (tmp_path / "crops" / "validation").exists()


def test_bad_settings_are_named(tmp_path, printed):
    with pytest.raises(ValueError, match=r"no crop settings for 'fasercal'.*'pilarnet', 'superfgd'"):
        write_crops(sample_path("fasercal"), tmp_path / "crops")
    with pytest.raises(ValueError, match="colour"):
        CropSettings.load("superfgd", colour="red")
    with pytest.raises(ValueError, match="fit is"):
        CropSettings.load("superfgd", fit="stretch")
    (tmp_path / "crops").mkdir()
    result = CliRunner().invoke(app, ["crop", str(sample_path("superfgd")), str(tmp_path / "crops")])
    assert result.exit_code == 2
    assert "exists already" in printed(result)
