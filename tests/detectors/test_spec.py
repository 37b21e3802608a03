import json
from dataclasses import replace

import numpy as np
import pytest

from nufm_hub.detectors import Blocks, DetectorSpec, ImageBranch, TrackBranch, VoxelBranch, VoxelLabel, list_detectors, load_detector

SPEC = load_detector("fasercal")
CAL, AHCAL = SPEC.voxel_branches
BOX = VoxelBranch("box", (4, 6, 8), (10, 5, 2.5), (-20, 0, 7), (2, 3, 4), (1, 2, 1))


def spec(**changes):
    return replace(DetectorSpec("d", (BOX, ImageBranch("i", (2, 2)), TrackBranch("t", ("p", "q"), 3)), {"kind": ("a", "b")}), **changes)


@pytest.mark.parametrize("name", list_detectors())
def test_every_voxel_goes_to_mm_and_back(name):
    for branch in load_detector(name).voxel_branches:
        index = np.stack([np.arange(max(branch.shape)) % n for n in branch.shape], axis=1)  # all layers of every axis
        if np.prod(branch.shape) < 1e6:
            index = np.stack(np.meshgrid(*[np.arange(n) for n in branch.shape], indexing="ij"), axis=-1).reshape(-1, 3)
        back, inside = branch.to_voxel(branch.to_mm(index))
        assert inside.all()
        np.testing.assert_array_equal(back, index)
        # Anywhere in the voxel, not only its centre.
        offset = np.random.default_rng(0).uniform(-0.499, 0.499, index.shape) * branch.voxel_size
        back, inside = branch.to_voxel(branch.to_mm(index) + offset)
        assert inside.all()
        np.testing.assert_array_equal(back, index)


def test_positions_in_mm_by_hand():
    np.testing.assert_allclose(BOX.to_mm([[0, 0, 0], [3, 5, 7]]), [[-15, 2.5, 8.25], [15, 27.5, 25.75]])
    # Layer 20 opens the second module of the calorimeter, 51 mm behind the end of the first.
    np.testing.assert_allclose(CAL.to_mm([[0, 0, 0], [47, 47, 19], [24, 24, 20], [0, 0, 199]])[:, 2], [11, 201, 262, 2820])
    np.testing.assert_allclose(CAL.to_mm([[0, 47, 0]])[0, :2], [-235, 235])
    np.testing.assert_allclose(CAL.bounds, [[-240, -240, 6], [240, 240, 2825]])
    np.testing.assert_allclose(BOX.bounds, [[-20, 0, 7], [20, 30, 27]])


def test_gaps_and_faces_belong_to_whom_they_should():
    z = [5.999, 6, 205.999, 206, 256.999, 257, 2824.999, 2825]
    index, inside = CAL.to_voxel(np.stack([np.zeros(8), np.zeros(8), z], axis=1))
    assert inside.tolist() == [False, True, True, False, False, True, True, False]
    assert index[inside, 2].tolist() == [0, 19, 20, 199]
    x = [[-240.001, 0, 6], [-240, 0, 6], [239.999, 0, 6], [240, 0, 6], [np.nan, 0, 6]]
    assert CAL.to_voxel(x)[1].tolist() == [False, True, True, False, False]


def test_to_mm_refuses_what_is_outside():
    for bad in ([[4, 0, 0]], [[0, 0, -1]]):
        with pytest.raises(ValueError, match=r"outside the grid \(4, 6, 8\)"):
            BOX.to_mm(bad)


def test_derived_sizes():
    assert (BOX.patch_grid, BOX.window_grid, BOX.positions_per_window, BOX.num_windows) == ((2, 2, 2), (2, 1, 2), 2, 4)
    assert (CAL.patch_grid, CAL.window_grid, CAL.num_windows) == ((4, 4, 20), (1, 1, 10), 10)
    assert SPEC.image_branch.size == 25
    assert SPEC.track_branch.model_features == ("charge", "py", "pz", "chi2", "sigma_p", "n_points")
    assert spec().track_branch.model_features == ("p", "q")
    assert spec().classes("kind") == ("a", "b")
    with pytest.raises(ValueError, match="no event label 'colour'"):
        spec().classes("colour")
    with pytest.raises(ValueError, match="no branch 'tpc'"):
        spec().branch("tpc")


