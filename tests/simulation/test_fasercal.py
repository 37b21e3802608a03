"""The chain from seed to event, at low energies to be quick."""

from itertools import pairwise

import numpy as np
import pytest

from nufm_hub.detectors import load_detector
from nufm_hub.simulation import sampling
from nufm_hub.simulation.fasercal import FaserCalSettings
from nufm_hub.simulation.geometry import FaserCalGeometry
from nufm_hub.simulation.response import quench
from nufm_hub.simulation.sampling import draw_interaction, draw_vertex
from nufm_hub.simulation.seeds import event_seeds
from nufm_hub.simulation.voxelise import split_steps

SPEC = load_detector("fasercal")
RUN = 11


@pytest.fixture(scope="module")
def simulation():
    return FaserCalSettings(energy=(30.0, 90.0)).build()


@pytest.fixture(scope="module")
def events(simulation):
    return [simulation.event(RUN, i) for i in range(6)]


def same(a, b):
    cubes, others = a.voxels["3dcal"], b.voxels["3dcal"]
    return (
        np.array_equal(cubes.coordinates, others.coordinates)
        and np.array_equal(cubes.values, others.values)
        and all(np.array_equal(cubes.labels[k], others.labels[k]) for k in cubes.labels)
        and np.array_equal(a.voxels["ahcal"].values, b.voxels["ahcal"].values)
        and np.array_equal(a.images["ecal"], b.images["ecal"])
        and np.array_equal(a.tracks["muon"], b.tracks["muon"])
    )


def test_an_event_does_not_depend_on_those_before(simulation, events):
    for i in (5, 1):
        assert same(simulation.event(RUN, i), events[i])
    assert not same(simulation.event(RUN + 1, 1), events[1])


def test_events_are_valid_and_plausible(events):
    for event in events:
        event.validate(SPEC)
        cubes = event.voxels["3dcal"]
        assert (cubes.labels["ghost"] == 0).sum() >= 20
        assert cubes.energy.min() >= 0.5
        assert event.provenance["seed"] == RUN
    ghosts = np.concatenate([e.voxels["3dcal"].labels["ghost"][:, 0] for e in events])
    assert 0.09 < ghosts.mean() < 0.45
    # Charged currents leave the energy of the neutrino, mostly in the 3DCal and the ECAL: electrons visibly so.
    assert all(e.voxels["3dcal"].energy.sum() > 1000 for e in events if e.truth["flavour"] == 0)


def test_flavours_are_balanced_by_index(events):
    assert [e.truth["flavour"] for e in events] == [0, 1, 2, 3, 4, 5]
    for e in events:
        t = e.truth
        assert t["is_cc"] == (t["flavour"] != 5)
        assert abs(t["neutrino_pdg"]) == {0: 12, 1: 14, 5: abs(t["neutrino_pdg"])}.get(t["flavour"], 16)
        assert t["lepton_momentum"] == pytest.approx(t["visible_momentum"] - t["jet_momentum"])
        assert 30 <= t["neutrino_momentum"][2] <= 90


def test_labels_follow_the_lineage(events):
    for event in events:
        cubes = event.voxels["3dcal"]
        ghost = cubes.labels["ghost"][:, 0] == 1
        for name in ("hierarchy", "category"):
            assert cubes.labels[name][ghost].sum() == 0
            assert cubes.labels[name][~ghost].sum(1) == pytest.approx(np.ones((~ghost).sum()), abs=1e-6)
    # The muon of a muon-neutrino interaction crosses the 3DCal as a primary: most muon voxels are primary.
    numu = next(e for e in events if e.truth["flavour"] == 1).voxels["3dcal"].labels
    muon = numu["category"][:, 1] > 0.9
    assert muon.sum() > 50
    assert numu["hierarchy"][muon, 1].mean() > 0.9
    # Electron-neutrino interactions are mostly electromagnetic.
    nue = next(e for e in events if e.truth["flavour"] == 0).voxels["3dcal"]
    assert np.average(nue.labels["category"][:, 0], weights=nue.energy) > 0.5


