import time
from dataclasses import replace

import numpy as np
import pytest

from nufm_hub.detectors.spec import load_detector
from nufm_hub.simulation import spectrometer as sp

SPECTROMETER = sp.MuonSpectrometer(entrance=5235.2)
COLUMNS = {name: i for i, name in enumerate(load_detector("fasercal").track_branch.features)}


def muons(count: int, momentum: float, seed: int = 0, height: float = 200.0):
    """Charge, position (mm), momentum (GeV) of muons that leave the hadronic calorimeter within 20 mrad of the axis."""
    rng = np.random.default_rng(seed)
    position = np.column_stack([rng.uniform(-100, 100, count), rng.uniform(-height, height, count), np.full(count, 4990.0)])
    direction = np.column_stack([rng.normal(0, 0.02, (count, 2)), np.ones(count)])
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    return rng.choice([-1.0, 1.0], count), position, momentum * direction, rng


def fitted(count: int, momentum: float, seed: int = 0, spectrometer: sp.MuonSpectrometer = SPECTROMETER):
    """q/p, its error, true q/p and the p-values of tracks that hit all stations."""
    charge, position, momenta, rng = muons(count, momentum, seed)
    x, y, hit = sp.simulate_hits(charge, position, momenta, rng, spectrometer)
    use = hit.sum(axis=1) >= 8
    assert use.mean() > 0.95
    state, covariance, chi2, converged = sp.fit_tracks(x[use], y[use], hit[use], SPECTROMETER)
    assert converged.mean() > 0.99
    p_value = sp.chi2_survival(chi2, 2 * hit[use].sum(axis=1) - 5)
    return state[:, 4], np.sqrt(covariance[:, 4, 4]), charge[use] / momentum, p_value


@pytest.mark.parametrize(
    ("material", "momentum", "published"),
    [
        (sp.IRON, 0.3625, 1.451),  # minimum ionisation
        (sp.ALUMINIUM, 0.367, 1.615),
        (sp.IRON, 347.0, 2 * 2.24),  # critical energy: radiation equals ionisation
    ],
)
def test_energy_loss_agrees_with_the_published_tables(material, momentum, published):
    """MeV cm2/g; Groom, Mokhov and Striganov, At. Data Nucl. Data Tables 78 (2001) 183, and PDG 2024, atomic and nuclear properties."""
    assert sp.muon_energy_loss(momentum, material) == pytest.approx(published, rel=0.01)


def test_chi2_survival():
    # 3.841 and 18.31 are the 95 % points for 1 and 10 degrees of freedom (PDG 2024, table 40.2)
    assert sp.chi2_survival(np.array([3.841, 18.31]), np.array([1, 10])) == pytest.approx([0.05, 0.05], abs=2e-4)


def test_highland_angle_of_one_magnet():
    # By hand: 13.6 MeV / 100 GeV * sqrt(22.766) * (1 + 0.038 ln 22.766) = 0.7260 mrad
    assert sp.scattering_angle(100.0, 400 / 17.57, 400 / 17.57) == pytest.approx(0.7260e-3, rel=1e-3)


def test_bending_is_a_circle():
    """One magnet against the textbook arc: sin(angle) = 0.2998 B L / p, and the sign of v x B for a positive muon in a field along -x."""
    still = replace(SPECTROMETER, scattering=0.0)
    state = np.array([0.0, 0.0, 0.0, 0.0, 1 / 20.0])
    out = sp.propagate(state, still)
    slope = (out.y[4] - out.y[3]) / still.layer_pitch
    length = 0.4
    momentum = 20 - 0.5 * 2.09e-3 * 7.874 * 40  # half of the loss in the iron
    assert slope == pytest.approx(-np.tan(np.arcsin(0.299792458 * 1.5 * length / momentum)), rel=2e-3)
    assert out.x == pytest.approx(0, abs=1e-9)
    low = sp.propagate(np.array([0.0, 400.0, 0.0, 0.0, 1 / 20.0]), still)  # in the flux return the other way
    assert (low.y[4] - low.y[3]) / still.layer_pitch == pytest.approx(-slope, rel=1e-6)


