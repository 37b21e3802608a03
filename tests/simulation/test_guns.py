"""SuperFGD-like particle guns and PILArNet-like liquid-argon images."""

import importlib.util
import json

import numpy as np
import pytest

from nufm_hub.detectors import load_detector
from nufm_hub.events import read_events
from nufm_hub.events.samples import sample_path
from nufm_hub.simulation.pilarnet import PILArNetSettings
from nufm_hub.simulation.segments import cut_deposits
from nufm_hub.simulation.superfgd import BIRKS, LIGHT_YIELD, SuperFGDSettings, share_light

needs_geant4 = pytest.mark.skipif(importlib.util.find_spec("calzone") is None, reason="needs the simulation extra")
MUON = 105.6583755


def assert_same(a, b):
    assert a.provenance == b.provenance
    assert a.truth.keys() == b.truth.keys()
    assert all(np.array_equal(a.truth[k], b.truth[k]) for k in a.truth)
    assert a.particles.keys() == b.particles.keys()
    assert all(np.array_equal(a.particles[k], b.particles[k]) for k in a.particles)
    for name in a.voxels:
        v, w = a.voxels[name], b.voxels[name]
        assert np.array_equal(v.coordinates, w.coordinates)
        assert np.array_equal(v.values, w.values)
        for labels in ("labels", "instances"):
            assert all(np.array_equal(x, getattr(w, labels)[k]) for k, x in getattr(v, labels).items())


