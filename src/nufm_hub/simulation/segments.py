"""Geant4's energy deposits as pieces that each lie in one voxel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nufm_hub.detectors import VoxelBranch
from nufm_hub.events.voxelise import split_segments


@dataclass
class Segments:
    """D deposits cut into N pieces.

    Attributes:
        primary, track: (D,) row of the primary and Geant4 track of each deposit.
        deposit: (N,) deposit of each piece.
        position: (N, 3) middle of each piece in mm.
        energy: (N,) MeV.
    """

    primary: np.ndarray
    track: np.ndarray
    deposit: np.ndarray
    position: np.ndarray
    energy: np.ndarray

    def by_event(self, sizes: Sequence[int]) -> list[np.ndarray]:
        """Rows of the pieces of each event; `sizes` are the numbers of primaries of the events, which follow one another."""
        primary = self.primary[self.deposit]
        order = np.argsort(primary, kind="stable")
        return np.split(order, np.searchsorted(primary[order], np.cumsum(sizes)[:-1]))


def cut_deposits(deposits: Any, branch: VoxelBranch, birks_mm_per_mev: float = 0.0, until_s: float = np.inf) -> Segments:
    """Cut the deposits of one calzone volume at the faces of voxels; energy is spread evenly along a step.

    Args:
        deposits: `result.deposits[volume]` of a simulation with `sample_deposits="detailed"`: lines (along steps) and points.
        branch: the voxels.
        birks_mm_per_mev: Birks' constant; the energy becomes dE / (1 + kB dE/dx) on every line (Birks, Proc. Phys. Soc. A64 (1951) 874).
        until_s: later deposits are left out, in seconds after the primary.
    """
    line, point = deposits.line, deposits.point
    line, point = line[line["time"][:, 0] < until_s], point[point["time"] < until_s]
    start, end = line["start"] * 10, line["end"] * 10
    energy = line["value"]
    if birks_mm_per_mev:
        energy = energy / (1 + birks_mm_per_mev * energy / np.maximum(np.linalg.norm(end - start, axis=1), 1e-6))
    position, piece_of, share = split_segments(start, end, branch)
    return Segments(
        np.concatenate([line["event"], point["event"]]).astype(np.int64),
        np.concatenate([line["tid"], point["tid"]]),
        np.concatenate([piece_of, np.arange(len(line), len(line) + len(point))]),
        np.concatenate([position, point["position"] * 10]),
        np.concatenate([energy[piece_of] * share, point["value"]]),
    )
