import itertools
import math

import numpy as np
import pytest

from nufm_hub.detectors import load_detector
from nufm_hub.events import Event, Voxels, read_events
from nufm_hub.events.augmentation import orient
from nufm_hub.events.crops import (
    BOUNDARY_FEATURES,
    CONTEXT_FEATURES,
    SHAPE_FEATURES,
    boundary_features,
    context_features,
    crop_clamped,
    crop_detector,
    crop_particle,
    crop_scaled,
    particle_crops,
    shape_features,
)
from nufm_hub.events.samples import sample_path

SUPERFGD, PILARNET = load_detector("superfgd"), load_detector("pilarnet")
SMALL_CUBE = crop_detector(SUPERFGD, (120, 120, 120), (12, 12, 10), (2, 2, 2), "clamp")
SMALL_LAR = crop_detector(PILARNET, (168, 168, 180), (12, 12, 10), (2, 2, 3), "scale")


def named(values, names=SHAPE_FEATURES):
    assert len(values) == len(names)
    return dict(zip(names, values))


def test_there_are_25_and_6():
    assert (len(SHAPE_FEATURES), len(BOUNDARY_FEATURES), len(CONTEXT_FEATURES)) == (25, 6, 6)
    assert len(set(SHAPE_FEATURES + BOUNDARY_FEATURES + CONTEXT_FEATURES)) == 37


def test_an_l_of_three_voxels_by_hand():
    # Voxels (0,0,0), (2,0,0), (0,1,0); covariance [[4/3, -1/3], [-1/3, 1/3]] -> eigenvalues (5 +- sqrt(13)) / 6.
    f = named(shape_features([[0, 0, 0], [2, 0, 0], [0, 1, 0]], [1.0, 2.0, 6.0], (11, 11, 11), 0.5, "low_energy"))
    s1, s2 = math.sqrt((5 + math.sqrt(13)) / 6), math.sqrt((5 - math.sqrt(13)) / 6)
    expected = {
        "centroid_x": 2 / 3 / 10,
        "centroid_y": 1 / 3 / 10,
        "centroid_z": 0,
        "extent_x": 3 / 11,
        "extent_y": 2 / 11,
        "extent_z": 1 / 11,
        "log_voxels": math.log(4),
        "log_energy": math.log(10),
        "log_mean_energy": math.log(4),
        "log_std_energy": math.log1p(math.sqrt((4 + 1 + 9) / 3)),
        "log_density": math.log1p(3 / 6),
        "containment": 0.5,
        "log_spread_1": math.log1p(s1),
        "log_spread_2": math.log1p(s2),
        "log_spread_3": 0,
        # Along the first axis (0,1,0) and (2,0,0) are the ends; 7 MeV lie on the side of (0,1,0), 2 MeV on that of (2,0,0).
        "start_x": 0.2,
        "start_y": 0,
        "start_z": 0,
        "direction_x": -2 / math.sqrt(5),
        "direction_y": 1 / math.sqrt(5),
        "direction_z": 0,
        "length": math.sqrt(5) / math.sqrt(300),
        "linearity": math.log1p(s1 / s2),
        "planarity": math.log1p(s2 / 1e-6),
        "energy_asymmetry": 5 / 9,
    }
    assert list(expected) == list(SHAPE_FEATURES)
    for name, value in expected.items():
        assert f[name] == pytest.approx(value, abs=1e-9), name


def test_where_a_track_starts():
    line = np.array([[5, 5, z] for z in range(5)])
    stopping = [1.0, 1, 1, 1, 4]
    for energy, start in ((stopping, 0), (stopping[::-1], 4)):
        f = named(shape_features(line, energy, (10, 10, 10), 1, "low_energy"))
        assert f["start_z"] == pytest.approx(start / 9)
        # The voxel in the middle counts half on each side: (5.5 - 2.5) / 8.
        assert f["energy_asymmetry"] == pytest.approx(3 / 8)
        g = named(shape_features(line, energy, (10, 10, 10), 1, "low_z"))
        assert g["start_z"] == 0
        assert g["direction_z"] == 1
        assert g["energy_asymmetry"] == pytest.approx(3 / 8 if start == 0 else -3 / 8)
    # Equal sides: the end whose voxel has less energy.
    assert named(shape_features(line, [2.0, 1, 0, 2, 1], (10, 10, 10), 1, "low_energy"))["start_z"] == pytest.approx(4 / 9)


def test_order_of_voxels_does_not_matter_and_mirrors_follow():
    rng = np.random.default_rng(0)
    c, e = np.unique(rng.integers(0, 20, (60, 3)) * [1, 2, 4], axis=0), None
    e = rng.exponential(1.0, len(c))
    grid = (80, 80, 80)
    base = shape_features(c, e, grid, 1, "low_energy")
    order = rng.permutation(len(c))
    np.testing.assert_allclose(shape_features(c[order], e[order], grid, 1, "low_energy"), base, atol=1e-12)
    mirrored = named(shape_features([79, 0, 0] + c * [-1, 1, 1], e, grid, 1, "low_energy"))
    f = named(base)
    for name in ("length", "linearity", "energy_asymmetry", "direction_y", "log_spread_1"):
        assert mirrored[name] == pytest.approx(f[name])
    assert mirrored["direction_x"] == pytest.approx(-f["direction_x"])
    assert mirrored["centroid_x"] == pytest.approx(1 - f["centroid_x"])


