import h5py
import numpy as np
import pytest

from nufm_hub.detectors import load_detector
from nufm_hub.events.readers import read_pilarnet_m

BRANCH = load_detector("pilarnet").voxel_branches[0]
MOTIF, PARTICLE = (label.classes for label in BRANCH.labels)


def write(formats, path, version, columns=5, copies=1):
    return formats.write_pilarnet_m(path, [formats.pilarnet_event(columns)] * copies, version)


@pytest.mark.parametrize(("version", "columns"), [("v1", 5), ("v2", 5), ("v3", 6), ("v3", 9), ("v3", 11)])
def test_version_is_detected_and_values_kept(formats, tmp_path, version, columns):
    path = write(formats, tmp_path / "a.h5", version, columns, copies=2)
    first, second = read_pilarnet_m(path)
    assert first.provenance == {"generator": f"PILArNet-M {version}", "index": 0, "file": "a.h5"}
    assert second.provenance["index"] == 1
    points = formats.pilarnet_event()["points"]
    voxels = first.voxels["lar"]
    np.testing.assert_array_equal(voxels.coordinates, points[:, :3])
    np.testing.assert_array_equal(voxels.energy, points[:, 3].astype(np.float32))
    motif = [MOTIF[i] for i in voxels.labels["motif"].argmax(axis=1)]
    assert motif == ["low_energy"] * 2 + ["shower"] * 4 + ["track"] * 2
    assert voxels.instances["particle"].tolist() == [-1, -1, 4, 4, 4, 4, 9, 9]
    assert voxels.instances["interaction"].tolist() == [-1, -1, 0, 0, 0, 0, 1, 1]


def test_particles_take_the_class_of_the_leading_cluster(formats, tmp_path):
    (event,) = read_pilarnet_m(write(formats, tmp_path / "a.h5", "v3", 9))
    # Group 4 is led by the smaller cluster, whose id is 4: an electron.
    assert event.particles["id"].tolist() == [4, 9]
    assert event.particles["pdg"].tolist() == [11, 13]
    assert [PARTICLE[i] for i in event.particles["label"]] == ["electron", "muon"]
    np.testing.assert_array_equal(event.particles["momentum"], [[24, 25, 26], [33, 34, 35]])
    labels = event.voxels["lar"].labels["particle"]
    assert [PARTICLE[i] for i in labels[2:].argmax(axis=1)] == ["gamma"] * 3 + ["electron"] + ["muon"] * 2
    assert not labels[:2].any()


def test_split_layout_of_momenta(formats, tmp_path):
    path = write(formats, tmp_path / "a.h5", "v3", 6)
    with h5py.File(path, "a") as file:
        file.create_dataset("cluster_extra_2", (1,), dtype=h5py.vlen_dtype(np.float32))[0] = np.arange(20)
    (event,) = read_pilarnet_m(path)
    np.testing.assert_array_equal(event.particles["momentum"], [[10, 11, 12], [15, 16, 17]])


def test_version_1_has_no_particle_class(formats, tmp_path):
    (event,) = read_pilarnet_m(write(formats, tmp_path / "a.h5", "v1"))
    assert "particle" not in event.voxels["lar"].labels
    assert event.particles["label"].tolist() == [-1, -1]
    assert event.particles["pdg"].tolist() == [0, 0]
    assert "momentum" not in event.particles


def test_class_5_and_6_mean_none(formats, tmp_path):
    event = formats.pilarnet_event()
    event["clusters"][1:, 5] = 5, 6, 2
    (read,) = read_pilarnet_m(formats.write_pilarnet_m(tmp_path / "a.h5", [event], "v2"))
    assert read.particles["label"].tolist()[0] == -1
    assert not read.voxels["lar"].labels["particle"][:6].any()