def test_material_agrees_with_geant4():
    """50 GeV muons in 40 cm of iron: mean loss and RMS of the central 98 % of the projected angle, in the spectrometer's formulas and in Geant4."""
    pytest.importorskip("periodictable")
    from nufm_hub.simulation.geant4_data import ensure_geant4_data

    ensure_geant4_data()
    calzone = pytest.importorskip("calzone")
    behind = {"box": [100, 100, 0.1], "position": [0, 0, 40.1], "material": "G4_Galactic", "role": "catch_ingoing"}
    iron = {"box": [100, 100, 40], "position": [0, 0, 20], "material": "G4_Fe"}
    geometry = {"World": {"box": [200, 200, 200], "material": "G4_Galactic", "Iron": iron, "Behind": behind}}
    simulation = calzone.Simulation(geometry, physics=calzone.Physics("standard", default_cut=1.0), secondaries=False, random=calzone.Random(1))
    out = simulation.run(calzone.particles(3000, pid=13, energy=5e4, position=(0, 0, -1), direction=(0, 0, 1))).particles["World.Behind"]
    out = out[out["pid"] == 13]
    assert len(out) > 2950
    expected = float(sp.muon_energy_loss(50.0, sp.IRON)) * 7.874 * 40
    assert 5e4 - out["energy"].mean() == pytest.approx(expected, rel=0.05)
    angle = np.sort(np.abs(out["direction"][:, :2].ravel() / out["direction"][:, 2:].repeat(2)))
    width = angle[int(0.68269 * len(angle))]
    assert width == pytest.approx(float(sp.scattering_angle(50.0, 400 / 17.57, 400 / 17.57)), rel=0.06)


def test_straight_muon_has_infinite_momentum():
    """No field and no scattering in the simulation, the usual ones in the fit: curvature 0 within the error of the tubes alone."""
    straight = replace(SPECTROMETER, field=0.0, scattering=0.0)
    curvature, _, _, _ = fitted(200, 1e6, spectrometer=straight)
    assert np.abs(curvature.mean()) < 1e-4
    assert np.abs(curvature).max() < 1 / 400
    charge, position, momenta, rng = muons(1, 1e6)
    simulated = sp.simulate_hits(charge, position, momenta, rng, replace(straight, resolution=0.005))
    state, _, _, converged = sp.fit_tracks(*simulated, replace(SPECTROMETER, resolution=0.005))
    assert converged.all()
    assert np.abs(state[0, 4]) < 1e-4  # above 10 TeV
    assert state[0, 2:4] == pytest.approx(momenta[0, :2] / momenta[0, 2], abs=0.1)


@pytest.mark.parametrize("momentum", [50.0, 100.0, 200.0])
def test_resolution_where_scattering_dominates(momentum):
    """Three magnets of 23 radiation lengths: relative error of 1/p near 0.61 x 0.726 mrad / 1.80 mrad = 25 % (two independent sagittas).

    The scattering error scales with the fitted 1/p itself, so it is p whose pull is Gaussian.
    """
    curvature, sigma, true, p_value = fitted(400, momentum)
    assert 0.20 < np.std(curvature / true) < 0.32
    pull = (np.abs(1 / curvature) - np.abs(1 / true)) / (sigma / curvature**2)
    assert abs(pull.mean()) < 0.2
    assert 0.8 < pull.std() < 1.3
    pull = (np.abs(curvature) - np.abs(true)) / sigma
    assert abs(np.median(pull)) < 0.2
    assert 0.8 < (np.quantile(pull, 0.84) - np.quantile(pull, 0.16)) / 2 < 1.3
    assert (np.sign(curvature) == np.sign(true)).mean() > 0.95
    counts = np.histogram(p_value, bins=5, range=(0, 1))[0] / len(p_value)
    assert (np.abs(counts - 0.2) < 0.08).all()  # four standard deviations of 400 tracks


def test_pull_of_curvature_where_the_tubes_dominate():
    curvature, sigma, true, _ = fitted(200, 2000.0)
    pull = (curvature - true) / sigma
    assert abs(pull.mean()) < 0.2
    assert 0.8 < pull.std() < 1.3


