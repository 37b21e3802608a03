"""Windows of K voxels that follow one another along a curve, and attention inside them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .level import SparseLevel


@dataclass(frozen=True)
class WindowGroup:
    """Windows of one length.

    Attributes:
        rows: int64 (windows, length), rows of the level; at the padding of a short event, its first row.
        mask: bool (windows, length), False at padding; None: no padding.
    """

    rows: Tensor
    mask: Tensor | None


class CurveWindows:
    """The rows of a level in windows of `size` along a curve. No window holds rows of two events.

    An event with at least `size` voxels is cut from its start on, and its last window is its last `size` voxels: those that the window
    before holds too are keys in both, and their result is the one of the window before. An event with fewer voxels is one window, padded to
    the longest such event.

    Args:
        level: the voxels.
        curve, depth: see `SparseLevel.order`.
        size: voxels K of a window.

    Attributes:
        groups: full windows, and the windows of short events; each only if there are any.
        slot: int64 (N,), place of each row among all places of all windows, group by group.

    Raises:
        ValueError: a size below 1, or what `SparseLevel.order` refuses.
    """

    groups: tuple[WindowGroup, ...]
    slot: Tensor

    def __init__(self, level: SparseLevel, curve: str, depth: int, size: int):
        if size < 1:
            raise ValueError(f"size of a window must be at least 1; got {size}")
        order, counts = level.order(curve, depth), level.counts
        starts = counts.cumsum(0) - counts
        place = torch.arange(size, device=order.device)
        self.slot = torch.empty_like(order)
        groups: list[WindowGroup] = []

        windows = torch.where(counts >= size, -(-counts // size), 0)
        event = torch.repeat_interleave(windows)
        first = (torch.arange(len(event), device=order.device) - (windows.cumsum(0) - windows)[event]) * size
        along = (torch.minimum(first, counts[event] - size) + starts[event])[:, None] + place
        own = along >= (first + starts[event])[:, None]
        if len(event):
            rows = order[along]
            self.slot[rows[own]] = own.flatten().nonzero().squeeze(1)
            groups.append(WindowGroup(rows, None))

        short = ((counts > 0) & (counts < size)).nonzero().squeeze(1)
        if len(short):
            place = place[: int(counts[short].max())]
            mask = place < counts[short, None]
            rows = order[starts[short, None] + place * mask]
            self.slot[rows[mask]] = len(event) * size + mask.flatten().nonzero().squeeze(1)
            groups.append(WindowGroup(rows, mask))
        self.groups = tuple(groups)


def windowed_attention(query_key_value: Tensor, windows: CurveWindows, heads: int) -> Tensor:
    """Self-attention of the voxels of each window.

    Args:
        query_key_value: (N, 3 C): queries, keys and values of the rows, each split into `heads` parts.
        windows: of the level.
        heads: number of heads; divides C.

    Returns:
        (N, C).

    Raises:
        ValueError: features of another number of rows, or heads that do not divide C.
    """
    n, width = query_key_value.shape
    if n != len(windows.slot) or width % (3 * heads):
        raise ValueError(f"query_key_value must be ({len(windows.slot)}, 3 C) with C a multiple of {heads} heads; got {(n, width)}")
    if not n:
        return query_key_value[:, : width // 3]
    results = []
    for group in windows.groups:
        gathered = query_key_value.index_select(0, group.rows.flatten()).view(*group.rows.shape, 3, heads, -1)
        query, key, value = gathered.permute(2, 0, 3, 1, 4)
        mask = None if group.mask is None else group.mask[:, None, None, :]
        result = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        results.append(result.transpose(1, 2).reshape(-1, width // 3))
    return torch.cat(results).index_select(0, windows.slot)
