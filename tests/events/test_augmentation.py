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
    moved = shift(event, SPEC, (3, -2))
    assert np.abs(positions(moved, "3dcal") - positions(event, "3dcal") - [30, -20, 0]).max() < 1e-9
    assert moved.truth["vertex"] == pytest.approx(event.truth["vertex"] + [30, -20, 0])
    assert (moved.truth["lepton_momentum"] == event.truth["lepton_momentum"]).all()
    # 30 mm is nearest to one 40 mm tile, 20 mm to none (rounding half to even).
    assert np.abs(positions(moved, "ahcal") - positions(event, "ahcal") - [40, 0, 0]).max() < 1e-9


def test_hits_shifted_out_are_lost_with_their_labels(event):
    moved = shift(event, SPEC, (-9, 0))
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


def test_empty_event_and_bad_settings():
    empty = Event("fasercal", {"3dcal": Voxels(np.zeros((0, 3)), np.zeros((0, 1)))})
    assert len(Augmentation()(empty, SPEC, np.random.default_rng(0)).voxels["3dcal"]) == 0
    with pytest.raises(ValueError, match="axes"):
        Augmentation(mirror_axes=(3,))
    with pytest.raises(ValueError, match="max_drop"):
        Augmentation(max_drop=1.0)
