"""Physics of Geant4 with the data sets `ensure_geant4_data` provides, against published values."""

import importlib.util
import logging
import multiprocessing
import os

import numpy as np
import pytest

from nufm_hub.simulation import geant4_data

if importlib.util.find_spec("xcom") is None:
    pytest.skip("needs the simulation extra", allow_module_level=True)
periodictable = pytest.importorskip("periodictable")
AVOGADRO = 6.02214076e23


@pytest.fixture(scope="module")
def calzone():
    geant4_data.ensure_geant4_data()
    return pytest.importorskip("calzone")


def slab(material: str, thickness: float, behind: str | None = None, width: float = 200.0) -> dict:
    """A slab from z = 0 in vacuum, in cm; `behind` names a thin volume after it that records what enters."""
    volumes = {"Slab": {"box": [width, width, thickness], "position": [0, 0, thickness / 2], "material": material}}
    if behind:
        volumes[behind] = {"box": [width, width, 0.1], "position": [0, 0, thickness + 0.1], "material": "G4_Galactic", "role": "catch_ingoing"}
    return {"World": {"box": [2 * width, 2 * width, 4 * thickness + 10], "material": "G4_Galactic", **volumes}}


@pytest.mark.parametrize("z", [6, 26, 82])
@pytest.mark.parametrize("energy", [0.1, 1.0, 100.0])
def test_photon_attenuation_agrees_with_xcom(calzone, z, energy):
    """Share of 20,000 photons that leave one attenuation length untouched; the reference is NIST XCOM's total with coherent scattering."""
    table = geant4_data.xcom_table(z)
    total = sum(table[name] for name in ("coherent", "incoherent", "photoelectric", "pair_atom", "pair_electron"))
    sigma = np.exp(np.interp(np.log(energy), np.log(table["energy"]), np.log(total))) * 1e-24  # cm2
    element = periodictable.elements[z]
    symbol, density = f"G4_{element.symbol}", {6: 2.0, 26: 7.874, 82: 11.35}[z]  # densities of Geant4's NIST materials, g/cm3
    thickness = element.mass / (AVOGADRO * density * sigma)
    simulation = calzone.Simulation(
        slab(symbol, thickness, behind="Behind"), physics=calzone.Physics("standard"), secondaries=False, random=calzone.Random(1)
    )
    count = 20_000
    photons = calzone.particles(count, pid=22, energy=energy, position=(0, 0, -1), direction=(0, 0, 1))
    out = simulation.run(photons).particles["World.Behind"]
    untouched = (out["pid"] == 22) & (np.abs(out["energy"] / energy - 1) < 1e-9) & (out["direction"][:, 2] > 1 - 1e-12)
    assert -np.log(untouched.sum() / count) == pytest.approx(1, rel=0.05)


def test_shower_maximum_agrees_with_pdg(calzone):
    """10 GeV electrons in lead: t_max = ln(E / E_c) - 0.5, E_c = 7.43 MeV, X0 = 0.5612 cm (PDG 2024, sec. 34.5 and atomic properties)."""
    geometry = slab("G4_Pb", 30 * 0.5612)
    geometry["World"]["Slab"]["role"] = "record_deposits"
    physics = calzone.Physics("option1", default_cut=0.3)
    simulation = calzone.Simulation(geometry, physics=physics, sample_deposits="detailed", random=calzone.Random(1))
    electrons = calzone.particles(30, pid=11, energy=1e4, position=(0, 0, -1), direction=(0, 0, 1))
    deposits = simulation.run(electrons).deposits["World.Slab"]
    depth = np.r_[(deposits.line["start"] + deposits.line["end"])[:, 2] / 2, deposits.point["position"][:, 2]] / 0.5612
    profile, edges = np.histogram(depth, bins=60, range=(0, 30), weights=np.r_[deposits.line["value"], deposits.point["value"]])
    assert profile.sum() / 30 / 1e4 == pytest.approx(0.99, abs=0.015)  # contained in 30 X0
    centre = (edges[1:] + edges[:-1]) / 2
    near = np.abs(centre - centre[profile.argmax()]) < 3
    a, b, _ = np.polyfit(centre[near], np.log(profile[near]), 2)
    assert -b / (2 * a) == pytest.approx(np.log(1e4 / 7.43) - 0.5, abs=0.4)


