"""Light and read-out of the scintillator cubes: three families of fibres, each giving one projection.

Parameters of the public FASERCal description: Birks constant 8.7e-3 cm/MeV, 8000 photons/MeV of which 10 % are captured, 5 % trapped and 25 %
detected per fibre direction (10 photo-electrons per MeV), attenuation length 3 m towards one end, 3 % leakage to each of the four x and y neighbours.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

BIRKS = 8.7e-3 * 10  # mm/MeV
PHOTOELECTRONS = 8000 * 0.10 * 0.05 * 0.25  # per MeV and fibre
ATTENUATION = 3000.0  # mm
LEAKAGE = 0.03
FIBRE_THRESHOLD = 0.5  # MeV, about a quarter of a minimum-ionising particle in a cube


class Projections(NamedTuple):
    """Calibrated fibre signals in MeV: xz (X, Z) and yz (Y, Z) for each layer, xy (modules, X, Y) summed over the layers of a module."""

    xz: np.ndarray
    yz: np.ndarray
    xy: np.ndarray


def quench(energy: np.ndarray, length: np.ndarray) -> np.ndarray:
    """Birks' law: light in MeV from deposits in MeV along lengths in mm; a deposit without length is not quenched."""
    return energy / (1 + BIRKS * energy / np.where(length > 0, length, np.inf))


def leak(light: np.ndarray) -> np.ndarray:
    """Share light (X, Y, Z) with the neighbours in x and y; at the walls it is reflected, so that the sum is kept."""
    out = light * (1 - 4 * LEAKAGE)
    for axis in (0, 1):
        moved = np.moveaxis(light, axis, 0)
        target = np.moveaxis(out, axis, 0)
        target[1:] += LEAKAGE * moved[:-1]
        target[:-1] += LEAKAGE * moved[1:]
        target[0] += LEAKAGE * moved[0]
        target[-1] += LEAKAGE * moved[-1]
    return out


def attenuation(length: int, size: float) -> np.ndarray:
    """Relative light from each of `length` cubes of `size` mm along a fibre read out at its high end, 1 at the middle; (length,)."""
    distance = size * (length - np.arange(length) - 0.5)
    return np.exp(-(distance - size * length / 2) / ATTENUATION)


def read_out(light: np.ndarray, voxel_size: float, layers: int, rng: np.random.Generator) -> Projections:
    """Fibre signals from the light of the cubes.

    Args:
        light: (X, Y, Z) MeV of scintillation per cube.
        voxel_size: edge of a cube in mm.
        layers: layers in a module.
        rng: source of the photo-electron statistics.
    """
    x, y, z = light.shape
    by_module = light.reshape(x, y, z // layers, layers)
    expected = (
        np.einsum("xyz,y->xz", light, attenuation(y, voxel_size)),
        np.einsum("xyz,x->yz", light, attenuation(x, voxel_size)),
        np.einsum("xymz,z->mxy", by_module, attenuation(layers, voxel_size)),
    )
    signals = (rng.poisson(e * PHOTOELECTRONS) / PHOTOELECTRONS for e in expected)
    return Projections(*(np.where(s < FIBRE_THRESHOLD, 0.0, s) for s in signals))
