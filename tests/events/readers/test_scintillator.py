import os

import numpy as np
import pytest
import torch

from nufm_hub.detectors import load_detector
from nufm_hub.events.readers import read_scintillator

SPEC = load_detector("superfgd")


def read_one(path, **options):
    (event,) = read_scintillator(path, **options)
    return event


def test_values_and_truth(formats, tmp_path):
    formats.write_scintillator(tmp_path / "training" / "pion" / "event1.pt")
    event = read_one(tmp_path)
    voxels = event.voxels["cubes"]
    np.testing.assert_array_equal(voxels.coordinates, [[0, 99, 199], [100, 101, 102]])  # rint((x + 995) / 10)
    assert voxels.energy.tolist() == [15, 2]
    assert voxels.voxel_of_hit.tolist() == [0, 0, 1]
    np.testing.assert_allclose(voxels.labels["crosstalk"], [[1 / 3], [1]])  # 5 of 15 in the first cube
    assert SPEC.classes("particle")[event.truth["particle"]] == "pion"
    np.testing.assert_array_equal(event.truth["particle_position"], [1, 2, 3])
    np.testing.assert_allclose(event.truth["particle_momentum"], [0, 0, 0.5])
    assert event.provenance["file"] == "training/pion/event1.pt"


def test_grid_is_that_of_the_benchmark(formats, tmp_path):
    rng = np.random.default_rng(0)
    index = rng.integers(0, 200, (500, 3))
    hits = np.concatenate([index * 10.0 - 995 + rng.uniform(-4.9, 4.9, index.shape), np.ones((500, 1))], axis=1)
    voxels = read_one(formats.write_scintillator(tmp_path / "a.pt", reco_hits=hits, Tag_Trk=None)).voxels["cubes"]
    expected = np.rint((hits[:, :3] + 995) / 10).astype(int)
    np.testing.assert_array_equal(voxels.coordinates[voxels.voxel_of_hit], expected)


def test_tensors_float32_and_optional_entries(formats, tmp_path):
    hits = torch.tensor(formats.scintillator_event()["reco_hits"], dtype=torch.float32)
    event = read_one(formats.write_scintillator(tmp_path / "a.pt", reco_hits=hits, Tag_Trk=None, TrueIniPos=None, TrueIniDir=None))
    assert event.voxels["cubes"].energy.tolist() == [15, 2]
    assert event.truth == {}
    assert event.voxels["cubes"].labels == {}


def test_momentum_unit_is_the_users_word(formats, tmp_path):
    path = formats.write_scintillator(tmp_path / "a.pt", TrueIniP=np.float64(0.5))
    np.testing.assert_allclose(read_one(path, momentum_unit="GeV").truth["particle_momentum"], [0, 0, 0.5])
    with pytest.raises(ValueError, match="'eV' is not one of"):
        read_one(path, momentum_unit="eV")


class Hostile:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (self.marker,)


@pytest.mark.parametrize("legacy", [True, False])
def test_hostile_pickles_are_refused_and_do_not_run(formats, tmp_path, legacy):
    marker = tmp_path / "ran"
    event = formats.scintillator_event(extra=Hostile(str(marker)))
    torch.save(event, tmp_path / "evil.pt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ValueError, match=r"evil\.pt, event 0: is refused"):
        read_one(tmp_path / "evil.pt")
    assert not marker.exists()
    # The file does what it says when it is trusted: the test above can fail.
    torch.load(tmp_path / "evil.pt", weights_only=False)
    assert marker.exists()


def test_arrays_of_objects_do_not_smuggle_code(formats, tmp_path):
    marker = tmp_path / "ran"
    torch.save(formats.scintillator_event(reco_hits=np.array([Hostile(str(marker))], dtype=object)), tmp_path / "evil.pt")
    with pytest.raises(ValueError, match="refused"):
        read_one(tmp_path / "evil.pt")
    assert not marker.exists()


def test_the_allow_list_does_not_leak(formats, tmp_path):
    before = set(torch.serialization.get_safe_globals())
    read_one(formats.write_scintillator(tmp_path / "a.pt"))
    assert set(torch.serialization.get_safe_globals()) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reco_hits": None}, "'reco_hits' is missing"),
        ({"reco_hits": np.zeros((3, 3))}, r"'reco_hits' has shape \(3, 3\)"),
        ({"Tag_Trk": np.ones(2, bool)}, "differ in length"),
        ({"reco_hits": np.array([[1000.0, 0, 0, 1]] * 3)}, "lies outside every voxel"),
        ({"reco_hits": np.array([[0.0, 0, 0, np.nan]] * 3)}, "not finite"),
        ({"TrueIniDir": np.zeros(3)}, "not a direction"),
        ({"TrueIniPos": np.zeros(2)}, "not three finite numbers"),
    ],
)
def test_bad_entries_are_named(formats, tmp_path, changes, message):
    path = formats.write_scintillator(tmp_path / "bad.pt", **changes)
    with pytest.raises(ValueError, match=message) as error:
        read_one(path)
    assert "bad.pt, event 0" in str(error.value)


@pytest.mark.parametrize("keep", [0, 1, 10, 100, 0.5, 0.9, -1])
def test_truncated_files(formats, tmp_path, keep):
    path = formats.write_scintillator(tmp_path / "a.pt")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole))] if isinstance(keep, float) else whole[:keep])
    with pytest.raises(ValueError, match=r"a\.pt, event 0"):
        read_one(path)
