import numpy as np
import pytest

from nufm_hub.detectors import Blocks, VoxelBranch, VoxelLabel
from nufm_hub.events.voxelise import merge_voxels, split_segments, voxelise

BRANCH = VoxelBranch(
    "cubes", (4, 4, 4), (10, 10, 10), (-20, -20, -20), (2, 2, 2), (1, 1, 1), labels=(VoxelLabel("ghost", ("ghost",)), VoxelLabel("kind", ("a", "b")))
)
GAPS = VoxelBranch("gaps", (4, 4, 4), (10, 10, 10), (0, 0, 0), (2, 2, 2), (1, 1, 1), blocks=Blocks(2, 2, (0, 50)))


def test_hits_of_a_voxel_add_up_by_hand():
    positions = [[-20, -20, -20], [19.9, 0, 0], [-10.1, -11, -12], [19, 9, 9]]
    energy = [1.0, 2.0, 3.0, 0.0]
    kind = [[1, 0], [0, 1], [0, 1], [1, 0]]
    ghost = [[1], [np.nan], [0], [np.nan]]
    voxels = voxelise(positions, energy, BRANCH, {"kind": kind, "ghost": ghost}, {"track": [5, 6, 7, -1]})
    np.testing.assert_array_equal(voxels.coordinates, [[0, 0, 0], [3, 2, 2]])
    assert voxels.energy.tolist() == [4, 2]
    np.testing.assert_array_equal(voxels.labels["kind"], [[0.25, 0.75], [0, 1]])
    np.testing.assert_array_equal(voxels.labels["ghost"], [[0.25], [np.nan]])
    assert voxels.instances["track"].tolist() == [7, 6]
    assert voxels.voxel_of_hit.tolist() == [0, 1, 0, 1]


def test_labels_of_hits_without_energy_and_ties_of_instances():
    voxels = merge_voxels([[0, 0, 0]] * 3, [0.0, 0, 0], BRANCH, {"kind": [[1, 0], [0, 1], [0, 0]]}, {"track": [9, 4, -1]})
    np.testing.assert_array_equal(voxels.labels["kind"], [[0.5, 0.5]])
    assert voxels.instances["track"].tolist() == [4]


def test_same_hits_same_bits_and_the_way_back():
    rng = np.random.default_rng(3)
    coordinates, energy = rng.integers(0, 4, (500, 3)), rng.exponential(1.0, 500)
    first, second = (merge_voxels(coordinates, energy, BRANCH) for _ in range(2))
    assert first.values.tobytes() == second.values.tobytes()
    np.testing.assert_array_equal(first.coordinates[first.voxel_of_hit], coordinates)
    # Independent sum.
    dense = np.zeros(BRANCH.shape)
    for c, e in zip(coordinates, energy):
        dense[tuple(c)] += e
    np.testing.assert_allclose(first.energy, dense[tuple(first.coordinates.T)], rtol=1e-6)
    assert first.coordinates.tolist() == sorted(first.coordinates.tolist())


def test_no_hits():
    voxels = voxelise(np.zeros((0, 3)), np.zeros(0), BRANCH, {"kind": np.zeros((0, 2))}, {"track": np.zeros(0)})
    assert len(voxels) == 0
    assert voxels.labels["kind"].shape == (0, 2)


def test_errors_name_the_hit():
    with pytest.raises(ValueError, match=r"hit 1 at \[20.0, 0.0, 0.0\] mm"):
        voxelise([[0, 0, 0], [20, 0, 0]], [1, 1], BRANCH)
    with pytest.raises(ValueError, match="hit 0 at"):
        voxelise([[np.nan, 0, 0]], [1], BRANCH)
    with pytest.raises(ValueError, match="hit 0 has voxel indices"):
        merge_voxels([[0, 4, 0]], [1], BRANCH)
    with pytest.raises(ValueError, match="'values': 2"):
        merge_voxels([[0, 0, 0]], [1, 2], BRANCH)


def test_segments_are_cut_at_the_faces():
    points, segment, share = split_segments([[-15, 5, 5], [1, 1, 1]], [[15, 5, 5], [1, 1, 1]], BRANCH)
    assert segment.tolist() == [0, 0, 0, 0, 1]
    np.testing.assert_allclose(share, [1 / 6, 1 / 3, 1 / 3, 1 / 6, 1])
    np.testing.assert_allclose(points[:4, 0], [-12.5, -5, 5, 12.5])


def test_lengths_in_voxels_agree_with_fine_sampling():
    rng = np.random.default_rng(1)
    starts, ends = rng.uniform([-25, -25, -5], [25, 25, 45], (2, 40, 3))
    points, segment, share = split_segments(starts, ends, GAPS)
    np.testing.assert_allclose(np.bincount(segment, share), np.ones(40))
    coordinates, inside = GAPS.to_voxel(points)
    found = np.zeros(GAPS.shape)
    np.add.at(found, tuple(coordinates[inside].T), share[inside])
    sampled = np.zeros(GAPS.shape)
    steps = (np.arange(20000) + 0.5)[:, None] / 20000
    for a, b in zip(starts, ends):
        c, ok = GAPS.to_voxel(a + steps * (b - a))
        np.add.at(sampled, tuple(c[ok].T), 1 / 20000)
    np.testing.assert_allclose(found, sampled, atol=2e-3)
