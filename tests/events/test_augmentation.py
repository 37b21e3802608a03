"""Augmentation moves hits and truth together: checked in mm and in GeV, not in the code's own indices."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from nufm_hub.detectors import DetectorSpec, load_detector
from nufm_hub.events import Event, Voxels
from nufm_hub.events.augmentation import Augmentation, orient, shift

SPEC = load_detector("fasercal")
QUARTER_Z = np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]])


@pytest.fixture
def event() -> Event:
    rng = np.random.default_rng(0)
    inner = np.unique(rng.integers((8, 8, 0), (40, 40, 200), (500, 3)), axis=0)
    category = np.eye(3, dtype=np.float32)[rng.integers(0, 3, len(inner))]
    return Event(
        "fasercal",
        {
            "3dcal": Voxels(inner, rng.exponential(3.0, len(inner)) + 0.5, {"category": category}, {}, np.arange(len(inner))),
            "ahcal": Voxels(np.unique(rng.integers((2, 2, 0), (16, 16, 40), (50, 3)), axis=0), np.ones(50)),
        },
        {"ecal": rng.random((5, 5)).astype(np.float32)},
        {"muon": rng.normal(size=(2, 11)).astype(np.float32)},
        {"flavour": 1, "vertex": np.array([12.0, -30.0, 700.0]), "lepton_momentum": np.array([1.0, 2.0, 30.0]), "neutrino_pdg": 14},
        {"momentum": np.array([[0.5, -0.1, 2.0]], dtype=np.float32), "vertex": np.array([[12.0, -30.0, 700.0]], dtype=np.float32)},
    )


def positions(event: Event, branch: str) -> np.ndarray:
    return SPEC.branch(branch).to_mm(event.voxels[branch].coordinates)


@pytest.mark.parametrize("signs", list(product([1, -1], repeat=3)))
@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_orientation_moves_hits_vertex_and_momenta_by_the_same_matrix(event, signs, turns):
    matrix = np.linalg.matrix_power(QUARTER_Z, turns) @ np.diag(signs)
    turned = orient(event, SPEC, matrix)
    centre = SPEC.branch("3dcal").bounds.mean(axis=0)
    expected = (positions(event, "3dcal") - centre) @ matrix.T + centre
    assert np.abs(positions(turned, "3dcal") - expected).max() < 1e-9
    ahcal_centre = SPEC.branch("ahcal").bounds.mean(axis=0)
    assert np.abs(positions(turned, "ahcal") - ((positions(event, "ahcal") - ahcal_centre) @ matrix.T + ahcal_centre)).max() < 1e-9
    assert turned.truth["vertex"] == pytest.approx((event.truth["vertex"] - centre) @ matrix.T + centre)
    assert turned.truth["lepton_momentum"] == pytest.approx(matrix @ event.truth["lepton_momentum"])
    assert turned.particles["momentum"][0] == pytest.approx(matrix @ event.particles["momentum"][0])
    assert turned.tracks["muon"][:, 2:5] == pytest.approx(event.tracks["muon"][:, 2:5] @ matrix.T)
    assert (turned.tracks["muon"][:, [0, 1, 5, 6]] == event.tracks["muon"][:, [0, 1, 5, 6]]).all()
    # The image follows: the tower at (x, y) is found where the matrix sends it.
    towers = np.stack(np.meshgrid(np.arange(5), np.arange(5), indexing="ij"), axis=-1).reshape(-1, 2)
    moved = (towers - 2) @ matrix[:2, :2].T + 2
    assert (turned.images["ecal"][tuple(moved.T)] == event.images["ecal"][tuple(towers.T)]).all()
    turned.validate(SPEC)


VECTORS = ("neutrino_momentum", "visible_momentum", "jet_momentum", "lepton_momentum", "particle_momentum")


@pytest.fixture
def full_event(event) -> Event:
    """With every momentum and position that an event can carry, and voxels that say which they were."""
    rng = np.random.default_rng(7)
    truth = event.truth | {name: rng.normal(0, 20, 3) for name in VECTORS} | {"particle_position": np.array([-55.0, 80.0, 1200.0])}
    particles = {"momentum": rng.normal(size=(4, 3)), "vertex": rng.normal((0, 0, 1200), 100, (4, 3)), "pdg": np.array([11, 13, 211, 22])}
    voxels = {}
    for name, old in event.voxels.items():
        n = len(old)
        labels = {"ghost": rng.random(n), "hierarchy": np.eye(3)[rng.integers(0, 3, n)], "category": np.eye(3)[rng.integers(0, 3, n)]}
        voxels[name] = Voxels(
            old.coordinates, rng.exponential(3.0, n) + 0.5, labels if name == "3dcal" else {}, {"track": np.arange(n)}, np.arange(n)
        )
    return replace(event, truth=truth, particles=particles, voxels=voxels)


@pytest.mark.parametrize("seed", range(12))
def test_all_changes_together_keep_how_hits_truth_image_and_tracks_lie_to_each_other(full_event, seed):
    """Rotation, mirror, shift, energies and losses at once: distances and projections are what no orientation or shift can change."""
    augmentation = Augmentation(mirror_axes=(0, 1, 2), rotate_axes=(0, 1, 2), max_drop=0.3)
    changed = augmentation(full_event, SPEC, np.random.default_rng(seed))
    old, new = full_event.voxels["3dcal"], changed.voxels["3dcal"]
    row = new.instances["track"]  # of the voxel before
    assert 300 < len(row) < len(old)
    for name, label in new.labels.items():
        np.testing.assert_array_equal(label, old.labels[name][row])
    np.testing.assert_array_equal(new.voxel_of_hit, np.arange(len(row)))

    def from_vertex(event, rows=slice(None)):
        return positions(event, "3dcal")[rows] - event.truth["vertex"]

    hits, moved = from_vertex(full_event, row), from_vertex(changed)
    np.testing.assert_allclose(np.linalg.norm(moved, axis=1), np.linalg.norm(hits, axis=1), atol=1e-6)
    for name in VECTORS:
        np.testing.assert_allclose(moved @ changed.truth[name], hits @ full_event.truth[name], rtol=1e-6, atol=1e-4)
    momenta, turned = full_event.particles["momentum"], changed.particles["momentum"]
    np.testing.assert_allclose(moved @ turned.T, hits @ momenta.T, rtol=1e-5, atol=1e-3)
    for before, after in (
        (full_event.particles["vertex"], changed.particles["vertex"]),
        (full_event.truth["particle_position"][None], changed.truth["particle_position"][None]),
    ):
        apart = [(p[:, None] - v) for p, v in ((before, positions(full_event, "3dcal")[row]), (after, positions(changed, "3dcal")))]
        np.testing.assert_allclose(np.linalg.norm(apart[1], axis=2), np.linalg.norm(apart[0], axis=2), atol=1e-3)
    np.testing.assert_allclose(changed.tracks["muon"][:, 2:5] @ turned.T, full_event.tracks["muon"][:, 2:5] @ momenta.T, rtol=1e-4, atol=1e-4)
    for same in ("flavour", "neutrino_pdg"):
        assert changed.truth[same] == full_event.truth[same]
    np.testing.assert_array_equal(changed.particles["pdg"], full_event.particles["pdg"])
    assert changed.provenance == full_event.provenance
    replace(changed, voxels={name: replace(v, instances={}) for name, v in changed.voxels.items()}).validate(SPEC)


@pytest.mark.parametrize("seed", range(12))
def test_image_and_ahcal_turn_with_the_momenta(full_event, seed):
    """Without a shift, which they follow by whole tiles and by shares of towers."""
    changed = Augmentation((0, 1, 2), (0, 1, 2), max_shift=0, energy_scale=0, max_drop=0)(full_event, SPEC, np.random.default_rng(seed))
    towers = np.stack(np.meshgrid(np.arange(5) - 2, np.arange(5) - 2, indexing="ij"), axis=-1)
    centre = SPEC.branch("ahcal").bounds.mean(axis=0)
    for name in VECTORS:
        lever = [(e.images["ecal"][..., None] * towers).sum((0, 1)) @ e.truth[name][:2] for e in (full_event, changed)]
        assert lever[1] == pytest.approx(lever[0], rel=1e-5, abs=1e-5)
        along = [(positions(e, "ahcal") - centre) @ e.truth[name] for e in (full_event, changed)]
        np.testing.assert_allclose(along[1], along[0][changed.voxels["ahcal"].instances["track"]], atol=1e-6)


def test_four_quarter_turns_and_two_mirrors_give_the_event_back(event):
    turned = event
    for _ in range(4):
        turned = orient(turned, SPEC, QUARTER_Z)
    for _ in range(2):
        turned = orient(turned, SPEC, np.diag([1, 1, -1]))
    assert (turned.voxels["3dcal"].coordinates == event.voxels["3dcal"].coordinates).all()
    assert (turned.images["ecal"] == event.images["ecal"]).all()
    assert turned.truth["vertex"] == pytest.approx(event.truth["vertex"])


def test_shift_moves_hits_and_vertex_but_not_momenta(event):
    moved = shift(event, SPEC, (3, -2), np.random.default_rng(0))
    assert np.abs(positions(moved, "3dcal") - positions(event, "3dcal") - [30, -20, 0]).max() < 1e-9
    assert moved.truth["vertex"] == pytest.approx(event.truth["vertex"] + [30, -20, 0])
    assert (moved.truth["lepton_momentum"] == event.truth["lepton_momentum"]).all()


@pytest.mark.parametrize("steps", [(1, -2), (-3, 4)])
def test_every_sub_detector_moves_by_the_shift_on_average(event, steps):
    """40 mm tiles cannot follow 10 mm exactly, and towers of 121.2 mm by shares only; neither may lag behind the truth."""
    event.images["ecal"][[0, -1]], event.images["ecal"][:, [0, -1]] = 0, 0  # nothing leaves the image
    millimetres, rng = 10.0 * np.array([*steps, 0]), np.random.default_rng(1)
    towers = 121.2 * np.stack(np.meshgrid(np.arange(5), np.arange(5), indexing="ij"), axis=-1)

    def mean_tower(event):
        return (event.images["ecal"][..., None] * towers).sum((0, 1)) / event.images["ecal"].sum()

    tiles = []
    for _ in range(2000):
        moved = shift(event, SPEC, steps, rng)
        assert moved.truth["vertex"] == pytest.approx(event.truth["vertex"] + millimetres)
        np.testing.assert_allclose(positions(moved, "3dcal"), positions(event, "3dcal") + millimetres)
        np.testing.assert_allclose(mean_tower(moved), mean_tower(event) + millimetres[:2], rtol=1e-5)
        for old, new in ((event.voxels["ahcal"].energy, moved.voxels["ahcal"].energy), (event.images["ecal"], moved.images["ecal"])):
            assert new.sum() == pytest.approx(old.sum(), rel=1e-5)
        tile = positions(moved, "ahcal") - positions(event, "ahcal")
        assert (tile == tile[0]).all()
        tiles.append(tile[0])
    assert np.abs(tiles - millimetres).max() < 40
    np.testing.assert_allclose(np.mean(tiles, axis=0), millimetres, atol=2)  # five standard errors


def test_image_keeps_what_lies_in_it_and_loses_what_leaves(event):
    data = SPEC.to_dict()
    data["branches"][2]["pixel_size"] = [40, 20]
    event.images["ecal"] = np.zeros((5, 5), dtype=np.float32)
    event.images["ecal"][0, 1], event.images["ecal"][4, 3] = 8, 4
    moved = shift(event, DetectorSpec.from_dict(data), (1, -1), np.random.default_rng(0)).images["ecal"]
    expected = np.zeros((5, 5))  # a quarter of a pixel along x, half of one back along y
    expected[:2, :2] = [[3, 3], [1, 1]]
    expected[4, 2:4] = [1.5, 1.5]
    np.testing.assert_allclose(moved, expected, atol=1e-6)
    assert moved.dtype == np.float32


def test_shift_moves_all_positions_and_leaves_momenta_and_tracks(full_event):
    moved = shift(full_event, SPEC, (-1, 4), np.random.default_rng(0))
    step = [-10, 40, 0]
    np.testing.assert_allclose(moved.particles["vertex"] - full_event.particles["vertex"], np.tile(step, (4, 1)), atol=1e-9)
    np.testing.assert_allclose(moved.truth["particle_position"] - full_event.truth["particle_position"], step, atol=1e-9)
    for name in VECTORS:
        assert (moved.truth[name] == full_event.truth[name]).all()
    assert (moved.particles["momentum"] == full_event.particles["momentum"]).all()
    assert (moved.tracks["muon"] == full_event.tracks["muon"]).all()


def test_tracks_follow_as_far_as_they_have_components():
    """Positions too; here neither z nor pz."""
    data = SPEC.to_dict()
    data["branches"][3] |= {"features": ["py", "charge", "px", "x", "y"], "model_features": []}
    spec = DetectorSpec.from_dict(data)
    event = Event("fasercal", tracks={"muon": np.array([[2.0, -1.0, 5.0, 30.0, 70.0]])})
    np.testing.assert_allclose(orient(event, spec, np.diag([1, -1, -1])).tracks["muon"], [[-2, -1, 5, 30, -70]])
    np.testing.assert_allclose(orient(event, spec, QUARTER_Z).tracks["muon"], [[5, -1, -2, -70, 30]])
    np.testing.assert_allclose(shift(event, spec, (-1, 4), np.random.default_rng(0)).tracks["muon"], [[2, -1, 5, 20, 110]])
    with pytest.raises(ValueError, match="'py' but not 'pz'"):
        orient(event, spec, np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]]))
    assert event.tracks["muon"].tolist() == [[2, -1, 5, 30, 70]]


def test_no_shift_where_a_branch_cannot_follow(event):
    """Gaps along x stay where they are, so hits that cross one would move further than the truth; pixels of unknown size move by an unknown share."""
    data = SPEC.to_dict()
    data["branches"][1]["blocks"] = {"axis": 0, "length": 9, "starts": [-400, 40]}
    gaps = DetectorSpec.from_dict(data)
    data = SPEC.to_dict()
    data["branches"][2]["pixel_size"] = []
    unknown = DetectorSpec.from_dict(data)
    for spec, steps in ((gaps, (2, 0)), (unknown, (2, 0)), (unknown, (0, 2))):
        with pytest.raises(ValueError, match="cannot be shifted by 2 voxels along"):
            shift(event, spec, steps, np.random.default_rng(0))
    only_shifts = Augmentation((), (), 4, 0, 0, (0, 0), 0)
    for spec, moving in ((SPEC, [True, True, False]), (gaps, [False, True, False]), (unknown, [False] * 3)):
        moves = [only_shifts(event, spec, np.random.default_rng(seed)).truth["vertex"] - event.truth["vertex"] for seed in range(20)]
        assert np.any(moves, axis=0).tolist() == moving


def test_energy_changes_and_losses_leave_truth_and_tracks_alone(full_event):
    still = Augmentation(mirror_axes=(), rotate_axes=(), max_shift=0, max_drop=0.2)
    changed = still(full_event, SPEC, np.random.default_rng(3))
    assert changed.truth.keys() == full_event.truth.keys()
    assert all(np.array_equal(changed.truth[name], full_event.truth[name]) for name in changed.truth)
    assert (changed.tracks["muon"] == full_event.tracks["muon"]).all()
    for name in ("momentum", "vertex"):
        assert (changed.particles[name] == full_event.particles[name]).all()
    row = changed.voxels["3dcal"].instances["track"]
    assert len(row) < len(full_event.voxels["3dcal"])
    assert (changed.voxels["3dcal"].coordinates == full_event.voxels["3dcal"].coordinates[row]).all()


def test_calorimeters_and_momenta_keep_their_scale_unless_asked_for(full_event):
    """A factor on the energies without one on the momenta of the truth is a floor under the resolution of any model."""
    kept = Augmentation(max_shift=0, max_drop=0)
    ratios = []
    for seed in range(40):
        changed = kept(full_event, SPEC, np.random.default_rng(seed))
        ratios.append(changed.voxels["3dcal"].energy.sum() / np.linalg.norm(changed.truth["visible_momentum"]))
        np.testing.assert_allclose(changed.images["ecal"].sum(), full_event.images["ecal"].sum(), rtol=1e-6)
    assert np.log(ratios).std() < 0.02  # 500 voxels, each smeared on its own


def test_one_scale_for_all_calorimeters_of_an_event(full_event):
    scaled = replace(Augmentation((), (), 0), energy_scale=0.3, energy_jitter=0, noise=(0, 0), max_drop=0)(full_event, SPEC, np.random.default_rng(2))
    factors = [scaled.voxels[name].energy / full_event.voxels[name].energy for name in ("3dcal", "ahcal")]
    factors.append((scaled.images["ecal"] / full_event.images["ecal"]).ravel())
    assert abs(factors[0][0] - 1) > 0.05
    for factor in factors:
        np.testing.assert_allclose(factor, factors[0][0], rtol=1e-5)


def test_hits_shifted_out_are_lost_with_their_labels(event):
    moved = shift(event, SPEC, (-9, 0), np.random.default_rng(0))
    kept = event.voxels["3dcal"].coordinates[:, 0] >= 9
    assert 0 < kept.sum() < len(kept)
    assert (moved.voxels["3dcal"].labels["category"] == event.voxels["3dcal"].labels["category"][kept]).all()
    assert len(moved.voxels["3dcal"].voxel_of_hit) == kept.sum()


def test_energy_changes_have_the_stated_widths(event):
    rng = np.random.default_rng(1)
    n = 20_000
    flat = Event("fasercal", {"3dcal": Voxels(np.zeros((n, 3)), np.full(n, 9.0))}, {"ecal": np.ones((5, 5), np.float32)})
    still = Augmentation(mirror_axes=(), rotate_axes=(), max_shift=0, energy_scale=0, energy_jitter=0, noise=(0, 0), max_drop=0)
    assert (still(flat, SPEC, rng).voxels["3dcal"].values == flat.voxels["3dcal"].values).all()

    jittered = np.log(replace(still, energy_jitter=0.12)(flat, SPEC, rng).voxels["3dcal"].energy / 9)
    assert jittered.std() == pytest.approx(0.12, rel=0.03)
    noisy = replace(still, noise=(0.06, 0.18))(flat, SPEC, rng).voxels["3dcal"].energy
    assert noisy.std() == pytest.approx(0.06 * 3 + 0.18, rel=0.03)
    scaled = [replace(still, energy_scale=0.1)(flat, SPEC, rng) for _ in range(400)]
    factors = np.array([s.voxels["3dcal"].energy[0] / 9 for s in scaled])
    assert np.log(factors).std() == pytest.approx(0.1, rel=0.15)
    assert [float(s.images["ecal"][0, 0]) for s in scaled] == pytest.approx(factors, rel=1e-5)
    losses = [1 - len(replace(still, max_drop=0.05)(flat, SPEC, rng).voxels["3dcal"]) / n for _ in range(100)]
    assert max(losses) <= 0.056
    assert np.mean(losses) == pytest.approx(0.025, abs=0.006)


def test_same_generator_state_gives_the_same_event(event):
    first, second = (Augmentation()(event, SPEC, np.random.default_rng(5)) for _ in range(2))
    assert (first.voxels["3dcal"].values == second.voxels["3dcal"].values).all()
    other = Augmentation()(event, SPEC, np.random.default_rng(6))
    assert len(other.voxels["3dcal"]) != len(first.voxels["3dcal"]) or (other.voxels["3dcal"].values != first.voxels["3dcal"].values).any()


def test_quarter_turns_only_where_the_detector_allows_them(event):
    """48 x 48 x 200 cannot be turned by 90 degrees about x or y, and neither can a detector with oblong voxels about z."""
    rng = np.random.default_rng(2)
    about_x = replace(Augmentation(), rotate_axes=(0, 1))
    for _ in range(20):
        about_x(event, SPEC, rng).validate(SPEC)
    data = SPEC.to_dict()
    data["branches"][0]["voxel_size"] = [10, 12, 10]
    oblong = DetectorSpec.from_dict(data)
    bare = Event("fasercal", {"3dcal": Voxels([[1, 2, 3]], [1.0])})
    seen = {tuple(replace(Augmentation(), max_shift=0)(bare, oblong, rng).voxels["3dcal"].coordinates[0]) for _ in range(60)}
    assert seen == {(1, 2, 3), (46, 2, 3), (1, 45, 3), (46, 45, 3)}


@pytest.mark.parametrize(
    ("branch", "change", "quarter_turns"),
    [
        ("muon", {}, False),  # models see py and not px
        ("muon", {"model_features": []}, True),
        ("muon", {"model_features": ["charge", "px", "py", "p"]}, True),
        ("muon", {"model_features": ["charge", "p"]}, True),
        ("muon", {"features": ["charge", "px", "pz"], "model_features": ["charge", "pz"]}, False),
        ("muon", {"features": ["x", "px", "py"], "model_features": []}, False),
        ("ecal", {"pixel_size": [121.2, 60.6]}, False),
    ],
)
def test_quarter_turns_only_where_models_see_both_components_or_none(event, branch, change, quarter_turns):
    """Else a turn hands models another quantity under the same name; half turns change signs only."""
    data = SPEC.to_dict()
    for b in data["branches"]:
        b |= change if b["name"] == branch else {"model_features": []} if b["kind"] == "tracks" else {}
    spec = DetectorSpec.from_dict(data)
    event = replace(event, tracks={}, truth={"lepton_momentum": np.array([1.0, 2.0, 30.0])})
    turns = Augmentation((), (2,), 0, 0, 0, (0, 0), 0)
    seen = {tuple(turns(event, spec, np.random.default_rng(seed)).truth["lepton_momentum"]) for seed in range(60)}
    assert seen == {(1, 2, 30), (-1, -2, 30)} | ({(2, -1, 30), (-2, 1, 30)} if quarter_turns else set())


def test_empty_event_and_bad_settings():
    empty = Event("fasercal", {"3dcal": Voxels(np.zeros((0, 3)), np.zeros((0, 1)))})
    assert len(Augmentation()(empty, SPEC, np.random.default_rng(0)).voxels["3dcal"]) == 0
    with pytest.raises(ValueError, match="axes"):
        Augmentation(mirror_axes=(3,))
    with pytest.raises(ValueError, match="max_drop"):
        Augmentation(max_drop=1.0)