def test_one_voxel_and_none():
    f = shape_features([[3, 4, 5]], [2.0], (11, 11, 11), 1, "low_z")
    np.testing.assert_allclose(f[[0, 1, 2, 15, 16, 17]], [0.3, 0.4, 0.5, 0.3, 0.4, 0.5])
    assert not f[[9, 12, 13, 14, 18, 19, 20, 21, 22, 23, 24]].any()
    with pytest.raises(ValueError, match="without voxels"):
        shape_features(np.zeros((0, 3)), [], (11, 11, 11), 1, "low_z")
    with pytest.raises(ValueError, match="neither"):
        shape_features([[0, 0, 0]], [1.0], (11, 11, 11), 1, "anywhere")


def test_boundary_features_by_hand():
    np.testing.assert_allclose(boundary_features([0, 20, 80], (200, 200, 200), (120, 120, 120)), [0, 1, 0.25, 0.75, 1, 0])
    np.testing.assert_array_equal(boundary_features([0, 0, 0], (8, 8, 8), (8, 8, 8)), np.zeros(6))


def test_context_features_by_hand():
    f = context_features([[0, 0, 0], [1, 0, 0], [0, 0, 0.5]], [10, 30, 60], [4.0, 4.0, 2.0])
    centre = np.array([1 / 3, 0, 1 / 6])
    np.testing.assert_allclose(f[:, 0], [0.4, 0.4, 0.2])
    np.testing.assert_allclose(f[:, 1], [0.1, 0.3, 0.6])
    np.testing.assert_allclose(f[:, 2], [0, 0.5, 1])
    np.testing.assert_allclose(f[:, 3], [1, 0.5, 0])
    np.testing.assert_allclose(f[:, 4] * np.sqrt(3), [0.5, 1, 0.5])
    np.testing.assert_allclose(f[0, 5] * np.sqrt(3), np.linalg.norm(centre))
    np.testing.assert_allclose(context_features([[0.2, 0.2, 0.2]], [5], [1.0]), [[1, 1, 0, 0, 1 / np.sqrt(3), 0]])


def test_clamped_crops():
    voxels = Voxels([[100, 3, 199], [103, 4, 190]], [1.0, 2.0], {"crosstalk": [0, 1]})
    crop = crop_clamped(voxels, (200, 200, 200), (120, 120, 120))
    assert crop.origin.tolist() == [42, 0, 80]  # floor(101.5 - 59.5); 3.5 - 59.5 and 194.5 - 59.5 clamped
    np.testing.assert_array_equal(crop.voxels.coordinates + crop.origin, voxels.coordinates)
    np.testing.assert_array_equal(crop.voxels.labels["crosstalk"], [[0], [1]])
    # A particle longer than the crop loses its ends.
    line = Voxels(np.stack([np.arange(200), np.full(200, 7), np.full(200, 7)], axis=1), np.ones(200))
    cut = crop_clamped(line, (200, 200, 200), (120, 120, 120))
    assert cut.origin[0] == 40
    assert cut.rows.tolist() == list(range(40, 160))
    with pytest.raises(ValueError, match="does not fit the detector"):
        crop_clamped(voxels, (100, 100, 100), (120, 120, 120))
    with pytest.raises(ValueError, match="without voxels"):
        crop_clamped(line.select(np.zeros(200, bool)), (200, 200, 200), (120, 120, 120))


def test_scaled_crops():
    branch = SMALL_LAR.voxel_branches[0]
    small = crop_scaled(Voxels([[0, 0, 0], [4, 0, 0]], [1.0, 2.0]), branch)
    assert small.scale == 1
    assert small.voxels.coordinates[:, 0].tolist() == [82, 86]  # -2 + 83.5 and 2 + 83.5, to even
    # 335 voxels apart on 168: half the size, and neighbours merge.
    line = Voxels(np.stack([np.arange(336), np.zeros(336), np.zeros(336)], axis=1), np.ones(336), {"motif": np.tile([0, 1, 0, 0, 0], (336, 1))})
    large = crop_scaled(line, branch)
    assert large.scale == pytest.approx(83.5 / 167.5)
    assert large.voxels.coordinates[:, 0].min() == 0
    assert large.voxels.coordinates[:, 0].max() == 167
    assert large.voxels.energy.sum() == 336
    assert len(large.voxels) == 168
    # Each source voxel finds its voxel in the crop.
    expected = np.rint((np.arange(336) - 167.5) * large.scale + 83.5)
    np.testing.assert_array_equal(large.voxels.coordinates[large.crop_of_row, 0], expected)