def test_only_muons_make_tracks(events):
    for event in events:
        tracks = event.tracks["muon"]
        assert tracks.shape[1] == 11
        if event.truth["flavour"] in (0, 2, 4, 5):
            assert len(tracks) == 0  # true of these seeds; a pion decay in flight could make one
    with_track = [e for e in events if e.truth["flavour"] == 1 and len(e.tracks["muon"])]
    for e in with_track:
        track = e.tracks["muon"][0]
        assert track[0] == -np.sign(e.truth["neutrino_pdg"])
        assert track[5] < 1.5 * np.linalg.norm(e.truth["lepton_momentum"])
    assert with_track


def test_energy_is_kept_from_deposits_to_voxels(simulation):
    seeds = event_seeds(RUN, 0)
    draw = draw_interaction(simulation.transport.geometry, (60.0, 61.0), "balanced", 0, seeds.rng, seeds.generator)
    made = simulation._transport(draw.interaction, draw.vertex, seeds.transport)
    d = made.deposits
    voxel, step, share = split_steps(d.start, d.end, d.module, simulation.cubes)
    assert (d.energy[step] * share).sum() == pytest.approx(d.energy.sum())
    assert len(np.unique(voxel)) > 1000
    # Absorbers and what leaves take the rest.
    assert 0.1 < (d.energy.sum() + made.ecal.sum() + made.ahcal.sum()) / 60e3 < 0.9
    # Birks' law takes 2 % from electrons and more from protons. Faint cubes, with a tenth of the energy, fall below threshold as do many ghosts.
    light = quench(d.energy, np.linalg.norm(d.end - d.start, axis=1)).sum()
    assert 0.9 < light / d.energy.sum() < 0.98
    found = simulation._cube_voxels(draw.interaction, draw.vertex, made, seeds.rng).energy.sum()
    assert 0.7 < found / d.energy.sum() < 0.95
    # Every deposit is in the block that Geant4 says.
    starts = np.asarray(simulation.transport.geometry.module_starts)[d.module]
    assert (d.start[:, 2] - starts).min() > -1e-3
    assert (d.end[:, 2] - starts).max() < 200 + 1e-3


def test_muon_deposits_its_energy_loss(simulation):
    """A 20 GeV muon through ten blocks of 20 cm: the most probable loss of PDG, about 1.96 MeV/cm (mean 2.3 with radiation and delta rays)."""
    number = 20
    where = np.tile([[5.0, 5.0, 0.0]], (number, 1))
    made = simulation.transport.run(np.full(number, 13), np.full(number, 20.0), where, np.tile([[0, 0, 1.0]], (number, 1)), (1, 2))
    d = made.deposits
    per_cm = np.bincount(d.row, d.energy, minlength=number) / 200
    assert 1.9 < np.median(per_cm) < 2.5
    assert (d.generation[np.abs(d.pdg) == 13] == 1).all()
    assert set(np.unique(np.abs(d.pdg[d.generation == 2]))) >= {11}
    assert len(made.muon_charge) == number
    assert (made.muon_charge == -1).all()
    assert made.muon_position[:, 2] == pytest.approx(np.full(number, simulation.transport.geometry.end_z), abs=0.5)
    assert 15 < np.median(made.muon_momentum[:, 2]) < 19  # iron and lead take 2 to 3 GeV
    assert np.unravel_index(made.ecal.argmax(), made.ecal.shape) == (2, 2)


def test_charged_parents_ionise(simulation):
    seeds = event_seeds(1, 2)
    draw = draw_interaction(simulation.transport.geometry, (800.0, 900.0), "balanced", 4, seeds.rng, seeds.generator)
    draw.interaction.decayed = [d for d in draw.interaction.decayed if abs(d.pdg) == 15]
    tau = draw.interaction.tau
    tau.end = tau.start + np.array([0, 0, 40.0])
    vertex = np.array([0.0, 0.0, 20.0])
    voxel, energy, classes = simulation._flight_deposits(draw.interaction, vertex)
    assert energy.sum() == pytest.approx(0.2019 * 40, rel=0.01)  # MeV/mm times mm
    assert (classes == 2).all()  # the tau decays to hadrons and counts as them
    assert np.unique(np.unravel_index(voxel, SPEC.branch("3dcal").shape)[2]).tolist() == [1, 2, 3, 4, 5]
    tau.end = tau.start + np.array([0, 0, 400.0])
    assert simulation._flight_deposits(draw.interaction, vertex)[1].sum() < 0.2019 * 350  # nothing is read out between the blocks


