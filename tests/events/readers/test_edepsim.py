import h5py
import numpy as np
import pytest

from nufm_hub.detectors import load_detector
from nufm_hub.events.readers import read_edepsim

LAR = load_detector("pilarnet")
PARTICLE = LAR.voxel_branches[0].labels[1].classes


def test_a_step_is_shared_among_the_voxels_it_crosses(formats, tmp_path):
    # 12 mm along z from the middle of a voxel: 1.5 + 3 + 3 + 3 + 1.5 mm in five voxels of 3 mm, 6 MeV in all.
    path = formats.write_edepsim(tmp_path / "a.h5", [(5, 1, 13, 6.0, (0.15, 0.15, 0.15), (0.15, 0.15, 1.35))])
    (event,) = read_edepsim(path, LAR, length_unit="cm")
    voxels = event.voxels["lar"]
    np.testing.assert_array_equal(voxels.coordinates, [[384, 384, 384 + i] for i in range(5)])
    np.testing.assert_allclose(voxels.energy, [0.75, 1.5, 1.5, 1.5, 0.75], rtol=1e-6)
    assert event.provenance == {"generator": "edep-sim", "index": 5, "file": "a.h5"}
    (in_mm,) = read_edepsim(path, LAR, length_unit="mm")
    assert len(in_mm.voxels["lar"]) == 1


def test_offset_and_another_detector(formats, tmp_path):
    path = formats.write_edepsim(tmp_path / "a.h5", [(0, 1, 13, 2.0, (0, 0, 0), (0, 0, 0))])
    (event,) = read_edepsim(path, "superfgd", length_unit="mm", offset=(-1000, 5, 999))
    np.testing.assert_array_equal(event.voxels["cubes"].coordinates, [[0, 100, 199]])


@pytest.mark.parametrize("names", [("event_id", "traj_id", "pdg_id"), ("eventID", "trackID", "pdgId")])
def test_labels_instances_and_events(formats, tmp_path, names):
    here, there = (1.0, 1, 1), (100.0, 1, 1)
    segments = [(0, 7, 13, 1.0, here, here), (0, 8, -11, 3.0, here, here), (0, 9, 2112, 4.0, there, there), (2, 7, 22, 1.0, here, here)]
    first, second = read_edepsim(formats.write_edepsim(tmp_path / "a.h5", segments, names), LAR, length_unit="mm")
    voxels = first.voxels["lar"]
    expected = np.zeros(5)
    expected[PARTICLE.index("muon")], expected[PARTICLE.index("electron")] = 0.25, 0.75
    np.testing.assert_allclose(voxels.labels["particle"], [expected, np.zeros(5)])
    assert voxels.instances["particle"].tolist() == [8, 9]
    assert first.particles["pdg"].tolist() == [13, -11, 2112]
    assert second.provenance["index"] == 2


def test_deposits_outside_are_dropped(formats, tmp_path):
    # Half of the step lies beyond the low x face at -1152 mm.
    path = formats.write_edepsim(tmp_path / "a.h5", [(0, 1, 13, 2.0, (-1158, 0, 0), (-1146, 0, 0))])
    (event,) = read_edepsim(path, LAR, length_unit="mm")
    np.testing.assert_allclose(event.voxels["lar"].energy.sum(), 1.0, rtol=1e-6)
    path = formats.write_edepsim(tmp_path / "b.h5", [(3, 1, 13, 2.0, (2000, 0, 0), (2000, 0, 0))])
    with pytest.raises(ValueError, match=r"b\.h5, event 0: .*event id 3.*check length_unit and offset"):
        list(read_edepsim(path, LAR, length_unit="mm"))


def test_bad_tables(formats, tmp_path):
    here = (0, 0, 0)
    with pytest.raises(ValueError, match="say in which unit"):
        list(read_edepsim(formats.write_edepsim(tmp_path / "a.h5", [(0, 1, 13, 1.0, here, here)]), LAR, length_unit="m"))
    mixed = formats.write_edepsim(tmp_path / "b.h5", [(i, 1, 13, 1.0, here, here) for i in (0, 1, 0)])
    with pytest.raises(ValueError, match="sort the table by 'event_id'"):
        list(read_edepsim(mixed, LAR, length_unit="mm"))
    named = formats.write_edepsim(tmp_path / "c.h5", [(0, 1, 13, 1.0, here, here)], ("event_id", "traj_id", "code"))
    with pytest.raises(ValueError, match="none of the fields"):
        list(read_edepsim(named, LAR, length_unit="mm"))
    with h5py.File(tmp_path / "d.h5", "w") as file:
        file["tracks"] = [1]
    with pytest.raises(ValueError, match=r"'segments' is missing; the file holds \['tracks'\]"):
        list(read_edepsim(tmp_path / "d.h5", LAR, length_unit="mm"))
    nan = formats.write_edepsim(tmp_path / "e.h5", [(0, 1, 13, 1.0, here, here), (1, 1, 13, np.nan, here, here), (2, 1, 13, 1.0, here, here)])
    errors = []
    assert len(list(read_edepsim(nan, LAR, length_unit="mm", on_bad=errors.append))) == 2
    assert "row 1 (event id 1): not finite" in str(errors[0])
