"""Raw hits and energy deposits to voxels, always in the same order and with the way back to each hit."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from nufm_hub.detectors import VoxelBranch

from .event import Voxels


def voxelise(
    positions: np.ndarray,
    values: np.ndarray,
    branch: VoxelBranch,
    labels: Mapping[str, np.ndarray] | None = None,
    instances: Mapping[str, np.ndarray] | None = None,
) -> Voxels:
    """Voxels of hits at positions in mm; see `merge_voxels` for how hits combine.

    Args:
        positions: (R, 3) mm, in the detector frame.
        values: (R,) or (R, C); column 0 is the energy in MeV.
        branch: the grid.
        labels, instances: as for `merge_voxels`.

    Raises:
        ValueError: a position is not finite or lies outside every voxel.
    """
    positions = np.asarray(positions, dtype=np.float64).reshape(-1, 3)
    coordinates, inside = branch.to_voxel(positions)
    if not inside.all():
        row = int(np.flatnonzero(~inside)[0])
        raise ValueError(
            f"branch {branch.name!r}: hit {row} at {positions[row].tolist()} mm lies outside every voxel ({int((~inside).sum())} of {len(inside)} "
            f"hits do); the branch spans {branch.bounds.tolist()} mm. Check units and frame, or drop such hits with branch.to_voxel first"
        )
    return merge_voxels(coordinates, values, branch, labels, instances)


def merge_voxels(
    coordinates: np.ndarray,
    values: np.ndarray,
    branch: VoxelBranch,
    labels: Mapping[str, np.ndarray] | None = None,
    instances: Mapping[str, np.ndarray] | None = None,
) -> Voxels:
    """One voxel for all hits of the same indices, sorted by x, then y, then z.

    Values add up. A label is the mean over the labelled hits of the voxel weighted with their energies (plain mean when they
    have none); an instance is the one with the largest energy in the voxel (the smaller id on a tie; -1 only when no hit has one).

    Args:
        coordinates: (R, 3) voxel indices.
        values: (R,) or (R, C); column 0 is the energy in MeV.
        branch: the grid.
        labels: name -> (R, K) shares; unlabelled hits hold zeros (NaN where K = 1).
        instances: name -> (R,) ids, -1 for none.

    Returns:
        Voxels with `voxel_of_hit` (R,): `prediction[voxels.voxel_of_hit]` takes a per-voxel prediction to the hits.

    Raises:
        ValueError: indices outside the grid, or arrays of different lengths.
    """
    coordinates = np.asarray(coordinates, dtype=np.int64).reshape(-1, 3)
    values = np.asarray(values, dtype=np.float64)
    values = values[:, None] if values.ndim == 1 else values
    labels = {k: a[:, None] if (a := np.asarray(v, dtype=np.float64)).ndim == 1 else a for k, v in (labels or {}).items()}
    instances = {k: np.asarray(v, dtype=np.int64) for k, v in (instances or {}).items()}
    lengths = {"coordinates": len(coordinates), "values": len(values)} | {k: len(v) for k, v in {**labels, **instances}.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"branch {branch.name!r}: arrays of hits differ in length: {lengths}")
    outside = ((coordinates < 0) | (coordinates >= np.asarray(branch.shape))).any(axis=1)
    if outside.any():
        row = int(np.flatnonzero(outside)[0])
        raise ValueError(f"branch {branch.name!r}: hit {row} has voxel indices {coordinates[row].tolist()} outside the grid {branch.shape}")
    keys, voxel = np.unique(np.ravel_multi_index(coordinates.T, branch.shape), return_inverse=True)
    n, energy = len(keys), values[:, 0]
    return Voxels(
        np.stack(np.unravel_index(keys, branch.shape), axis=1),
        np.stack([np.bincount(voxel, c, n) for c in values.T], axis=1),
        {name: _mean_label(shares, voxel, energy, n) for name, shares in labels.items()},
        {name: _main_instance(ids, voxel, energy, n) for name, ids in instances.items()},
        voxel.astype(np.int32),
    )


def _mean_label(shares: np.ndarray, voxel: np.ndarray, energy: np.ndarray, n: int) -> np.ndarray:
    binary = shares.shape[1] == 1
    labelled = np.isfinite(shares[:, 0]) if binary else shares.any(axis=1)
    voxel, shares, weight = voxel[labelled], shares[labelled], energy[labelled]
    # Where the labelled hits of a voxel carry no energy, each counts the same.
    empty = np.bincount(voxel, weight, n) <= 0
    weight = np.where(empty[voxel], 1.0, weight)
    total = np.bincount(voxel, weight, n)
    sums = np.stack([np.bincount(voxel, weight * column, n) for column in shares.T], axis=1)
    unlabelled = np.nan if binary else 0.0
    return np.where(total[:, None] > 0, sums / np.where(total > 0, total, 1.0)[:, None], unlabelled)


def _main_instance(ids: np.ndarray, voxel: np.ndarray, energy: np.ndarray, n: int) -> np.ndarray:
    main = np.full(n, -1, dtype=np.int32)
    held = ids >= 0
    if held.any():
        # One number a pair: sorting rows takes ten times as long.
        names, name = np.unique(ids[held], return_inverse=True)
        pairs, of_pair = np.unique(voxel[held] * len(names) + name, return_inverse=True)
        sums = np.bincount(of_pair, energy[held], len(pairs))
        place, name = np.divmod(pairs, len(names))
        order = np.lexsort((-name, sums, place))  # the last pair of each voxel wins
        main[place[order]] = names[name[order]]
    return main


def split_segments(starts: np.ndarray, ends: np.ndarray, branch: VoxelBranch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cut straight segments where they cross the faces of voxels, so that each piece lies in one voxel or in none.

    Args:
        starts, ends: (S, 3) mm.
        branch: the grid.

    Returns:
        Midpoints (Q, 3) in mm, the segment of each piece (Q,), and the piece's share of the segment's length (Q,). A segment of no
        length is one piece.
    """
    starts, ends = (np.asarray(a, dtype=np.float64).reshape(-1, 3) for a in (starts, ends))
    n = len(starts)
    # Where along its segment each cut is, from 0 to 1, with both ends.
    segments, cuts = [np.arange(n), np.arange(n)], [np.zeros(n), np.ones(n)]
    for axis in range(3):
        faces = np.unique(np.concatenate(layer_edges(branch, axis)))
        low, high = np.minimum(starts[:, axis], ends[:, axis]), np.maximum(starts[:, axis], ends[:, axis])
        first = np.searchsorted(faces, low, side="right")
        count = np.maximum(np.searchsorted(faces, high, side="left") - first, 0)
        segment = np.repeat(np.arange(n), count)
        face = faces[first[segment] + np.arange(len(segment)) - np.repeat(np.cumsum(count) - count, count)]
        segments.append(segment)
        cuts.append((face - starts[segment, axis]) / (ends - starts)[segment, axis])
    segment, cut = np.concatenate(segments), np.concatenate(cuts)
    order = np.lexsort((cut, segment))
    segment, cut = segment[order], cut[order]
    same = segment[1:] == segment[:-1]
    segment, share, middle = segment[1:][same], np.diff(cut)[same], (0.5 * (cut[1:] + cut[:-1]))[same]
    keep = share > 0  # faces met at once, on edges and corners, leave pieces of nothing
    segment, share, middle = segment[keep], share[keep], middle[keep]
    return starts[segment] + middle[:, None] * (ends - starts)[segment], segment, share


def layer_edges(branch: VoxelBranch, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Low and high edge in mm of every layer of voxels along an axis."""
    index = np.zeros((branch.shape[axis], 3), dtype=np.int64)
    index[:, axis] = np.arange(branch.shape[axis])
    centre, half = branch.to_mm(index)[:, axis], branch.voxel_size[axis] / 2
    return centre - half, centre + half