@needs_geant4
def test_runs_are_the_same_with_any_number_of_workers(tmp_path):
    """The files of one process and of two, byte by byte, for batches that do not fit the shards."""
    from nufm_hub.simulation.runner import run_simulation

    settings = SuperFGDSettings()
    for workers in (1, 2):
        run_simulation(settings, 210, 4, tmp_path / str(workers), workers=workers, shard_size=130)
    for name in ("superfgd-00000.parquet", "superfgd-00001.parquet"):
        same = (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()
        assert same, name


@needs_geant4
@pytest.mark.parametrize(("settings", "count"), [(SuperFGDSettings, 40), (PILArNetSettings, 10)])
def test_packaged_events_are_made_again(settings, count):
    """What a seed gives never changes: what is drawn at random, and in which order. Another processor may round a few events differently."""
    from nufm_hub.simulation.runner import simulate_events

    path = sample_path(settings.name)
    record = json.loads(path.with_suffix(".json").read_text())
    identical = 0
    for old, new in zip(read_events(path), simulate_events(settings(**record["settings"]), record["seed"], range(count))):
        assert old.truth.keys() == new.truth.keys()
        assert all(np.allclose(old.truth[k], new.truth[k]) for k in old.truth)
        ((name, before),) = old.voxels.items()
        identical += np.array_equal(before.coordinates, new.voxels[name].coordinates) and np.array_equal(before.values, new.voxels[name].values)
    assert identical > count / 2


# Pieces of deposits ---------------------------------------------------------------------------------------------------------------------------------


def deposits(lines, points=()):
    """Deposits as calzone gives them: (start, end in cm, MeV, seconds) and (position, MeV, seconds)."""
    common = [("event", "u8"), ("tid", "i4"), ("value", "f8")]
    line = np.zeros(len(lines), dtype=[*common, ("start", "f8", 3), ("end", "f8", 3), ("time", "f8", 2)])
    point = np.zeros(len(points), dtype=[*common, ("position", "f8", 3), ("time", "f8")])
    for i, (start, end, value, time) in enumerate(lines):
        line[i] = (i, 1, value, start, end, (time, time))
    for i, (position, value, time) in enumerate(points):
        point[i] = (i, 2, value, position, time)
    return type("Deposits", (), {"line": line, "point": point})


CUBES = load_detector("superfgd").voxel_branches[0]


def test_pieces_keep_the_energy_and_the_track():
    out = cut_deposits(deposits([((0.5, 0.5, 0.5), (0.5, 2.5, 0.5), 4.0, 0.0)], [((3, 3, 3), 0.5, 0.0)]), CUBES)
    assert out.energy == pytest.approx([1.0, 2.0, 1.0, 0.5])  # 5, 10 and 5 mm in three cubes along y, and the point
    assert out.position == pytest.approx(np.array([[5, 7.5, 5], [5, 15, 5], [5, 22.5, 5], [30, 30, 30]]))
    assert out.track[out.deposit].tolist() == [1, 1, 1, 2]


def test_birks_and_time_window():
    late = deposits([((0.5, 0.5, 0.1), (0.5, 0.5, 0.9), 16.0, 0.0), ((0.5, 0.5, 0.1), (0.5, 0.5, 0.9), 16.0, 1e-3)])
    out = cut_deposits(late, CUBES, birks_mm_per_mev=0.126, until_s=1e-5)
    assert out.energy == pytest.approx([16 / (1 + 0.126 * 2.0)])  # 2 MeV/mm


# SuperFGD -------------------------------------------------------------------------------------------------------------------------------------------


def test_crosstalk_conserves_light_and_has_the_wanted_ratio():
    shape = (200, 200, 200)
    centre = np.ravel_multi_index((100, 100, 100), shape)
    cube, light, own = share_light(np.array([centre]), np.array([140.0]), 0.03, shape)
    assert light.sum() == pytest.approx(140)
    assert own.sum() == 1
    assert light[~own] / light[own] == pytest.approx([0.03] * 6)
    assert np.abs(np.stack(np.unravel_index(cube, shape), axis=1) - 100).sum(axis=1).max() == 1
    corner = share_light(np.array([0]), np.array([118.0]), 0.03, shape)
    assert len(corner[0]) == 4
    assert corner[1].sum() == pytest.approx(118 * (1 + 3 * 0.03) / 1.18)  # three neighbours are outside
    assert share_light(np.array([5]), np.array([1.0]), 0.0, shape)[0].tolist() == [5]


@needs_geant4
def test_superfgd_events_are_valid_balanced_and_independent_of_batches():
    simulation = SuperFGDSettings().build()
    events = list(simulation.events(7, range(40)))
    spec = load_detector("superfgd")
    for i, event in enumerate(events):
        event.validate(spec)
        assert event.provenance["index"] == i
        assert event.truth["particle"] == i % 4
        assert 0.2 <= np.linalg.norm(event.truth["particle_momentum"]) <= 1.5
    assert_same(events[13], simulation.event(7, 13))
    assert_same(events[30], next(SuperFGDSettings().build().events(7, [30, 2])))
    assert not np.array_equal(events[0].truth["particle_position"], simulation.event(8, 0).truth["particle_position"])
    # The track starts where it was shot: the nearest voxel is the vertex cube or next to it
    cubes = spec.voxel_branches[0]
    for event in events:
        distance = np.abs(cubes.to_mm(event.voxels["cubes"].coordinates) - event.truth["particle_position"]).max(axis=1)
        assert distance.min() < 20


@needs_geant4
def test_muon_light_in_superfgd_is_minimum_ionising():
    """Muons of 0.4 to 0.5 GeV, through: 1.936 MeV cm2/g in polystyrene of 1.06 g/cm3 (PDG), quenched by Birks at about 2 MeV/cm, all light kept."""
    simulation = SuperFGDSettings(momentum=(0.4, 0.5), crosstalk=0.0, threshold=1).build()
    density = []
    for event in simulation.events(3, range(2, 400, 4)):
        start, p = event.truth["particle_position"], event.truth["particle_momentum"]
        reach = np.where(p > 0, 1000 - start, 1000 + start) / np.abs(p) * np.linalg.norm(p)
        if 200 < reach.min() < 600:  # leaves before it slows down
            density.append(event.voxels["cubes"].energy.sum() / reach.min())
    assert len(density) > 15
    quenched = 0.2052 / (1 + BIRKS * 0.2052)
    assert np.median(density) == pytest.approx(quenched, rel=0.08)  # a median, below the mean by the Landau tail, above by the path


@needs_geant4
def test_crosstalk_label_and_setting():
    none = SuperFGDSettings(crosstalk=0.0).build()
    some = SuperFGDSettings(crosstalk=0.3).build()
    a, b = none.event(1, 2), some.event(1, 2)
    assert a.voxels["cubes"].labels["crosstalk"].sum() == 0
    assert len(b.voxels["cubes"]) > 2 * len(a.voxels["cubes"])
    assert b.voxels["cubes"].labels["crosstalk"].mean() > 0.4
    assert b.voxels["cubes"].energy.min() >= 4 / LIGHT_YIELD * 0.999
    assert b.voxels["cubes"].energy.sum() == pytest.approx(a.voxels["cubes"].energy.sum(), rel=0.1)


@needs_geant4
def test_particles_that_leave_at_once_give_empty_events(monkeypatch):
    from nufm_hub.simulation import pilarnet, superfgd
    from nufm_hub.simulation.gun import Primary

    out = Primary(13, 1000.0, np.array([0, 0, 999.99999]), np.array([0, 0, 1.0]))
    simulation = SuperFGDSettings().build()
    monkeypatch.setattr(superfgd.SuperFGDSimulation, "_draw", lambda self, index, rng: out)
    event = simulation.event(1, 0)
    event.validate(simulation.spec)
    assert len(event.voxels["cubes"]) == 0
    assert simulation.counts["empty"] == 1
    simulation = pilarnet.PILArNetSettings(threshold=9.9).build()
    out = Primary(13, 1000.0, np.array([0, 0, 1151.99999]), np.array([0, 0, 1.0]))
    monkeypatch.setattr(pilarnet.PILArNetSimulation, "_draw", lambda self, index, rng: pilarnet._Image([out], [0]))
    event = simulation.event(1, 0)
    event.validate(simulation.spec)
    assert len(event.voxels["lar"]) == len(event.particles["id"]) == 0


@pytest.mark.parametrize("bad", [{"momentum": (1.0, 0.5)}, {"momentum": (0.0, 1.0)}, {"crosstalk": 0.31}, {"crosstalk": -0.1}, {"threshold": 0}])
def test_superfgd_settings_refuse_nonsense(bad):
    with pytest.raises(ValueError, match="|".join(bad)[:5]):
        SuperFGDSettings(**bad)


# Liquid argon ---------------------------------------------------------------------------------------------------------------------------------------

SHOWER, TRACK, MICHEL, DELTA, LOW_ENERGY = range(5)


@pytest.fixture(scope="module")
def argon():
    pytest.importorskip("calzone")
    from nufm_hub.simulation import pilarnet

    return pilarnet


def test_clusters_touch_by_faces_edges_and_corners(argon):
    from scipy.ndimage import label

    rng = np.random.default_rng(0)
    grid = rng.random((20, 21, 22)) < 0.06
    expected, count = label(grid, np.ones((3, 3, 3)))
    found = argon.clusters(np.argwhere(grid))
    assert found.max() + 1 == count
    assert len(set(zip(found.tolist(), expected[grid].tolist()))) == count
    assert argon.clusters(np.zeros((0, 3), dtype=int)).shape == (0,)


def test_images_are_valid_and_independent_of_batches(argon):
    simulation = argon.PILArNetSettings().build()
    events = list(simulation.events(5, range(10)))
    spec = load_detector("pilarnet")
    for event in events:
        event.validate(spec)
        v, p = event.voxels["lar"], event.particles
        motif, species = v.labels["motif"], v.labels["particle"]
        assert motif.sum(axis=1) == pytest.approx(1, abs=1e-5)
        assert v.energy.min() >= 0.129
        low = motif[:, LOW_ENERGY] == 1
        assert (v.instances["particle"][low] == -1).all()
        assert (v.instances["interaction"][low] == -1).all()
        assert (v.instances["particle"][~low] >= 0).all()
        assert (species[low] == 0).all()
        assert np.array_equal(np.unique(v.instances["particle"][~low]), p["id"])
        assert np.array_equal(p["interaction"][v.instances["particle"][~low]], v.instances["interaction"][~low])
        assert (p["parent"] < p["id"]).all()
        same = p["parent"] >= 0
        assert np.array_equal(p["interaction"][same], p["interaction"][p["parent"][same]])
        # pure voxels of a muon are muon voxels
        pure = (species.max(axis=1) == 1) & ~low
        assert np.array_equal(species[pure].argmax(axis=1), p["label"][v.instances["particle"][pure]])
    assert_same(events[9], simulation.event(5, 9))
    assert_same(events[3], argon.PILArNetSettings().build().event(5, 3))
    assert not any("particle" in e.truth for e in events)


def single(argon, name: str, energy: tuple[float, float], count: int, seed: int = 1):
    """Images of one particle of a class."""
    settings = argon.PILArNetSettings(vertices=(1, 1), particles=(1, 1), rain=(0, 0), energy=energy)
    index = list(argon.PDG_CODES).index(name)
    return list(settings.build().events(seed, range(index, 5 * count, 5)))


def test_single_particle_images_carry_the_label(argon):
    events = single(argon, "proton", (50, 400), 4)
    for event in events:
        assert event.truth["particle"] == 4
        assert event.truth["particle_pdg"] == 2212
        momentum = np.linalg.norm(event.truth["particle_momentum"])
        assert 50 <= 1e3 * (np.hypot(momentum, 0.93827208816) - 0.93827208816) <= 400
    # a shower is a shower, with little else
    v = [e.voxels["lar"] for e in single(argon, "electron", (200, 800), 6)]
    energy = np.concatenate([x.energy for x in v])
    motif = np.concatenate([x.labels["motif"] for x in v])
    assert energy @ motif[:, SHOWER] > 0.8 * energy.sum()
    assert energy @ motif[:, [SHOWER, LOW_ENERGY]].sum(axis=1) > 0.99 * energy.sum()


def stopped_muons(count: int, pdg: int):
    """Lineage of muons of 100 MeV that stop in the middle of the argon."""
    from nufm_hub.simulation import gun, lineage

    simulation = gun.box_simulation("G4_lAr", [2304] * 3, cut_mm=0.7, tracking=True)
    rng = np.random.default_rng(2)
    muons = [gun.Primary(pdg, 100.0, np.zeros(3), gun.isotropic_direction(rng)) for _ in range(count)]
    out = gun.shoot(simulation, 1, muons, [(i, 0) for i in range(count)])
    return lineage.trace(out.tracks, out.vertices)


def test_stopped_positive_muons_make_michel_electrons(argon):
    """Each decays to a positron of at most 52.3 MeV kinetic energy, 36.4 MeV in the mean (Michel spectrum: <x> = 7/10 of 52.8 MeV)."""
    traced = stopped_muons(100, -13)
    michel = (traced.motif == MICHEL) & (traced.particle == np.arange(len(traced.key)))
    assert michel.sum() == 100
    assert (traced.pdg[michel] == -11).all()
    assert (traced.pdg[traced.parent[michel]] == -13).all()
    kinetic = traced.kinetic_energy[michel]
    assert kinetic.max() < 52.4
    assert kinetic.mean() == pytest.approx(36.4, abs=3 * 10.6 / 10)  # three errors of the mean
    # what the positron makes is part of it, and the muon stays a track
    daughters = np.isin(traced.parent, np.flatnonzero(michel)) & (np.abs(traced.pdg) != 13)
    assert (traced.motif[daughters] == MICHEL).all()
    assert (traced.motif[np.abs(traced.pdg) == 13] == TRACK).all()


def test_a_quarter_of_negative_muons_decay_in_argon(argon):
    """Lifetime 537 ns in argon against 2197 ns free: 24 % decay, the rest is captured (Suzuki, Measday and Roalsvig, Phys. Rev. C35 (1987) 2212)."""
    traced = stopped_muons(300, 13)
    michel = (traced.motif == MICHEL) & (traced.particle == np.arange(len(traced.key)))
    assert michel.sum() / 300 == pytest.approx(0.244, abs=0.09)
    auger = (np.abs(traced.pdg) == 11) & (traced.pdg[traced.parent] == 13) & (traced.kinetic_energy < 1) & ~traced.is_primary
    assert (traced.motif[auger] == TRACK).all()


def test_michel_voxels_of_images(argon):
    events = [e for e in single(argon, "muon", (50, 100), 60) if e.truth["particle_pdg"] == -13]
    inside = [e for e in events if np.abs(e.truth["particle_position"]).max() < 1152 - 400]  # 100 MeV muons go 0.25 m
    assert len(inside) > 2
    for event in inside:
        v, p = event.voxels["lar"], event.particles
        michel = np.flatnonzero((p["pdg"] == -11) & (p["parent"] == 0))
        assert len(michel) == 1
        voxels = v.instances["particle"] == michel[0]
        assert v.labels["motif"][voxels, MICHEL].mean() > 0.8
        assert v.energy[voxels].sum() < 55


def test_delta_rays_of_muons_follow_their_spectrum(argon):
    """dN/dx = K/2 Z/A rho / beta^2 (1/T1 - 1/Tmax - ...), PDG 2024 sec. 34.2.6, above 3 MeV: 0.032 a cm for 10 GeV muons in liquid argon."""
    from nufm_hub.simulation import gun, lineage

    simulation = gun.box_simulation("G4_lAr", [2304] * 3, cut_mm=0.7, tracking=True)
    muons = [gun.Primary(13, 10_000.0, np.array([0, 0, -1151.0]), np.array([0, 0, 1.0]))] * 60
    out = gun.shoot(simulation, 1, muons, [(i, 0) for i in range(60)])
    traced = lineage.trace(out.tracks, out.vertices)
    deltas = (traced.motif == lineage.DELTA) & (traced.particle == np.arange(len(traced.key)))
    assert traced.kinetic_energy[deltas].min() > 3
    low, high = 3.0, 4800.0  # Tmax of a 10 GeV muon
    constant = 0.307075 / 2 * 18 / 39.948 * 1.396
    expected = 60 * 230.3 * constant * (1 / low - 1 / high - np.log(high / low) / high)
    assert deltas.sum() == pytest.approx(expected, abs=4 * np.sqrt(expected))


def test_muon_deposits_in_argon(argon):
    """Through-going rain muons lose 2.1 MeV/cm at the minimum (1.508 MeV cm2/g x 1.396 g/cm3, Groom et al. 2001) or somewhat more."""
    settings = argon.PILArNetSettings(vertices=(0, 0), rain=(1, 1), threshold=0.0)
    branch = settings.detector.voxel_branches[0]
    densities, zenith = [], []
    for event in settings.build().events(2, range(30)):
        v, p = event.voxels["lar"], event.particles
        muon = np.flatnonzero(np.abs(p["pdg"]) == 13)[0]
        zenith.append(-p["momentum"][muon][1] / np.linalg.norm(p["momentum"][muon]))
        points = branch.to_mm(v.coordinates)
        entry = p["vertex"][muon]
        assert np.abs(entry).max() == pytest.approx(1152, abs=0.1)
        length = np.linalg.norm(points[v.instances["particle"] == muon] - entry, axis=1).max()
        if np.linalg.norm(p["momentum"][muon]) > 1 and length > 300:
            densities.append(v.energy[v.labels["motif"][:, TRACK] > 0.5].sum() / length * 10)
    assert min(zenith) > 0
    assert np.mean(zenith) == pytest.approx(0.75, abs=0.12)  # <cos> for density cos^2 in solid angle
    assert len(densities) > 5
    assert 1.9 < np.median(densities) < 2.6


@pytest.mark.parametrize(
    "bad",
    [
        {"vertices": (2, 1)},
        {"rain": (-1, 2)},
        {"energy": (0.0, 10.0)},
        {"vertices": (0, 2), "rain": (0, 3)},
        {"particles": (0, 3)},
        {"threshold": -1.0},
    ],
)
def test_pilarnet_settings_refuse_nonsense(argon, bad):
    with pytest.raises(ValueError):
        argon.PILArNetSettings(**bad)