def test_threshold_and_points_that_share_a_voxel(formats, tmp_path):
    event = formats.pilarnet_event()
    event["points"][3, :3] = event["points"][2, :3]  # 2 MeV and 1 MeV of group 4
    event["points"][6, :3] = event["points"][2, :3]  # and 5 MeV of the muon
    path = formats.write_pilarnet_m(tmp_path / "a.h5", [event], "v2")
    (read,) = read_pilarnet_m(path, threshold=0.1)
    voxels = read.voxels["lar"]
    assert len(voxels) == 5  # one point at the threshold of 0.1 MeV is gone, three points became one voxel
    row = voxels.voxel_of_hit[1]
    assert voxels.energy[row] == 8
    np.testing.assert_allclose(voxels.labels["motif"][row], [3 / 8, 5 / 8, 0, 0, 0])
    assert voxels.instances["particle"][row] == 9
    assert voxels.voxel_of_hit.tolist().count(row) == 3


def test_wrong_versions(formats, tmp_path):
    path = write(formats, tmp_path / "a.h5", "v2")
    for version, message in (("v1", "'cluster'"), ("v3", "'cluster_extra': 20 values do not fit 4 clusters")):
        with pytest.raises(ValueError, match=message) as error:
            list(read_pilarnet_m(path, version=version))
        assert "a.h5, event 0" in str(error.value)
    with pytest.raises(ValueError, match="'v4' is not one of"):
        list(read_pilarnet_m(path, version="v4"))
    with pytest.raises(ValueError, match="'cluster_extra' is missing"):
        list(read_pilarnet_m(write(formats, tmp_path / "b.h5", "v1"), version="v2"))
    with pytest.raises(ValueError, match="7 columns in event 0"):
        list(read_pilarnet_m(write(formats, tmp_path / "c.h5", "v2", 7)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: e["clusters"].__setitem__((1, 0), 4), "hold 9 points, 'point' has 8"),
        (lambda e: e["clusters"].__setitem__((1, 4), 5), "row 1: motif class 5 is not in"),
        (lambda e: e["clusters"].__setitem__((1, 5), 9), "row 1: particle class 9 is not in"),
        (lambda e: e["points"].__setitem__((0, 2), 768), "outside the grid"),
        (lambda e: e["points"].__setitem__((0, 2), 0.5), "not voxel indices"),
        (lambda e: e["points"].__setitem__((0, 3), np.inf), "not finite"),
    ],
)
def test_bad_events_are_named_and_skipped(formats, tmp_path, change, message):
    good, bad = formats.pilarnet_event(), formats.pilarnet_event()
    change(bad)
    path = formats.write_pilarnet_m(tmp_path / "a.h5", [good, bad, good], "v2")
    with pytest.raises(ValueError, match=message) as error:
        list(read_pilarnet_m(path))
    assert "a.h5, event 1" in str(error.value)
    errors = []
    assert [e.provenance["index"] for e in read_pilarnet_m(path, on_bad=errors.append)] == [0, 2]
    assert len(errors) == 1


def test_ragged_rows_and_missing_or_unequal_datasets(formats, tmp_path):
    path = write(formats, tmp_path / "a.h5", "v2")
    with h5py.File(path, "a") as file:
        file["point"][0] = np.zeros(63, np.float32)
    with pytest.raises(ValueError, match="'point': 63 values do not divide into rows of 8"):
        list(read_pilarnet_m(path))
    with h5py.File(path, "a") as file:
        del file["point"]
    with pytest.raises(ValueError, match=r"a\.h5: dataset 'point' is missing"):
        list(read_pilarnet_m(path))
    with h5py.File(path, "a") as file:
        file.create_dataset("point", (3,), dtype=h5py.vlen_dtype(np.float32))
    with pytest.raises(ValueError, match="differ in their number of events"):
        list(read_pilarnet_m(path))


def test_truncated_file_is_one_bad_file(formats, tmp_path):
    path = write(formats, tmp_path / "a.h5", "v2", copies=50)
    write(formats, tmp_path / "b.h5", "v2")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"a\.h5: is not a readable HDF5 file"):
        list(read_pilarnet_m(path))
    errors = []
    assert [e.provenance["file"] for e in read_pilarnet_m(tmp_path, on_bad=errors.append)] == ["b.h5"]
    assert len(errors) == 1