def test_columns_and_order():
    charge, position, momenta, rng = muons(14, 100.0, seed=3)
    momenta *= np.linspace(0.5, 2, 14)[:, None]
    tracks = sp.measure_muons(charge, position, momenta, rng)
    assert tracks.shape == (10, len(COLUMNS))
    assert tracks.dtype == np.float32
    column = {name: tracks[:, i].astype(float) for name, i in COLUMNS.items()}
    assert (np.diff(column["p"]) <= 0).all()
    assert set(column["charge"]) <= {-1.0, 1.0}
    assert np.sqrt(column["px"] ** 2 + column["py"] ** 2 + column["pz"] ** 2) == pytest.approx(column["p"], rel=1e-5)
    assert column["ndof"] == pytest.approx(2 * column["n_points"] - 5)
    assert column["sigma_p"] == pytest.approx(column["sigma_inverse_p"] * column["p"] ** 2, rel=1e-5)
    assert ((column["p_value"] >= 0) & (column["p_value"] <= 1)).all()
    # the direction in the bending plane is measured to a few mrad; here all start within 0.1 rad
    assert (np.abs(column["py"] / column["pz"]) < 0.1).all()


def test_outside_the_acceptance_there_is_no_track():
    rng = np.random.default_rng(0)
    outside = np.array([[0, 700.0, 4990], [600, 0, 4990], [0, 0, 4990], [0, 0, 4990], [0, 0, 4990]])
    momenta = np.array([[0, 0, 100.0], [0, 0, 100], [0, 60, 80], [0, 0, -100], [0, 0, 0.4]])  # beside, beside, steep, backwards, stops
    assert sp.measure_muons(np.ones(5), outside, momenta, rng).shape == (0, 11)
    assert len(sp.measure_muons(np.ones(1), outside[2:3], momenta[:1], rng)) == 1


@pytest.mark.parametrize("momentum", [10.0, 100.0])
def test_a_muon_and_its_mirror_image_of_the_same_charge_are_measured_alike(momentum):
    """What augmentation by mirrors takes for granted, although the mirror image of y bends the other way."""
    _, position, momenta, _ = muons(4000, momentum, height=300.0)
    found = []
    for mirror in ([1, 1, 1], [-1, 1, 1], [1, -1, 1]):
        _, _, hit = sp.simulate_hits(np.ones(len(position)), position * mirror, momenta * mirror, np.random.default_rng(1), SPECTROMETER)
        stations = hit.reshape(-1, 4, 3).any(axis=2).sum(axis=1)
        found.append([((hit.sum(axis=1) >= 5) & (stations >= 3)).mean(), hit.sum(axis=1).mean() / 12])
    assert found[0][0] > 0.97
    np.testing.assert_allclose(found[1:], [found[0]] * 2, atol=0.005)


def test_no_muons_and_bad_input():
    rng = np.random.default_rng(0)
    empty = sp.measure_muons(np.zeros(0), np.zeros((0, 3)), np.zeros((0, 3)), rng)
    assert empty.shape == (0, 11)
    assert empty.dtype == np.float32
    with pytest.raises(ValueError, match="1 charges, 2 positions"):
        sp.measure_muons(np.ones(1), np.zeros((2, 3)), np.zeros((2, 3)), rng)
    with pytest.raises(ValueError, match="charges -1 or \\+1"):
        sp.measure_muons(np.zeros(1), np.zeros((1, 3)), np.ones((1, 3)), rng)
    with pytest.raises(ValueError, match="behind the spectrometer's entrance"):
        sp.measure_muons(np.ones(1), np.array([[0, 0, 6000.0]]), np.ones((1, 3)), rng)


def test_same_seed_same_tracks_and_fast():
    charge, position, momenta, _ = muons(2, 100.0)
    first, second = (sp.measure_muons(charge, position, momenta, np.random.default_rng(5)) for _ in range(2))
    assert np.array_equal(first, second)
    start = time.process_time()
    for _ in range(10):
        sp.measure_muons(charge, position, momenta, np.random.default_rng(5))
    assert (time.process_time() - start) / 10 < 0.05  # 5 ms on an idle core
