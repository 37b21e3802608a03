"""From Geant4 steps to voxels."""

from __future__ import annotations

import numpy as np

from nufm_hub.detectors import VoxelBranch

PIECES_PER_VOXEL = 5


def split_steps(start: np.ndarray, end: np.ndarray, module: np.ndarray, branch: VoxelBranch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cut steps into pieces no longer than a fifth of a voxel, and find the voxel of each piece.

    Args:
        start, end: (D, 3) mm, both inside the block `module`.
        module: (D,) block along the branch's z axis.
        branch: voxels in blocks along z.

    Returns:
        voxel: (K,) flat index (x slowest) of each piece.
        step: (K,) row of its step.
        share: (K,) share of the step, adding up to 1 for each step.
    """
    piece = min(branch.voxel_size) / PIECES_PER_VOXEL
    pieces = np.maximum(1, np.ceil(np.linalg.norm(end - start, axis=1) / piece).astype(np.int64))
    step = np.repeat(np.arange(len(start)), pieces)
    number = np.arange(len(step)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    share = 1.0 / pieces[step]
    place = start[step] + (end - start)[step] * ((number + 0.5) * share)[:, None]
    low = np.array([branch.origin[0], branch.origin[1], 0.0])
    index = place - low
    index[:, 2] -= np.asarray(branch.blocks.starts)[module[step]]
    index = np.floor(index / branch.voxel_size).astype(np.int64)
    # Rounding can put a piece a hair outside the block that Geant4 says it is in.
    depth = branch.blocks.length
    index = np.clip(index, 0, [branch.shape[0] - 1, branch.shape[1] - 1, depth - 1])
    index[:, 2] += depth * module[step]
    return np.ravel_multi_index(tuple(index.T), branch.shape), step, share