@pytest.mark.parametrize("name", list_detectors())
def test_json_round_trip(name, tmp_path):
    original = load_detector(name)
    (tmp_path / "d.json").write_text(json.dumps(original.to_dict()))
    again = load_detector(tmp_path / "d.json")
    assert again == original
    assert again.hash == original.hash
    assert again.to_dict() == original.to_dict()
    assert load_detector(original) is original
    assert load_detector(original.to_dict()) == original


def test_the_last_patch_and_window_may_reach_beyond_the_grid():
    cubes = load_detector("superfgd").voxel_branches[0]
    assert (cubes.shape, cubes.patch, cubes.window) == ((200, 200, 200), (12, 12, 10), (2, 2, 2))
    assert (cubes.patch_grid, cubes.window_grid, cubes.num_windows) == ((17, 17, 20), (9, 9, 10), 810)


def test_hash_follows_meaning_only():
    base = spec()
    assert spec(description="other words").hash == base.hash
    assert len(base.hash) == 16
    changed = [
        spec(name="e"),
        spec(event_labels={"kind": ("b", "a")}),
        spec(branches=(replace(BOX, voxel_size=(10, 5, 2.6)),)),
        spec(branches=(replace(BOX, labels=(VoxelLabel("ghost", ("ghost",)),)), *base.branches[1:])),
    ]
    assert len({base.hash, *(d.hash for d in changed)}) == 5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: replace(BOX, shape=(4, 6)), "shape needs three numbers"),
        (lambda: replace(BOX, shape=(4, 6, 8.5)), "three finite int values"),
        (lambda: replace(BOX, origin=(0, 0, float("nan"))), "three finite float values"),
        (lambda: replace(BOX, voxel_size=(1, 1, 0)), "must be positive"),
        (lambda: replace(BOX, patch=(0, 3, 4)), "must be positive"),
        (lambda: replace(BOX, channels=()), "channels is empty"),
        (lambda: replace(BOX, blocks=Blocks(2, 4, (0,))), "1 blocks of 4 layers do not fill axis 2"),
        (lambda: replace(BOX, blocks=Blocks(3, 4, (0, 20))), "do not fill axis 3"),
        (lambda: replace(BOX, blocks=Blocks(2, 4, (0, 9))), "overlap or do not increase"),
        (lambda: replace(BOX, blocks={"axis": 2, "size": 4, "starts": (0, 20)}), r"unknown keys \['size'\]"),
        (lambda: VoxelLabel("ghost", ()), "at least one class"),
        (lambda: ImageBranch("i", (5, 0)), "image shape must be positive"),
        (lambda: TrackBranch("t", ("p",), 2, ("q",)), r"unknown model features: \['q'\]"),
        (lambda: TrackBranch("t", ("p",), 0), "max_count >= 1"),
        (lambda: spec(branches=(BOX, BOX)), "are not unique"),
        (lambda: spec(branches=(ImageBranch("i", (2, 2)), BOX)), "voxels, then image, then tracks"),
        (lambda: spec(branches=(BOX, ImageBranch("i", (2,)), ImageBranch("j", (2,)))), "at most one image"),
        (lambda: spec(branches=(ImageBranch("i", (2,)),)), "at least one voxel branch"),
        (lambda: spec(version=2), "spec version 2 is not 1"),
        (lambda: load_detector({"name": "d", "branches": [{"kind": "wire", "name": "w"}]}), "branch kind 'wire' is not one of"),
        (lambda: load_detector({"name": "d", "branches": [{"kind": "image", "name": "w"}]}), "shape"),
        (lambda: load_detector({"name": "d", "branches": [], "colour": 1}), r"unknown keys \['colour'\]"),
        (lambda: load_detector("atlantis"), "unknown detector 'atlantis': give one of"),
    ],
)
def test_what_makes_no_sense_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_unreadable_files(tmp_path):
    (tmp_path / "a.json").write_text('{"name": ')
    (tmp_path / "b.json").write_text("[1]")
    for name in ("a.json", "b.json", "none.json"):
        with pytest.raises(ValueError, match=f"cannot read a detector spec from .*{name}"):
            load_detector(tmp_path / name)