def test_minimum_ionising_muon_in_plastic(calzone):
    """Mean loss of a 300 MeV muon (momentum 391 MeV, near the minimum) in 10 cm of PVT, 1.956 MeV cm2/g (Groom et al., At. Data 78 (2001) 183)."""
    geometry = slab("G4_PLASTIC_SC_VINYLTOLUENE", 10.0, behind="Behind")
    simulation = calzone.Simulation(geometry, physics=calzone.Physics("standard"), random=calzone.Random(1))
    muons = calzone.particles(1000, pid=13, energy=300.0, position=(0, 0, -1), direction=(0, 0, 1))
    out = simulation.run(muons).particles["World.Behind"]
    out = out[out["pid"] == 13]
    loss = 300.0 - out["energy"].mean()
    assert len(out) == 1000
    assert loss == pytest.approx(1.956 * 1.032 * 10, rel=0.02)


def test_formulas_give_the_published_values():
    # Thermal-energy neutron-proton scattering is 20.4 b, 1 MeV 4.26 b, 14 MeV 0.69 b (ENDF/B-VIII.0, rounded)
    assert geant4_data.neutron_proton_cross_section(np.array([1e-4, 1.0, 14.0])) == pytest.approx([20.4, 4.26, 0.69], rel=0.02)
    # Nuclear interaction lengths of carbon, iron and lead: 85.8, 132.1 and 199.6 g/cm2 (PDG 2024, atomic and nuclear properties)
    for mass, length in ((12.01, 85.8), (55.85, 132.1), (207.2, 199.6)):
        assert mass / AVOGADRO / length * 1e24 == pytest.approx(float(geant4_data.letaw_cross_section(mass, np.array(1e4))), rel=0.1)
    # Lead: giant resonance at 13.5 MeV with a peak of 0.64 b (Berman and Fultz 1975)
    energy = np.linspace(8, 25, 1701)
    sigma = geant4_data.giant_dipole_resonance(82, 207.2, energy)
    assert energy[sigma.argmax()] == pytest.approx(13.5, abs=0.5)
    assert sigma.max() == pytest.approx(0.64, rel=0.3)
    # 1/v: a hundred times the energy is ten times the speed
    assert geant4_data.neutron_capture(10.0, np.array([2.53e-8, 2.53e-6])) == pytest.approx([10.0, 1.0], rel=1e-3)


def _ensure(cache):
    os.environ.pop("GEANT4_DATA_DIR", None)
    return str(geant4_data.ensure_geant4_data(cache))


def test_concurrent_builds_share_one_folder(tmp_path):
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        folders = pool.map(_ensure, [tmp_path, tmp_path])
    assert folders[0] == folders[1]
    assert [p.name for p in tmp_path.iterdir()] == [f"geant4-{geant4_data.TABLES_VERSION}"]
    assert {p.name for p in (tmp_path / f"geant4-{geant4_data.TABLES_VERSION}").iterdir()} == set(geant4_data.DATA_SETS)


def test_cache_is_built_once_and_says_so(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("NUFM_CACHE", str(tmp_path))
    monkeypatch.setenv("GEANT4_DATA_DIR", "")
    with caplog.at_level(logging.WARNING):
        folder = geant4_data.ensure_geant4_data()
    assert len(caplog.records) == 1
    assert str(tmp_path) in caplog.text
    assert os.environ["GEANT4_DATA_DIR"] == str(folder)
    stamp = folder.stat().st_mtime_ns
    monkeypatch.setenv("GEANT4_DATA_DIR", "")
    assert geant4_data.ensure_geant4_data() == folder
    assert folder.stat().st_mtime_ns == stamp
    assert len(caplog.records) == 1


def test_official_data_sets_win_and_incomplete_ones_are_named(tmp_path, monkeypatch):
    official = tmp_path / "official"
    for name in geant4_data.DATA_SETS:
        (official / name).mkdir(parents=True)
    monkeypatch.setenv("GEANT4_DATA_DIR", str(official))
    assert geant4_data.ensure_geant4_data(tmp_path / "cache") == official
    (official / "G4EMLOW8.8").rmdir()
    with pytest.raises(ValueError, match=r"official lacks .*G4EMLOW8\.8"):
        geant4_data.ensure_geant4_data(tmp_path / "cache")


def test_missing_package_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setenv("GEANT4_DATA_DIR", "")
    monkeypatch.setattr(geant4_data.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"xpecgen.*nufm-hub\[simulation\]"):
        geant4_data.ensure_geant4_data(tmp_path)
    assert list(tmp_path.iterdir()) == []  # nothing half built stays behind
