"""Voxels, light, projections and reconstruction, without Geant4."""

import numpy as np
import pytest

from nufm_hub.detectors import load_detector
from nufm_hub.simulation import reconstruction
from nufm_hub.simulation.fasercal import round_energy
from nufm_hub.simulation.reconstruction import reconstruct
from nufm_hub.simulation.response import ATTENUATION, FIBRE_THRESHOLD, PHOTOELECTRONS, attenuation, leak, quench, read_out
from nufm_hub.simulation.truth import CATEGORY, HIERARCHY, category, energy_shares, hierarchy, tau_category
from nufm_hub.simulation.voxelise import split_steps

CUBES = load_detector("fasercal").branch("3dcal")


def test_splitting_keeps_energy_and_follows_the_track():
    rng = np.random.default_rng(0)
    module = rng.integers(0, 10, 300)
    low = np.column_stack([np.full(300, -240.0), np.full(300, -240.0), np.asarray(CUBES.blocks.starts)[module]])
    start, end = (low + rng.random((300, 3)) * [480, 480, 200] for _ in range(2))
    voxel, step, share = split_steps(start, end, module, CUBES)
    assert np.bincount(step, share) == pytest.approx(np.ones(300))
    index = np.column_stack(np.unravel_index(voxel, CUBES.shape))
    # Every piece lies in its voxel: the voxel's centre is within half a diagonal of the straight line.
    centre = CUBES.to_mm(index)
    direction = (end - start)[step] / np.linalg.norm(end - start, axis=1)[step, None]
    offset = centre - start[step]
    assert np.linalg.norm(offset - (offset * direction).sum(1, keepdims=True) * direction, axis=1).max() < 5 * np.sqrt(3) + 1e-9


def test_splitting_gives_each_voxel_its_length():
    start, end = np.array([[3.0, 5.0, 6.0 + 2.5]]), np.array([[3.0, 5.0, 6.0 + 27.5]])
    voxel, _, share = split_steps(start, end, np.array([0]), CUBES)
    index = np.unravel_index(voxel, CUBES.shape)
    assert set(zip(*(i.tolist() for i in index))) == {(24, 24, 0), (24, 24, 1), (24, 24, 2)}
    assert np.bincount(index[2], share) == pytest.approx([0.3, 0.4, 0.3], abs=0.04)


def test_step_ending_on_a_face_stays_in_its_block():
    start = end = np.array([[-240.0, 240.0, 457.0]])  # corner of the second block's far side
    voxel, _, _ = split_steps(start, end, np.array([1]), CUBES)
    assert np.unravel_index(voxel[0], CUBES.shape) == (0, 47, 39)


def test_quenching_follows_birks():
    assert quench(np.array([2.0]), np.array([10.0]))[0] == pytest.approx(2 / (1 + 0.0087 * 2))  # 2 MeV/cm
    assert quench(np.array([2.0]), np.array([0.0]))[0] == 2.0


def test_leakage_keeps_light_and_reaches_four_neighbours():
    light = np.zeros((5, 5, 3))
    light[2, 2, 1], light[0, 4, 0] = 10.0, 7.0
    out = leak(light)
    assert out.sum() == pytest.approx(17)
    assert out[2, 2, 1] == pytest.approx(8.8)
    assert [out[1, 2, 1], out[3, 2, 1], out[2, 1, 1], out[2, 3, 1]] == pytest.approx([0.3] * 4)
    assert out[2, 2, [0, 2]].tolist() == [0, 0]


def test_fibres_count_photoelectrons():
    light = np.zeros((48, 48, 200))
    light[10, 20, 30] = 4.0
    rng = np.random.default_rng(1)
    made = [read_out(light, 10.0, 20, rng) for _ in range(400)]
    for values, distance in (
        ([m.xz[10, 30] for m in made], (48 - 20 - 0.5) * 10 - 240),
        ([m.yz[20, 30] for m in made], (48 - 10 - 0.5) * 10 - 240),
        ([m.xy[1, 10, 20] for m in made], (20 - 10 - 0.5) * 10 - 100),
    ):
        mean = 4 * np.exp(-distance / ATTENUATION)
        assert np.mean(values) == pytest.approx(mean, abs=4 * np.sqrt(mean / PHOTOELECTRONS / 400))
        assert np.var(values) == pytest.approx(mean / PHOTOELECTRONS, rel=0.35)
    assert sum(np.count_nonzero(p) for p in made[0]) == 3
    light[10, 20, 30] = 0.9 * FIBRE_THRESHOLD
    seen = [read_out(light, 10.0, 20, rng).xz[10, 30] for _ in range(200)]
    assert all(s == 0 or s >= FIBRE_THRESHOLD for s in seen)
    assert 0 < np.mean(np.array(seen) > 0) < 0.7


