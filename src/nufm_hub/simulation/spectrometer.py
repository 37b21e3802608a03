"""Muon spectrometer behind the calorimeters: muons are stepped through magnetised iron, measured in drift tubes and fitted.

Four stations of three layers of drift tubes along x stand between three iron blocks magnetised along x, so that muons bend in y. The dimensions are
those of the public FASERCal simulation (github.com/rubbiaa/FASER, 2026). Lengths are in mm, momenta in GeV, the field in tesla; z runs downstream.

Mean energy loss and Gaussian multiple scattering are simulated; fluctuations of the energy loss, noise and the tubes' left-right ambiguity are not.
Scattering in the iron limits the resolution of 1/p to about 25 % from 10 to 200 GeV; from 500 GeV on the tubes matter (54 % at 1 TeV). The error from
scattering is proportional to the fitted 1/p itself, so that there (p - true p) / sigma_p is Gaussian and the pull of 1/p is skewed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np

from ..detectors.spec import load_detector

_MUON_MASS = 0.1056583755  # GeV, PDG 2024
_ELECTRON_MASS = 0.51099895e-3
_BEND = 0.299792458e-3  # GeV / (T mm)
_STRAIGHT = 1e-6  # 1/GeV; a track of less curvature is followed as one of this much


@dataclass(frozen=True)
class Material:
    """What energy loss and scattering need: density in g/cm3, radiation length in mm, and parameters of the Bethe formula.

    `excitation` is in eV; `density_effect` is Sternheimer's (a, m, x0, x1, C, delta0), At. Data Nucl. Data Tables 30 (1984) 261;
    `critical_energy` in GeV is where muons radiate as much as they ionise.
    """

    density: float
    radiation_length: float
    charge_per_mass: float
    excitation: float
    density_effect: tuple[float, float, float, float, float, float]
    critical_energy: float


IRON = Material(7.874, 17.57, 26 / 55.845, 286.0, (0.14680, 2.9632, -0.0012, 3.1531, 4.2911, 0.12), 347.0)
ALUMINIUM = Material(2.699, 88.97, 13 / 26.982, 166.0, (0.08024, 3.6345, 0.1708, 3.0127, 4.2395, 0.12), 612.0)


def muon_energy_loss(momentum_gev: np.ndarray, material: Material) -> np.ndarray:
    """Mean energy loss of muons in MeV cm2/g, same shape as the momentum in GeV.

    Ionisation: Bethe formula with density effect (PDG 2024, eq. 34.5). Radiation: b E with b fixed by the critical energy (PDG 2024, sec. 34.6,
    and atomic properties), within 10 % of the tables of Groom, Mokhov and Striganov, At. Data Nucl. Data Tables 78 (2001) 183, above 10 GeV.
    """
    momentum = np.asarray(momentum_gev, dtype=float)
    slope = _ionisation(math.sqrt(material.critical_energy**2 - _MUON_MASS**2), material) / material.critical_energy
    return _ionisation(momentum, material) + slope * np.hypot(momentum, _MUON_MASS)


def _ionisation(momentum: np.ndarray | float, material: Material) -> np.ndarray:
    beta_gamma = np.asarray(momentum) / _MUON_MASS
    gamma = np.hypot(1, beta_gamma)
    beta2 = (beta_gamma / gamma) ** 2
    ratio = _ELECTRON_MASS / _MUON_MASS
    largest = 2 * _ELECTRON_MASS * beta_gamma**2 / (1 + 2 * gamma * ratio + ratio**2)
    a, m, x0, x1, c, delta0 = material.density_effect
    x = np.log10(beta_gamma)
    delta = 2 * math.log(10) * x - c + a * np.clip(x1 - x, 0, None) ** m
    delta = np.where(x < x0, delta0 * 10 ** (2 * (x - x0)), delta)
    mean = 0.5 * np.log(2 * _ELECTRON_MASS * beta_gamma**2 * largest / (material.excitation * 1e-9) ** 2)
    return 0.307075 * material.charge_per_mass / beta2 * (mean - beta2 - delta / 2)


@cache
def _loss_table(material: Material) -> tuple[np.ndarray, np.ndarray]:
    """ln(p / GeV) and energy loss in GeV/mm."""
    log_momentum = np.linspace(math.log(0.05), math.log(1e6), 400)
    return log_momentum, muon_energy_loss(np.exp(log_momentum), material) * material.density * 1e-4


def scattering_angle(momentum_gev: np.ndarray, thickness: np.ndarray | float, total: np.ndarray | float) -> np.ndarray:
    """RMS projected scattering angle in rad of a muon in `thickness` radiation lengths, part of an absorber of `total` (PDG 2024, eq. 34.16).

    Highland's logarithm takes the whole absorber, so that the squares of its parts add up.
    """
    momentum = np.asarray(momentum_gev, dtype=float)
    beta = momentum / np.hypot(momentum, _MUON_MASS)
    return 13.6e-3 / (beta * momentum) * np.sqrt(thickness) * (1 + 0.038 * np.log(total / beta**2))


@dataclass(frozen=True)
class MuonSpectrometer:
    """Layout and resolutions, defaults as in the public FASERCal simulation.

    Attributes:
        entrance: z in mm of the front face.
        field: tesla; the field along x is -field for |y| < 250 mm, +field for 250 < |y| < 500 mm, inside the iron only.
        scattering: multiplies the scattering angles; 0 switches scattering off.
        resolution: mm, of y from the drift radius.
        resolution_along: mm, of x from the signal times at the two tube ends.
    """

    entrance: float
    field: float = 1.5
    scattering: float = 1.0
    resolution: float = 0.08
    resolution_along: float = 100.0

    stations = 4
    layers = 3
    tubes = 34
    tube_diameter = 30.0
    tube_gas_radius = 14.6
    tube_length = 860.0
    endplate = 10.0
    magnet = 400.0
    magnet_gap = 15.0
    magnet_half_width = 500.0
    flux_return = 250.0
    slabs = 4  # steps in a magnet

    @cached_property
    def layer_pitch(self) -> float:
        return self.tube_diameter * math.sqrt(3) / 2  # honeycomb

    @cached_property
    def station_length(self) -> float:
        return 2 * self.endplate + (self.layers - 1) * self.layer_pitch + self.tube_diameter

    def station_start(self, station: int) -> float:
        return self.entrance + station * (self.station_length + 2 * self.magnet_gap + self.magnet)

    @cached_property
    def planes(self) -> np.ndarray:
        """z in mm of the twelve wire planes."""
        first = self.endplate + self.tube_diameter / 2
        return np.array([self.station_start(s) + first + i * self.layer_pitch for s in range(self.stations) for i in range(self.layers)])

    @cached_property
    def elements(self) -> list[tuple[float, str]]:
        """Everything on the way in order of z: (z of the centre, `plane`, `plate` or `slab`), from the first plane to the last."""
        out = [(z, "plane") for z in self.planes]
        step = self.magnet / self.slabs
        for s in range(self.stations):
            low, high = self.station_start(s), self.station_start(s) + self.station_length
            out += [(low + self.endplate / 2, "plate"), (high - self.endplate / 2, "plate")]
            if s < self.stations - 1:
                out += [(high + self.magnet_gap + (i + 0.5) * step, "slab") for i in range(self.slabs)]
        return [e for e in sorted(out) if self.planes[0] <= e[0] <= self.planes[-1]]

    @cached_property
    def scatterers(self) -> np.ndarray:
        """z in mm of the plates and slabs."""
        return np.array([z for z, kind in self.elements if kind != "plane"])

    def mean_field(self, y_in: np.ndarray, y_out: np.ndarray) -> np.ndarray:
        """Mean field along x in tesla over a straight path between two heights: smooth where a path crosses the flux return."""
        low, high = np.minimum(y_in, y_out), np.maximum(y_in, y_out) + 1e-6
        share = np.clip(np.minimum(high, self.flux_return) - np.maximum(low, -self.flux_return), 0, None) / (high - low)
        return self.field * (1 - 2 * share)

    def covers(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Whether a point (..., planes) lies in the gas of a tube; odd layers are shifted up by half a tube, tube walls are dead."""
        shift = np.arange(len(self.planes)) % self.layers % 2 * self.tube_diameter / 2
        row = (y - shift) / self.tube_diameter + self.tubes / 2
        off_wire = np.abs(row - np.floor(row) - 0.5) * self.tube_diameter
        return (np.abs(x) < self.tube_length / 2) & (row >= 0) & (row < self.tubes) & (off_wire < self.tube_gas_radius)


