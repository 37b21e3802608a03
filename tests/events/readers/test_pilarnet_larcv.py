import h5py
import numpy as np
import pytest

from nufm_hub.detectors import load_detector
from nufm_hub.events.readers import read_pilarnet_larcv

MOTIF, PARTICLE = (label.classes for label in load_detector("pilarnet").voxel_branches[0].labels)


def image(**changes):
    event = {
        "coordinates": [[767, 1, 2], [0, 0, 5], [3, 767, 0]],
        "values": [1.0, 2.0, 3.0],
        "groups": [1, 0, -1],
        "particles": [(-13, 1, 0.0, 0.0, 250.0), (22, 0, 100.0, 0.0, 0.0), (321, 1, 1.0, 2.0, 3.0)],
    }
    event.update(changes)
    return event


def test_values_labels_and_particles(formats, tmp_path):
    path = formats.write_larcv(tmp_path / "a.h5", [image(), image(values=[4.0, 5.0, 6.0])])
    first, second = read_pilarnet_larcv(path)
    voxels = first.voxels["lar"]
    np.testing.assert_array_equal(voxels.coordinates, [[0, 0, 5], [3, 767, 0], [767, 1, 2]])
    assert voxels.energy.tolist() == [2, 3, 1]
    assert voxels.voxel_of_hit.tolist() == [2, 0, 1]
    assert voxels.instances["particle"].tolist() == [0, -1, 1]
    assert [MOTIF[i] for i in voxels.labels["motif"].argmax(axis=1)[[0, 2]]] == ["track", "shower"]
    assert [PARTICLE[i] for i in voxels.labels["particle"].argmax(axis=1)[[0, 2]]] == ["muon", "gamma"]
    assert not voxels.labels["particle"][1].any()
    assert first.particles["label"].tolist() == [PARTICLE.index("muon"), PARTICLE.index("gamma"), -1]
    np.testing.assert_allclose(first.particles["momentum"][0], [0, 0, 0.25])
    assert second.voxels["lar"].energy.tolist() == [5, 6, 4]
    assert second.provenance == {"generator": "PILArNet larcv3", "index": 1, "file": "a.h5"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": [3, 0, 0]}, "group 3 is not a row of the 3 particles"),
        ({"coordinates": [[768, 0, 0], [0, 0, 5], [3, 4, 0]]}, "voxel ids .* do not fit a grid"),
    ],
)
def test_ids_out_of_range(formats, tmp_path, change, message):
    path = formats.write_larcv(tmp_path / "a.h5", [image(), image(**change)])
    with pytest.raises(ValueError, match=message) as error:
        list(read_pilarnet_larcv(path))
    assert "a.h5, event 1" in str(error.value)
    errors = []
    assert len(list(read_pilarnet_larcv(path, on_bad=errors.append))) == len(errors) == 1


def test_damaged_tables(formats, tmp_path):
    path = formats.write_larcv(tmp_path / "a.h5", [image()])
    with h5py.File(path, "a") as file:
        groups = file["Data/sparse3d_group_group/voxels"]
        groups[...] = groups[:][::-1]
    with pytest.raises(ValueError, match="hold different voxels"):
        list(read_pilarnet_larcv(path))
    with h5py.File(path, "a") as file:
        extents = file["Data/sparse3d_data_group/voxel_extents"]
        rows = extents[:]
        rows["N"] = 4
        extents[...] = rows
    with pytest.raises(ValueError, match=r"asks for rows 0\.\.4 of 'Data/sparse3d_data_group/voxels', which has 3"):
        list(read_pilarnet_larcv(path))
    with h5py.File(path, "a") as file:
        del file["Data/particle_mcst_group/extents"]
    with pytest.raises(ValueError, match="'Data/particle_mcst_group/extents' is missing"):
        list(read_pilarnet_larcv(path))
