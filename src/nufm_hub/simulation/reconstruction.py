"""Voxels from projections. What three views cannot tell apart appears as ghosts: voxels without a true deposit."""

from __future__ import annotations

import numpy as np

from .response import Projections, attenuation

ITERATIONS = 20
VOXEL_THRESHOLD = 0.5  # MeV


def reconstruct(projections: Projections, voxel_size: float) -> tuple[np.ndarray, np.ndarray]:
    """Energies that explain three projections, by the multiplicative algebraic reconstruction technique.

    Candidates are the voxels whose three fibres all have a signal. Starting from equal energies, each family of fibres in turn scales the candidates
    on a fibre to its signal (Gordon, Bender and Herman, J. Theor. Biol. 29 (1970) 471).

    Args:
        projections: calibrated signals, zero below threshold.
        voxel_size: edge of a cube in mm.

    Returns:
        coordinates: (N, 3) int64 of the voxels above 0.5 MeV, in order of x, y, z.
        energy: (N,) MeV.
    """
    (modules, nx, ny), nz = projections.xy.shape, projections.xz.shape[1]
    layers = nz // modules
    candidate = (projections.xz[:, None, :] > 0) & (projections.yz[None, :, :] > 0)
    candidate &= np.repeat(np.moveaxis(projections.xy > 0, 0, -1), layers, axis=2)
    x, y, z = np.nonzero(candidate)
    fibres = (
        (x * nz + z, projections.xz.ravel(), attenuation(ny, voxel_size)[y]),
        (y * nz + z, projections.yz.ravel(), attenuation(nx, voxel_size)[x]),
        (((z // layers) * nx + x) * ny + y, projections.xy.ravel(), attenuation(layers, voxel_size)[z % layers]),
    )
    energy = np.ones(len(x))
    for _ in range(ITERATIONS):
        for fibre, signal, weight in fibres:
            total = np.bincount(fibre, energy * weight, minlength=len(signal))
            energy *= (signal / np.where(total > 0, total, 1.0))[fibre]
    keep = energy > VOXEL_THRESHOLD
    return np.column_stack([x, y, z])[keep], energy[keep]