@dataclass
class Trajectory:
    """Where tracks cross the planes, x and y (..., 12) in mm; whether they get there, (..., 12); RMS angles (..., S) at the scatterers in rad."""

    x: np.ndarray
    y: np.ndarray
    scattering: np.ndarray
    alive: np.ndarray


def propagate(state: np.ndarray, spectrometer: MuonSpectrometer, rng: np.random.Generator | None = None) -> Trajectory:
    """Step tracks from the first wire plane to the last, exactly on circles within thin slabs of iron.

    Args:
        state: (..., 5) x, y in mm, dx/dz, dy/dz, charge / momentum in 1/GeV at the first plane.
        rng: draws the scattering; without it there is none.
    """
    s = spectrometer
    x, y, tx, ty, k = (state[..., i].copy() for i in range(5))
    alive = np.ones(x.shape, dtype=bool)
    xs, ys, lives, angles = [], [], [], []
    momentum = 1 / np.maximum(np.abs(k), _STRAIGHT)
    log_momentum, loss = _loss_table(IRON)
    z_now = s.planes[0]
    for z, kind in s.elements:
        half = s.magnet / s.slabs / 2 if kind == "slab" else 0.0
        x, y, z_now = x + tx * (z - half - z_now), y + ty * (z - half - z_now), z + half
        if kind == "plane":
            xs.append(x)
            ys.append(y)
            lives.append(alive)
            continue
        material, thickness, total = (IRON, 2 * half, s.magnet) if kind == "slab" else (ALUMINIUM, s.endplate, s.endplate)
        inside = (np.abs(x) < s.magnet_half_width) & (np.abs(y) < s.magnet_half_width) & alive
        stretch = np.sqrt(1 + tx**2 + ty**2)
        angle = s.scattering * inside * scattering_angle(momentum, thickness * stretch / material.radiation_length, total / material.radiation_length)
        angles.append(angle)
        kick = angle * rng.standard_normal((2, *x.shape)) * stretch if rng is not None else (0.0, 0.0)
        if kind == "slab":  # the energy lost in the thin aluminium does not matter
            energy = np.hypot(momentum, _MUON_MASS) - np.interp(np.log(momentum), log_momentum, loss) * 2 * half * stretch * inside
            alive = alive & (energy > 2 * _MUON_MASS)
            momentum = np.sqrt(np.maximum(energy, 2 * _MUON_MASS) ** 2 - _MUON_MASS**2)
            entering, k = k, np.copysign(1 / momentum, k)
            # In a field along x, p_x and p_yz stay and p_y grows linearly with z: an exact arc over the slab
            cos1 = 1 / np.sqrt(1 + ty**2)
            sin1 = ty * cos1
            sin2 = sin1 + _BEND * 0.5 * (entering + k) * s.mean_field(y, y + 2 * half * ty) * inside * 2 * half * stretch * cos1
            alive = alive & (np.abs(sin2) < 0.95)
            sin2 = np.clip(sin2, -0.95, 0.95)
            cos2 = np.sqrt(1 - sin2**2)
            # The kick acts in the middle of the slab
            y = y + 2 * half * (sin1 + sin2) / (cos1 + cos2) + kick[1] * half
            x = x + 4 * half * tx * cos1 / (cos1 + cos2) + kick[0] * half
            tx, ty = tx * cos1 / cos2, sin2 / cos2
        tx, ty = tx + kick[0], ty + kick[1]
    stack = [np.stack(a, axis=-1) for a in (xs, ys, angles, lives)]
    return Trajectory(*stack)


