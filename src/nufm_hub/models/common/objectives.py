"""What pre-training hides and how it scores: masks, and losses as plain functions of tensors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_LEAST_DISTANCE = 1e-3  # in spreads of the vertices: keeps the gradient of a distance finite at zero


def uniform(count: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
    """Uniform float32 (count,) on a device, drawn where the generator lives."""
    return torch.rand(count, generator=generator, device=device if generator is None else generator.device).to(device)


def visible_patches(window: Tensor, windows: int, mask_ratio: float, generator: torch.Generator | None) -> Tensor:
    """Which patches of each window stay visible, bool (P,).

    A window of n occupied patches hides `mask_ratio * n` of them on average: the number is rounded up or down at random, without bias.
    A window of two or more keeps at least one and hides at least one; a lone patch stays.

    Args:
        window: int64 (P,), window of each occupied patch, counted over all events.
        windows: number of windows in all.
        mask_ratio: share to hide; 0 hides nothing.
    """
    if mask_ratio == 0:
        return torch.ones_like(window, dtype=torch.bool)
    counts = torch.bincount(window, minlength=windows)
    kept = (counts * (1 - mask_ratio) + uniform(windows, window.device, generator)).floor().long()
    kept = torch.minimum(kept, counts - 1).clamp(min=1)
    order = torch.argsort(window.double() + uniform(len(window), window.device, generator).double())
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(window), device=window.device) - (counts.cumsum(0) - counts)[window[order]]
    return rank < kept[window]


def near_hits(hits: Tensor, distance: int) -> Tensor:
    """Voxels at most `distance` away from a hit along every axis of the patch, for bool (P, x, y, z) in any order of the axes."""
    near = hits.clone()
    for axis in (1, 2, 3):
        seen, size = near.clone(), near.shape[axis]
        for step in range(1, min(distance, size - 1) + 1):
            near.narrow(axis, step, size - step).logical_or_(seen.narrow(axis, 0, size - step))
            near.narrow(axis, 0, size - step).logical_or_(seen.narrow(axis, step, size - step))
    return near


def mean(values: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean, or weighted mean; 0 (with gradients of 0) when there is nothing."""
    if weights is None:
        return values.sum() / max(values.numel(), 1)
    return (values * weights).sum() / weights.sum().clamp(min=torch.finfo(values.dtype).tiny)


def occupancy_loss(logits: Tensor, hit: Tensor, gamma: float, smoothing: float, empty_weight: float) -> Tensor:
    """Focal binary cross-entropy (arXiv:1708.02002) with label smoothing; weighted mean, empty voxels count `empty_weight`.

    `smoothing` moves the targets 1 and 0 to `1 - smoothing / 2` and `smoothing / 2`; the focusing factor is `(1 - p)^gamma` with p the
    probability of the true state.
    """
    margin = torch.where(hit, logits, -logits)
    right = F.softplus(-margin)  # -log p
    wrong = right + margin  # -log(1 - p)
    loss = (right + 0.5 * smoothing * margin) * torch.exp(-gamma * wrong)
    return mean(loss, torch.where(hit, 1.0, empty_weight).to(loss.dtype))


def huber_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean Huber loss, delta 1."""
    return mean(F.huber_loss(predicted, target.to(predicted.dtype), reduction="none"))


def event_mean(values: Tensor, scored: Tensor) -> Tensor:
    """Sum of the values (B,) of the events that are scored, bool (B,), over the number of all events.

    Equal parts of a batch then average to the whole batch, whichever part the scored events are in: what gradient accumulation and
    several processes need.
    """
    return torch.where(scored, values, 0.0).sum() / max(len(values), 1)


def mean_by_event(values: Tensor, scored: Tensor, event: Tensor, events: int) -> Tensor:
    """`event_mean` of the mean over the scored rows (n,) of each event; `event` int64 (n,) is the event of a row."""
    count = torch.bincount(event[scored], minlength=events)
    total = values.new_zeros(events).index_add(0, event, torch.where(scored, values, 0.0))
    return event_mean(total / count.clamp(min=1), count > 0)


def vertex_loss(predicted: Tensor, vertex: Tensor, focus: float | None = None) -> tuple[Tensor, Tensor]:
    """Distance of each event in the units of (B, 3) positions, float (B,), and whether its vertex is known, bool (B,); NaN: unknown coordinate.

    A squared error, as published, would end up with next to no gradient beside the other losses long before the vertex is found. With a
    `focus` the loss is log(1 + distance / focus), for which half a distance is worth the same wherever it starts from, down to the focus.
    """
    known = ~vertex.isnan()
    difference = torch.where(known, predicted - vertex.to(predicted.dtype).nan_to_num(), 0.0)
    distance = (difference.square().sum(dim=1) + _LEAST_DISTANCE**2).sqrt()
    return distance if focus is None else (distance / focus).log1p(), known.any(dim=1)


def label_loss(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each row, (n,), binary for one class, else against the shares of each class; and which are labelled, bool (n,).

    Args:
        logits: (n, K).
        labels: (n, K) shares or a probability. A row with a negative number or NaN, or of several classes and all zero, is unlabelled.
    """
    labels = labels.nan_to_num(nan=-1.0)
    labelled = (labels >= 0).all(dim=1)
    if logits.shape[1] == 1:
        loss = F.binary_cross_entropy_with_logits(logits, labels.clamp(0, 1).to(logits.dtype), reduction="none").squeeze(1)
    else:
        labelled = labelled & (labels.sum(dim=1) > 0)
        shares = labels.clamp(min=0).to(logits.dtype)
        loss = -(shares * logits.log_softmax(dim=1)).sum(dim=1) / shares.sum(dim=1).clamp(min=1e-6)
    return loss, labelled
