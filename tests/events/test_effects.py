"""Detector effects against values worked out by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import norm

from nufm_hub.detectors import DetectorSpec, load_detector
from nufm_hub.events import Event, Voxels, read_events
from nufm_hub.events.effects import DetectorEffects, distort
from nufm_hub.events.samples import sample_path

SUPERFGD, PILARNET, FASERCAL = (load_detector(name) for name in ("superfgd", "pilarnet", "fasercal"))


def apply(effects: DetectorEffects, event: Event, spec: DetectorSpec, seed: int = 0) -> Event:
    out = effects(event, spec, np.random.default_rng(seed))
    out.validate(spec)
    return out


def argon(coordinates, energy, **changes) -> Event:
    return Event("pilarnet", {"lar": Voxels(coordinates, energy, **changes)})


def energy_at(voxels: Voxels, coordinate) -> float:
    return float(voxels.energy[(voxels.coordinates == coordinate).all(axis=1)].sum())


def test_nothing_changes_when_everything_is_off(same_event):
    event = next(iter(read_events(sample_path("fasercal"))))
    same_event(apply(DetectorEffects(), event, FASERCAL), event)


def test_crosstalk_of_one_cube():
    """c = 3 %: the cube keeps 1 / 1.18, each neighbour gets 0.03 / 1.18, and only what leaked is crosstalk."""
    event = Event("superfgd", {"cubes": Voxels([[100, 100, 100]], [11.8], {"crosstalk": [0.0]})})
    cubes = apply(DetectorEffects(crosstalk=0.03), event, SUPERFGD).voxels["cubes"]
    assert len(cubes) == 7
    assert energy_at(cubes, [100, 100, 100]) == pytest.approx(10)
    for neighbour in ([99, 100, 100], [101, 100, 100], [100, 99, 100], [100, 101, 100], [100, 100, 99], [100, 100, 101]):
        assert energy_at(cubes, neighbour) == pytest.approx(0.3)
    own = (cubes.coordinates == 100).all(axis=1)
    assert (cubes.labels["crosstalk"][:, 0] == ~own).all()


def test_crosstalk_merges_with_neighbours_and_mixes_labels_by_energy():
    """Two touching voxels of 13 and 26 MeV at c = 5 %: s = 0.05 / 1.3; 13 * (1 - 6 s) + 26 s = 11 and 26 * (1 - 6 s) + 13 s = 20.5 MeV."""
    motif = np.eye(5, dtype=np.float32)[[0, 1]]
    event = argon([[9, 9, 9], [9, 9, 10]], [13.0, 26.0], labels={"motif": motif}, instances={"particle": [4, 7]}, voxel_of_hit=[1, 0, 1])
    lar = apply(DetectorEffects(crosstalk=0.05), event, PILARNET).voxels["lar"]
    assert len(lar) == 12
    assert lar.energy.sum() == pytest.approx(39)
    first, second = (int(np.flatnonzero((lar.coordinates == [9, 9, z]).all(axis=1))[0]) for z in (9, 10))
    assert lar.energy[[first, second]] == pytest.approx([11, 20.5])
    assert lar.labels["motif"][first, :2] == pytest.approx([10 / 11, 1 / 11])
    assert lar.instances["particle"][[first, second]].tolist() == [4, 7]
    beside = (lar.coordinates == [9, 8, 10]).all(axis=1)
    assert (lar.labels["motif"][beside, 1] == 1).all()
    assert lar.instances["particle"][beside] == 7
    assert lar.voxel_of_hit.tolist() == [second, first, second]


def test_crosstalk_stays_in_the_grid_and_in_its_module():
    """A corner has three neighbours; a voxel in the last layer of a module has five, although the next index is free."""
    corner = apply(DetectorEffects(crosstalk=0.1), argon([[0, 0, 767]], [16.0]), PILARNET).voxels["lar"]
    assert sorted(corner.energy.tolist()) == pytest.approx([1, 1, 1, 13])
    event = Event("fasercal", {"3dcal": Voxels([[20, 20, 19]], [16.0])})
    cube = apply(DetectorEffects(crosstalk=0.1), event, FASERCAL).voxels["3dcal"]
    assert sorted(cube.energy.tolist()) == pytest.approx([1] * 5 + [11])
    assert cube.coordinates[:, 2].max() == 19


def test_energy_is_conserved_on_real_events():
    event = next(iter(read_events(sample_path("pilarnet"))))
    moved = apply(DetectorEffects(crosstalk=0.3, diffusion=(7e-4, 1e-3)), event, PILARNET)
    before, after = event.voxels["lar"], moved.voxels["lar"]
    assert len(after) > 3 * len(before)
    assert after.energy.sum(dtype=np.float64) == pytest.approx(before.energy.sum(dtype=np.float64), rel=1e-6)


@pytest.mark.parametrize(("anode", "index"), [("low", 533), ("high", 234)])
def test_lifetime(anode, index):
    """Voxel 533 has its centre 533.5 * 3 mm = 1600.5 mm from the low face, as voxel 234 from the high one: 1000.3 us at 1.6 mm/us."""
    effects = DetectorEffects(lifetime=3000, drift_velocity=1.6, anode=anode)
    lar = apply(effects, argon([[index, 5, 5]], [1.0]), PILARNET).voxels["lar"]
    assert lar.energy[0] == pytest.approx(math.exp(-1600.5 / 1.6 / 3000), rel=1e-6)
    other = apply(replace(effects, drift_axis=2, anode="low"), argon([[index, 5, 0]], [1.0]), PILARNET).voxels["lar"]
    assert other.energy[0] == pytest.approx(math.exp(-1.5 / 1.6 / 3000), rel=1e-6)


def test_diffusion_has_the_width_of_einstein():
    """After 700.5 * 3 mm / 1.6 mm/us = 1313 us: sigma = sqrt(2 * 1.2e-3 * 1313) = 1.78 mm across the drift."""
    time = 700.5 * 3 / 1.6
    effects = DetectorEffects(diffusion=(7.2e-4, 1.2e-3), drift_velocity=1.6)
    lar = apply(effects, argon([[700, 400, 300]], [1000.0]), PILARNET).voxels["lar"]
    across = np.sqrt(2 * 1.2e-3 * time)
    share = norm.cdf(4.5, scale=across) - norm.cdf(1.5, scale=across)
    next_to_it = energy_at(lar, [700, 401, 300]) / energy_at(lar, [700, 400, 300])
    assert next_to_it == pytest.approx(share / (norm.cdf(1.5, scale=across) - norm.cdf(-1.5, scale=across)), rel=0.01)

    wide = DetectorEffects(diffusion=(0.01, 0.004), drift_velocity=1.6)
    lar = apply(wide, argon([[400, 400, 400]], [1000.0]), PILARNET).voxels["lar"]
    variance = (lar.energy[:, None] * ((lar.coordinates - 400.0) * 3) ** 2).sum(axis=0) / lar.energy.sum()
    # Voxels of 3 mm add 3^2 / 12; shares below 1e-4 stay where they were.
    assert variance == pytest.approx([2 * d * 400.5 * 3 / 1.6 + 0.75 for d in (0.01, 0.004, 0.004)], rel=0.04)
    still = apply(effects, argon([[0, 400, 300]], [1000.0]), PILARNET).voxels["lar"]
    assert energy_at(still, [0, 400, 300]) == pytest.approx(1000, rel=1e-3)


def test_noise_has_its_rate_and_energy_and_no_label():
    event = Event("superfgd", {"cubes": Voxels([[1, 2, 3]], [5.0], {"crosstalk": [0.0]}, {}, [0, 0])})
    effects = DetectorEffects(noise_rate=2.5e-4, noise_energy=0.4)
    cubes = apply(effects, event, SUPERFGD).voxels["cubes"]
    expected = 2.5e-4 * 200**3  # 2000
    assert len(cubes) - 1 == pytest.approx(expected, abs=5 * math.sqrt(expected))
    own = (cubes.coordinates == [1, 2, 3]).all(axis=1)
    assert cubes.energy[~own].mean() == pytest.approx(0.4, rel=0.12)
    assert np.isnan(cubes.labels["crosstalk"][~own]).all()
    assert cubes.labels["crosstalk"][own] == 0
    assert cubes.coordinates.mean(axis=0) == pytest.approx([99.5] * 3, abs=5 * 200 / math.sqrt(12 * expected))
    assert own[cubes.voxel_of_hit].tolist() == [True, True]


def test_dead_channels_are_a_fixed_share_and_the_same_in_every_event():
    rng = np.random.default_rng(3)
    coordinates = np.unique(rng.integers(0, 200, (50_000, 3)), axis=0)
    event = Event("superfgd", {"cubes": Voxels(coordinates, np.ones(len(coordinates)), voxel_of_hit=np.arange(len(coordinates)))})
    effects = DetectorEffects(dead=0.05, dead_seed=1)
    first, second = (apply(effects, event, SUPERFGD, seed).voxels["cubes"] for seed in (1, 2))
    assert (first.coordinates == second.coordinates).all()
    assert 1 - len(first) / len(coordinates) == pytest.approx(0.05, abs=5 * math.sqrt(0.05 * 0.95 / len(coordinates)))
    assert (first.voxel_of_hit == np.arange(len(first))).all()
    other = apply(replace(effects, dead_seed=2), event, SUPERFGD).voxels["cubes"]
    assert len(np.unique(np.concatenate([first.coordinates, other.coordinates]), axis=0)) > len(first) + 0.9 * 0.05 * len(coordinates) * 0.95
    half = DetectorEffects(dead=0.5)
    towers = apply(half, Event("fasercal", images={"ecal": np.ones((5, 5), np.float32)}), FASERCAL).images["ecal"]
    again = apply(half, Event("fasercal", images={"ecal": np.full((5, 5), 7, np.float32)}), FASERCAL, 5).images["ecal"]
    assert 3 < towers.sum() < 22
    assert (again == 7 * towers).all()


def test_scale_smearing_and_threshold():
    n = 20_000
    coordinates = np.stack(np.unravel_index(np.arange(n), (768, 768, 768)), axis=1)
    event = argon(coordinates, np.full(n, 2.0))
    assert apply(DetectorEffects(energy_scale=1.03), event, PILARNET).voxels["lar"].energy == pytest.approx(2.06)
    smeared = apply(DetectorEffects(energy_smearing=0.1), event, PILARNET).voxels["lar"].energy
    assert smeared.mean() == pytest.approx(2.0, rel=5 * 0.1 / math.sqrt(n))
    assert np.log(smeared).std() == pytest.approx(0.1, rel=0.03)
    # A factor exp(0.1 z - 0.005) leaves 2 MeV above 2.1 MeV when z > (log 1.05 + 0.005) / 0.1.
    kept = len(apply(DetectorEffects(energy_smearing=0.1, threshold=2.1), event, PILARNET).voxels["lar"]) / n
    assert kept == pytest.approx(norm.sf((math.log(1.05) + 0.005) / 0.1), abs=5 * 0.5 / math.sqrt(n))
    image = Event("fasercal", images={"ecal": np.full((5, 5), 4, np.float32)})
    assert apply(DetectorEffects(energy_scale=0.5), image, FASERCAL).images["ecal"] == pytest.approx(2)


@pytest.mark.parametrize("spec", [FASERCAL, SUPERFGD, PILARNET], ids=lambda s: s.name)
def test_defaults_on_the_samples_are_reproducible(spec, same_event):
    events = [e for e, _ in zip(read_events(sample_path(spec.name)), range(3))]
    effects = DetectorEffects.of(spec.name)
    first, second = (list(distort(events, spec, effects, seed=4)) for _ in range(2))
    for a, b, event in zip(first, second, events):
        a.validate(spec)
        same_event(a, b)
        same_event(a.truth, event.truth)
    name = spec.voxel_branches[0].name
    assert [v.energy.sum() for v in (e.voxels[name] for e in first)] != [e.voxels[name].energy.sum() for e in events]
    (third,) = distort(events[:1], spec, effects, seed=5)
    assert len(third.voxels[name]) != len(first[0].voxels[name]) or (third.voxels[name].values != first[0].voxels[name].values).any()


@pytest.mark.parametrize("spec", [FASERCAL, SUPERFGD, PILARNET], ids=lambda s: s.name)
def test_empty_and_absent_branches(spec):
    name = spec.voxel_branches[0].name
    everything = DetectorEffects.of(spec.name, crosstalk=0.05, diffusion=(1e-3, 1e-3), lifetime=1000, noise_rate=0)
    empty = apply(everything, Event(spec.name, {name: Voxels(np.zeros((0, 3)), np.zeros((0, 1)))}), spec)
    assert len(empty.voxels[name]) == 0
    assert apply(everything, Event(spec.name), spec).voxels == {}
    lit = apply(replace(everything, noise_rate=1e-5), Event(spec.name, {name: Voxels(np.zeros((0, 3)), np.zeros((0, 1)))}), spec)
    assert name in lit.voxels


@pytest.mark.parametrize(
    "bad",
    [
        {"crosstalk": 0.31},
        {"crosstalk": -0.1},
        {"dead": 1.5},
        {"lifetime": 0},
        {"diffusion": (1, -1)},
        {"drift_axis": 3},
        {"anode": "top"},
        {"noise_rate": math.nan},
        {"energy_scale": 0},
    ],
)
def test_nonsense_is_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        DetectorEffects(**bad)


def test_unknown_names():
    with pytest.raises(ValueError, match="nope"):
        DetectorEffects.of("nope")
    with pytest.raises(ValueError, match="cross_talk"):
        DetectorEffects.of("superfgd", cross_talk=0.1)