def test_vertices():
    geometry = FaserCalGeometry.from_spec(SPEC)
    rng = np.random.default_rng(0)
    drawn = [draw_vertex(geometry, rng) for _ in range(4000)]
    vertex = np.array([v for v, _ in drawn])
    assert np.hypot(vertex[:, 0], vertex[:, 1]).max() <= 50
    assert np.mean(np.hypot(vertex[:, 0], vertex[:, 1]) < 25) == pytest.approx(0.25, abs=0.03)
    tungsten = np.array([material == (74.0, 109.84) for _, material in drawn])
    assert tungsten.mean() == pytest.approx(1.93 / (1.93 + 20.64), abs=0.02)
    _, inside = SPEC.branch("3dcal").to_voxel(vertex)
    assert np.array_equal(inside, ~tungsten)
    assert vertex[:, 2].max() < 1390


def test_neutral_to_charged_current_ratios():
    """CHARM measured 0.3093 +- 0.0031 for neutrinos and 0.390 +- 0.014 for antineutrinos on an isoscalar target (Z. Phys. C 36 (1987) 611)."""
    for sign, measured in ((1, 0.3093), (-1, 0.390)):
        nc, cc = (sum(sampling.cross_section(is_cc, sign, nucleon, 100.0) for nucleon in (2212, 2112)) for is_cc in (False, True))
        assert nc / cc == pytest.approx(measured, abs=0.025)


def test_natural_mixture(monkeypatch):
    """Equal fluxes: each flavour a third; antineutrinos and neutral currents by cross section."""
    drawn = []

    class Recorder:
        def __init__(self, neutrino_pdg, target_pdg, is_cc, energy, seed):
            drawn.append((neutrino_pdg, target_pdg, is_cc, energy))

        def next(self):
            return None

    monkeypatch.setattr(sampling, "DISGenerator", Recorder)
    geometry = FaserCalGeometry.from_spec(SPEC)
    for i in range(3000):
        seeds = event_seeds(0, i)
        draw_interaction(geometry, (50.0, 1500.0), "natural", i, seeds.rng, seeds.generator)
    neutrino, target, is_cc, energy = (np.array(column) for column in zip(*drawn))
    assert [np.mean(np.abs(neutrino) == f) for f in (12, 14, 16)] == pytest.approx([1 / 3] * 3, abs=0.035)
    assert np.mean(~is_cc) == pytest.approx(0.25, abs=0.03)
    assert np.mean(neutrino < 0) == pytest.approx(0.32, abs=0.035)
    assert np.mean(target == 2112) == pytest.approx(0.53, abs=0.04)
    assert np.log(energy).mean() == pytest.approx(np.log(50 * 1500) / 2, abs=0.07)
    assert 50 <= energy.min() < 55
    assert 1400 < energy.max() <= 1500


def test_geometry_follows_the_detector():
    geometry = FaserCalGeometry.from_spec(SPEC)
    volumes = geometry.to_calzone()["World"]
    boxes = sorted((v["position"][2] - v["box"][2] / 2, v["position"][2] + v["box"][2] / 2) for v in volumes.values() if isinstance(v, dict))
    assert all(high <= low + 1e-9 for (_, high), (low, _) in pairwise(boxes))  # nothing overlaps
    assert len([n for n in volumes if n.startswith("Ecal")]) == 66
    assert geometry.ecal_start - (geometry.module_starts[-1] + 235) == pytest.approx(250)
    assert geometry.ahcal_start - geometry.ecal_end == pytest.approx(250)
    changed = SPEC.to_dict()
    changed["branches"][1]["origin"][2] = 3000.0
    with pytest.raises(ValueError, match="ahcal start is 3000"):
        FaserCalGeometry.from_spec(load_detector(changed))


@pytest.mark.parametrize(("bad", "message"), [({"energy": (5.0, 100.0)}, "5.0"), ({"energy": (200.0, 100.0)}, "200.0"), ({"flavours": "all"}, "all")])
def test_settings_out_of_range(bad, message):
    with pytest.raises(ValueError, match=message):
        FaserCalSettings(**bad)
