from dataclasses import replace

import numpy as np
import pytest

from nufm_hub.detectors import load_detector
from nufm_hub.events import Event, Voxels

SPEC = load_detector("fasercal")


def event(**changes):
    voxels = Voxels([[0, 1, 2], [47, 47, 199]], [1.0, 2.0], {"ghost": [0, 1], "hierarchy": [[0, 1, 0], [0, 0, 0]]})
    base = Event(
        "fasercal",
        {"3dcal": voxels, "ahcal": Voxels([[17, 17, 39]], [3.0])},
        {"ecal": np.zeros((5, 5), np.float32)},
        {"muon": np.zeros((2, 11), np.float32)},
        {"flavour": 3, "vertex": np.zeros(3), "is_cc": True},
        {"id": np.arange(2), "momentum": np.zeros((2, 3))},
        {"generator": "test", "seed": 5, "index": 6, "file": "f.npz"},
    )
    return replace(base, **changes)


def test_a_good_event_is_accepted():
    event().validate(SPEC)
    Event("fasercal").validate(SPEC)
    event(voxels={"3dcal": Voxels(np.zeros((0, 3)), np.zeros((0, 1)))}).validate(SPEC)


def test_arrays_take_their_types():
    voxels = Voxels([[1, 2, 3]], [1], {"ghost": [1]}, {"track": [7]}, [0, 0])
    assert (voxels.coordinates.dtype, voxels.values.dtype, voxels.values.shape) == (np.int16, np.float32, (1, 1))
    assert (voxels.labels["ghost"].shape, voxels.instances["track"].dtype, voxels.voxel_of_hit.dtype) == ((1, 1), np.int32, np.int32)
    with pytest.raises(ValueError, match="up to 70000 do not fit 16 bits"):
        Voxels([[70000, 0, 0]], [1.0])


def test_select_keeps_rows_and_their_hits():
    voxels = Voxels([[0, 0, 0], [1, 0, 0], [2, 0, 0]], [1.0, 2, 3], {"ghost": [0, 1, 0]}, {"track": [4, 5, 6]}, [2, 0, 1, 2])
    for rows in (np.array([2, 1]), [2, 1]):
        kept = voxels.select(np.array(rows))
        assert kept.energy.tolist() == [3, 2]
        assert kept.instances["track"].tolist() == [6, 5]
        assert kept.labels["ghost"].tolist() == [[0], [1]]
        assert kept.voxel_of_hit.tolist() == [0, 1, 0]
    assert voxels.select(np.array([True, False, False])).voxel_of_hit.tolist() == [0]


def with_voxels(**changes):
    voxels = event().voxels["3dcal"]
    return event(voxels={"3dcal": replace(voxels, **changes)})


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (event(detector="superfgd"), "belongs to detector 'superfgd', not to 'fasercal'"),
        (event(voxels={"tpc": Voxels([[0, 0, 0]], [1.0])}), r"unknown voxel branches \['tpc'\]"),
        (event(images={"hcal": np.zeros((5, 5))}), "unknown image branches"),
        (event(tracks={"ecal": np.zeros((1, 11))}), "unknown track branches"),
        (with_voxels(coordinates=np.array([[0, 1, 2], [0, 48, 0]])), r"voxel \[0, 48, 0\] \(row 1, 1 in all\) lies outside the grid"),
        (with_voxels(coordinates=np.array([[0, -1, 2], [0, 0, 0]])), r"voxel \[0, -1, 2\] \(row 0"),
        (with_voxels(values=np.array([1.0, np.nan])), "nan at row 1, column 0 is not finite"),
        (with_voxels(values=np.array([1.0, np.inf])), "inf at row 1, column 0 is not finite"),
        (with_voxels(values=np.array([1.0, -0.5])), r"energy -0.5 MeV \(row 1\) is negative"),
        (with_voxels(values=np.ones((2, 2))), r"values have shape \(2, 2\), not \(2, 1\)"),
        (with_voxels(labels={"hierarchy": np.zeros((2, 2))}), "label 'hierarchy' of shape"),
        (with_voxels(labels={"colour": np.zeros((2, 1))}), "label 'colour'"),
        (with_voxels(instances={"track": np.zeros(2)}), "instances 'track'"),
        (with_voxels(voxel_of_hit=np.array([0, 2])), r"voxel_of_hit points to rows 0\.\.2 of 2 voxels"),
        (event(images={"ecal": np.zeros((4, 5))}), r"image shape \(4, 5\) is not \(5, 5\)"),
        (event(images={"ecal": np.full((5, 5), np.nan)}), "branch 'ecal': nan"),
        (event(tracks={"muon": np.zeros((2, 10))}), r"tracks have shape \(2, 10\), not \(T, 11\)"),
        (event(tracks={"muon": np.full((1, 11), np.inf)}), "branch 'muon': inf"),
        (event(truth={"flavour": 6}), "label flavour=6 is not one of 6 classes"),
        (event(truth={"flavour": -1}), "label flavour=-1"),
        (event(truth={"colour": 1}), "unknown truth quantity 'colour'"),
        (event(truth={"vertex": np.zeros(2)}), r"truth vertex has shape \(2,\), not \(3,\)"),
        (event(particles={"id": np.zeros(2), "pdg": np.zeros(3)}), "differ in length"),
        (event(particles={"colour": np.zeros(2)}), "unknown"),
    ],
)
def test_a_bad_event_is_named_with_the_value(bad, message):
    with pytest.raises(ValueError, match=message) as error:
        bad.validate(SPEC)
    assert "event f.npz seed 5 index 6" in str(error.value)