def test_single_particle_events_become_crop_events():
    voxels = Voxels([[100, 3, 199], [103, 4, 190]], [1.0, 2.0], {"crosstalk": [0, 1]})
    truth = {"particle": 2, "particle_position": np.array([1.0, 2, 3]), "particle_momentum": np.array([0, 0, 0.5])}
    event = Event("superfgd", {"cubes": voxels}, truth=truth, provenance={"generator": "x", "seed": 1, "index": 2})
    crop = crop_particle(event, SUPERFGD, SMALL_CUBE)
    crop.validate(SMALL_CUBE)
    assert crop.truth["particle"] == 2
    assert crop.provenance == event.provenance
    f = named(crop.tracks["context"][0], SHAPE_FEATURES + BOUNDARY_FEATURES)
    assert f["containment"] == 0.5  # one voxel of two has z index 119 of 120
    assert f["distance_high_z"] == 0
    assert f["distance_low_x"] == pytest.approx(42 / 80)
    with pytest.raises(ValueError, match="seed 1 index 2"):
        crop_particle(Event("superfgd", {"cubes": voxels.select([])}, provenance=event.provenance), SUPERFGD, SMALL_CUBE)


def test_particles_of_an_image_become_crop_events():
    rng = np.random.default_rng(0)
    sizes = {3: 6, 8: 4, 1: 9, 5: 7}  # 8 is too small, 5 has no class
    ids = np.repeat(list(sizes), list(sizes.values()))
    coordinates = rng.permutation(768)[: 3 * len(ids)].reshape(-1, 3)
    voxels = Voxels(coordinates, rng.exponential(1.0, len(ids)), {}, {"particle": ids, "interaction": ids * 0})
    particles = {"id": np.array([3, 8, 1, 5]), "label": np.array([1, 2, 4, -1]), "pdg": np.array([11, 13, 2212, 0])}
    event = Event("pilarnet", {"lar": voxels}, particles=particles, provenance={"generator": "x", "seed": 1, "index": 2})
    first, second = particle_crops(event, PILARNET, SMALL_LAR)
    for crop, label, size in ((first, 4, 9), (second, 1, 6)):
        crop.validate(SMALL_LAR)
        assert crop.truth["particle"] == label
        f = named(crop.tracks["context"][0], SHAPE_FEATURES + CONTEXT_FEATURES)
        assert f["log_voxels"] == pytest.approx(math.log(1 + size))
        assert f["voxel_share"] == pytest.approx(size / 15)
        assert f["containment"] < 1
    assert second.particles["pdg"].tolist() == [11]
    with pytest.raises(ValueError, match="no particle instances"):
        next(particle_crops(Event("pilarnet", {"lar": Voxels([[0, 0, 0]], [1.0])}), PILARNET, SMALL_LAR))


def test_unknown_fit():
    with pytest.raises(ValueError, match="neither 'clamp' nor 'scale'"):
        crop_detector(SUPERFGD, (120, 120, 120), (12, 12, 10), (2, 2, 2), "squeeze")


@pytest.mark.parametrize("signs", list(itertools.product([1, -1], repeat=3)))
@pytest.mark.parametrize("turns", [0, 1])
def test_features_of_turned_crops_are_those_of_the_turned_particle(signs, turns):
    matrix = np.linalg.matrix_power([[0, -1, 0], [1, 0, 0], [0, 0, 1]], turns) @ np.diag(signs)
    events = [e for e in itertools.islice(read_events(sample_path("superfgd")), 25) if len(e.voxels["cubes"]) >= 5]
    for event in events:
        crop = crop_particle(event, SUPERFGD, SMALL_CUBE)
        turned = orient(crop, SMALL_CUBE, matrix)
        voxels, found = turned.voxels["cubes"], turned.tracks["context"][0]
        containment = crop.tracks["context"][0][SHAPE_FEATURES.index("containment")]
        shape = shape_features(voxels.coordinates, voxels.energy, (120, 120, 120), containment, "low_energy")
        assert found[:25] == pytest.approx(shape, abs=1e-5)
        # The distance to the wall along each axis moves with the axis, and changes side in a mirror.
        walls = crop.tracks["context"][0][25:].reshape(3, 2)
        for axis, old in enumerate(np.abs(matrix).argmax(axis=1)):
            expected = walls[old] if matrix[axis, old] > 0 else walls[old][::-1]
            assert found[25:].reshape(3, 2)[axis] == pytest.approx(expected)


def test_features_of_turned_images_are_those_of_the_turned_particles():
    image = next(read_events(sample_path("pilarnet")))
    matrix = np.array([[0, 1, 0], [-1, 0, 0], [0, 0, 1]])
    before = list(particle_crops(image, PILARNET, SMALL_LAR))
    after = list(particle_crops(orient(image, PILARNET, matrix), PILARNET, SMALL_LAR))
    level = 0
    for a, b in zip(before, after, strict=True):
        turned = orient(a, SMALL_LAR, matrix).tracks["context"][0]
        if a.tracks["context"][0][SHAPE_FEATURES.index("direction_z")] == 0:  # then x decides which end is the start
            level += 1
            continue
        assert turned == pytest.approx(b.tracks["context"][0], abs=1e-5)
    assert level < len(before) / 5
    with pytest.raises(ValueError, match="mirror x and y"):
        orient(before[0], SMALL_LAR, np.diag([1, 1, -1]))