def fit_tracks(
    x: np.ndarray, y: np.ndarray, hit: np.ndarray, spectrometer: MuonSpectrometer
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Weighted least-squares fit of tracks, scattering included in the covariance of the measurements (Gauss-Newton).

    Args:
        x, y: (M, 12) measured positions in mm at the wire planes.
        hit: (M, 12) bool, planes that measured.

    Returns:
        state (M, 5) as in `propagate`, covariance (M, 5, 5), chi-square (M,), converged (M,) bool. The chi-square has 2 hits - 5 degrees of freedom.
    """
    s = spectrometer
    lever = np.clip(s.planes[:, None] - s.scatterers, 0, None)  # (12, S)
    both = hit[:, :, None] & hit[:, None, :]
    missing = np.eye(len(s.planes)) * ~hit[:, :, None]
    scale = np.array([1.0, 0.1, 1e-4, 1e-5, 1e-5])  # finite differences
    state = np.zeros((len(x), 5))
    # Start from the straight line through all measurements
    weight = hit / np.maximum(hit.sum(axis=1, keepdims=True), 1)
    z = s.planes - s.planes[0]
    mean_z = (weight * z).sum(axis=1, keepdims=True)
    spread = (weight * (z - mean_z) ** 2).sum(axis=1)
    for i, value in enumerate((x, y)):
        mean = (weight * value).sum(axis=1)
        state[:, 2 + i] = (weight * (z - mean_z) * value).sum(axis=1) / spread
        state[:, i] = mean - state[:, 2 + i] * mean_z[:, 0]
    converged = np.zeros(len(x), dtype=bool)
    for iteration in range(12):
        steps = np.concatenate([np.zeros((1, 5)), np.diag(scale)])
        at = propagate(state[:, None] + steps, s)  # (M, 6, 12)
        angle = at.scattering[:, 0]
        if iteration == 0:
            angle = np.maximum(angle, scattering_angle(20.0, s.magnet / s.slabs / IRON.radiation_length, s.magnet / IRON.radiation_length))
        spread_by_scattering = np.einsum("is,ms,js->mij", lever, angle**2, lever)
        information = np.zeros((len(x), 5, 5))
        gradient = np.zeros((len(x), 5))
        chi2 = np.zeros(len(x))
        for value, model, sigma in ((x, at.x, s.resolution_along), (y, at.y, s.resolution)):
            covariance = np.where(both, spread_by_scattering + sigma**2 * np.eye(len(s.planes)), 0) + missing
            residual = np.where(hit, value - model[:, 0], 0)
            jacobian = np.where(hit[:, None], (model[:, 1:] - model[:, :1]) / scale[:, None], 0)  # (M, 5, 12)
            weighted = np.linalg.solve(covariance, np.concatenate([jacobian, residual[:, None]], axis=1).swapaxes(1, 2))  # (M, 12, 6)
            information += jacobian @ weighted[..., :5]
            gradient += (jacobian @ weighted[..., 5:])[..., 0]
            chi2 += (residual * weighted[..., 5]).sum(axis=1)
        # A track along the flux return can leave the curvature open: a prior of width 1 / GeV keeps the matrix regular
        information[:, 4, 4] += 1.0
        covariance = np.linalg.inv(information)
        step = np.linalg.solve(information, gradient[..., None])[..., 0]
        # The wide scattering angle of the first iteration makes almost any curvature compatible with zero
        converged = np.abs(step[:, 4]) < (0.02 if iteration else 1e-3) * np.sqrt(covariance[:, 4, 4])
        if converged.all():
            break
        limit = np.maximum(0.5 * np.abs(state[:, 4]), 0.1)
        step *= np.minimum(1, limit / np.maximum(np.abs(step[:, 4]), 1e-12))[:, None]
        state = state + step
        state[:, 4] = np.clip(state[:, 4], -1, 1)
    return state, covariance, chi2, converged


def chi2_survival(chi2: np.ndarray, ndof: np.ndarray) -> np.ndarray:
    """Probability of a larger chi-square."""
    from scipy.special import gammaincc  # here, since importing it takes longer than everything else in this file

    return gammaincc(np.asarray(ndof) / 2, np.asarray(chi2) / 2)


@cache
def _default_spectrometer() -> MuonSpectrometer:
    """Behind the hadronic calorimeter of the packaged FASERCal, after the 250 mm that separate its sub-detectors."""
    return MuonSpectrometer(entrance=float(load_detector("fasercal").branch("ahcal").bounds[1, 2]) + 250.0)


def simulate_hits(
    charge: np.ndarray, position_mm: np.ndarray, momentum_gev: np.ndarray, rng: np.random.Generator, spectrometer: MuonSpectrometer
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Measured x and y (M, 12) in mm at the wire planes and which planes measured, bool (M, 12), for muons as in `measure_muons`."""
    s = spectrometer
    slope = momentum_gev[:, :2] / momentum_gev[:, 2:]
    start = position_mm[:, :2] + slope * (s.planes[0] - position_mm[:, 2:])
    state = np.column_stack([start, slope, charge / np.linalg.norm(momentum_gev, axis=1)])
    true = propagate(state, s, rng)
    hit = s.covers(true.x, true.y) & true.alive
    noise = rng.standard_normal((2, *true.x.shape))
    return true.x + s.resolution_along * noise[0], true.y + s.resolution * noise[1], hit


def measure_muons(
    charge: np.ndarray,
    position_mm: np.ndarray,
    momentum_gev: np.ndarray,
    rng: np.random.Generator,
    spectrometer: MuonSpectrometer | None = None,
) -> np.ndarray:
    """Tracks that the spectrometer reconstructs from muons leaving the calorimeters.

    Args:
        charge: (M,) -1 or +1.
        position_mm: (M, 3) where each muon leaves the calorimeters, in the detector frame, upstream of the spectrometer.
        momentum_gev: (M, 3) there.
        rng: source of the scattering and measurement noise.
        spectrometer: the layout; by default the one behind the packaged FASERCal.

    Returns:
        float32 (T, 11), at most 10 tracks by falling momentum; columns charge, n_points, px, py, pz, p (GeV, at the first wire plane), chi2, ndof,
        p_value, sigma_p (GeV), sigma_inverse_p (1/GeV). A muon makes a track if at least five planes of three stations measured it and the fit
        converged. Momenta are capped at 100 TeV.

    Raises:
        ValueError: shapes that do not agree, a charge other than +-1, values that are not finite, or a muon that starts inside the spectrometer.
    """
    s = spectrometer or _default_spectrometer()
    charge = np.asarray(charge, dtype=float).reshape(-1)
    position_mm, momentum_gev = (np.asarray(a, dtype=float).reshape(-1, 3) for a in (position_mm, momentum_gev))
    if not len(charge) == len(position_mm) == len(momentum_gev):
        raise ValueError(
            f"measure_muons: {len(charge)} charges, {len(position_mm)} positions and {len(momentum_gev)} momenta; give one of each a muon"
        )
    if not (np.isfinite(position_mm).all() and np.isfinite(momentum_gev).all() and (np.abs(charge) == 1).all()):
        raise ValueError("measure_muons: positions and momenta must be finite and charges -1 or +1")
    if (position_mm[:, 2] > s.entrance).any():
        raise ValueError(f"measure_muons: a muon starts at z = {position_mm[:, 2].max()} mm, behind the spectrometer's entrance at {s.entrance} mm")
    forward = momentum_gev[:, 2] > 0.1 * np.linalg.norm(momentum_gev, axis=1)
    x, y, hit = simulate_hits(charge[forward], position_mm[forward], momentum_gev[forward], rng, s)
    per_station = hit.reshape(-1, s.stations, s.layers).any(axis=2).sum(axis=1)
    enough = (hit.sum(axis=1) >= 5) & (per_station >= 3)
    x, y, hit = x[enough], y[enough], hit[enough]
    if not len(x):
        return np.zeros((0, 11), dtype=np.float32)
    state, covariance, chi2, converged = fit_tracks(x, y, hit, s)
    curvature = state[:, 4]
    p = 1 / np.maximum(np.abs(curvature), 1e-5)
    direction = np.column_stack([state[:, 2:4], np.ones(len(p))])
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    sigma = np.sqrt(covariance[:, 4, 4])
    points = hit.sum(axis=1)
    ndof = 2 * points - 5
    p_value = chi2_survival(chi2, ndof)
    tracks = np.column_stack([np.copysign(1.0, curvature), points, p[:, None] * direction, p, chi2, ndof, p_value, sigma * p**2, sigma])[converged]
    return tracks[np.argsort(-tracks[:, 5], kind="stable")][:10].astype(np.float32)