def test_one_track_is_reconstructed_without_ghosts():
    cubes = np.zeros((48, 48, 200))
    for z in range(200):
        cubes[20 + z // 20, 24, z] = 2.0
    light = read_out(cubes * 1000, 10.0, 20, np.random.default_rng(0))  # much light: hardly any fluctuation
    coordinates, energy = reconstruct(light, 10.0)
    assert np.array_equal(coordinates, np.argwhere(cubes > 0))
    assert energy == pytest.approx(np.full(200, 2000.0), rel=0.05)


def test_ambiguities_are_ghosts():
    """Two cubes at opposite corners of a square in one layer, two at the other corners deeper in the module: no view excludes the empty corners."""
    cubes = np.zeros((48, 48, 200))
    cubes[10, 10, 5] = cubes[20, 20, 5] = cubes[10, 20, 9] = cubes[20, 10, 9] = 10.0
    coordinates, energy = reconstruct(read_out(cubes, 10.0, 20, np.random.default_rng(0)), 10.0)
    found = {tuple(c) for c in coordinates.tolist()}
    assert {tuple(c) for c in np.argwhere(cubes > 0).tolist()} <= found
    assert found <= {(x, y, z) for x in (10, 20) for y in (10, 20) for z in (5, 9)}
    assert len(found) > 4
    assert energy.sum() == pytest.approx(40, rel=0.15)
    # In another module the same two cubes would be seen for what they are.
    cubes = np.zeros((48, 48, 200))
    cubes[10, 10, 5] = cubes[20, 20, 5] = cubes[10, 20, 29] = cubes[20, 10, 29] = 10.0
    coordinates, _ = reconstruct(read_out(cubes, 10.0, 20, np.random.default_rng(0)), 10.0)
    assert np.array_equal(coordinates, np.argwhere(cubes > 0))


def test_reconstruction_explains_the_projections(monkeypatch):
    """Fed with light along each fibre, the energies add up to the signals, ghosts and faint voxels included."""
    monkeypatch.setattr(reconstruction, "VOXEL_THRESHOLD", 0.0)
    rng = np.random.default_rng(3)
    cubes = np.zeros((48, 48, 200))
    cubes[tuple(rng.integers(0, [[12], [12], [40]], (3, 400)))] = rng.uniform(20, 60, 400)
    seen = read_out(cubes, 10.0, 20, rng)
    coordinates, energy = reconstruct(seen, 10.0)
    x, y, z = coordinates.T
    assert len(energy) > 1.5 * np.count_nonzero(cubes)
    assert energy.sum() == pytest.approx(cubes.sum(), rel=0.02)
    weight = attenuation(20, 10.0)[z % 20]
    refolded = np.bincount(((z // 20) * 48 + x) * 48 + y, energy * weight, minlength=seen.xy.size).reshape(seen.xy.shape)
    assert refolded == pytest.approx(seen.xy, abs=1e-6)  # the family that is fitted last


def test_nothing_is_reconstructed_from_nothing():
    coordinates, energy = reconstruct(read_out(np.zeros((48, 48, 200)), 10.0, 20, np.random.default_rng(0)), 10.0)
    assert coordinates.shape == (0, 3)
    assert len(energy) == 0


def test_shares_are_of_energy_and_add_up():
    voxel, energy, classes = np.array([4, 4, 4, 7, 7, 7]), np.array([1.0, 2, 5, 1, 1, 1]), np.array([0, 1, 1, 0, 1, 2])
    shares = energy_shares(voxel, energy, classes, np.array([4, 5, 7]), 10)
    assert shares[0] == pytest.approx([0.12, 0.88, 0], abs=0.011)
    assert shares[1].tolist() == [0, 0, 0]
    assert shares[[0, 2]].sum(1) == pytest.approx([1, 1], abs=1e-6)
    assert shares * 100 == pytest.approx(np.rint(shares * 100), abs=1e-4)


def test_classes_of_species_and_generations():
    assert {label.name: label.classes for label in CUBES.labels} == {"ghost": ("ghost",), "hierarchy": HIERARCHY, "category": CATEGORY}
    assert category(np.array([11, -11, 22, 111, 221, 331, 13, -13, 211, 2212, 130, 1000060120])).tolist() == [0] * 6 + [1] * 2 + [2] * 4
    assert hierarchy(np.array([1, 2, 3])).tolist() == [1, 2, 0]
    assert [tau_category(m) for m in range(1, 7)] == [0, 1, 2, 2, 2, 2]


@pytest.mark.parametrize(("value", "finest", "expected"), [(0.512, 0.05, 0.5), (3.14159, 0.01, 3.14), (3.14159, 0.05, 3.15), (123.456, 0.05, 123.0)])
def test_rounding(value, finest, expected):
    assert round_energy(np.array([value]), finest)[0] == pytest.approx(expected, rel=1e-6)


def test_rounding_keeps_sums():
    energy = np.random.default_rng(0).exponential(20, 10_000)
    assert round_energy(energy, 0.05).sum() == pytest.approx(energy.sum(), rel=1e-4)
