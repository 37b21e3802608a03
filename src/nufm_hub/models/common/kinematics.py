"""Momenta as a network sees them: scales from training events, normalised cylindrical coordinates, and losses.

A momentum p (GeV) is the vector `log1p(pT / T) (px, py) / pT` and the number `(sign(pz) log1p(|pz| / k) - mean) / std`: direction and
size of the transverse part in a form that turns with it and has no seam or pole, and a logarithm that spans MeV to TeV.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

MOMENTA = ("visible", "jet", "lepton")
# Largest normalised logarithm that is expanded: keeps a stray prediction finite in float32.
_MAX_LOG = 20.0
# A relative error is taken with respect to at least this share of the scale, as the true value may be zero (no missing momentum).
_PT_FLOOR, _P_FLOOR = 0.5, 0.1
# Directions: true transverse momenta below this share of the scale have none; predicted ones below have it by degrees.
_DIRECTION_FLOOR = 0.1
_ROUND = 0.1  # errors of logarithms below are squared


def fit_momentum_scales(momenta: Mapping[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Robust scales of momenta by name, each (N, 3) GeV; names without rows are left out.

    Returns:
        name -> `transverse`, `longitudinal`: scale of px and py together, and of pz, in GeV (1.4826 times the median absolute deviation
        from the median, or a tenth of the standard deviation where that is larger: most events have no missing momentum);
        `k` (GeV), `mean`, `std`: of the logarithm of pz.
    """
    scales = {}
    for name, p in momenta.items():
        if not len(p):
            continue
        p = np.asarray(p, dtype=np.float64)
        logs = np.sign(p[:, 2]) * np.log1p(np.abs(p[:, 2]) / (k := max(float(np.median(np.abs(p[:, 2]))), 1e-3)))
        scales[name] = {
            "transverse": _robust_scale(p[:, :2].ravel()),
            "longitudinal": _robust_scale(p[:, 2]),
            "k": k,
            "mean": float(logs.mean()),
            "std": max(float(logs.std()), 1e-3),
        }
    return scales


def _robust_scale(values: np.ndarray) -> float:
    deviation = 1.4826 * np.median(np.abs(values - np.median(values)))
    return float(max(deviation, 0.1 * values.std(), 1e-3))


def check_momentum_scales(scales: Mapping[str, Any] | None, names: Iterable[str] = MOMENTA) -> dict[str, dict[str, float]]:
    """The scales of some momenta, checked.

    Raises:
        ValueError: a scale is missing, not finite or, `mean` apart, not positive.
    """
    for name in names:
        held = (scales or {}).get(name)
        if held is None:
            raise ValueError(
                f"there are no scales of the {name} momentum: pass momentum_scales=processor.momentum_scales of a processor fitted on events "
                "that carry visible_momentum and jet_momentum"
            )
        for key in ("transverse", "longitudinal", "k", "mean", "std"):
            value = held.get(key)
            if not isinstance(value, (int, float)) or not np.isfinite(value) or (key != "mean" and value <= 0):
                raise ValueError(f"the scale {key}={value!r} of the {name} momentum must be a finite number, positive but for the mean; fit again")
    return {name: dict(scales[name]) for name in names}  # type: ignore[index]


def from_cylindrical(coordinates: Tensor, scales: Mapping[str, float]) -> Tensor:
    """Normalised cylindrical coordinates (B, 3) -> momentum (B, 3), GeV."""
    coordinates = coordinates.float()
    flat, along = coordinates[:, :2], coordinates[:, 2:]
    size = torch.linalg.vector_norm(flat, dim=1, keepdim=True).clamp(1e-6, _MAX_LOG)
    logs = (scales["mean"] + scales["std"] * along).clamp(-_MAX_LOG, _MAX_LOG)
    transverse = flat * (scales["transverse"] * torch.expm1(size) / size)
    return torch.cat([transverse, scales["k"] * torch.sign(logs) * torch.expm1(logs.abs())], dim=1)


def to_cylindrical(momentum: Tensor, scales: Mapping[str, float]) -> Tensor:
    """Momentum (B, 3), GeV -> normalised cylindrical coordinates (B, 3); inverse of `from_cylindrical`."""
    flat, along = momentum[:, :2], momentum[:, 2:]
    size = torch.linalg.vector_norm(flat, dim=1, keepdim=True)
    transverse = flat * torch.where(size > 0, torch.log1p(size / scales["transverse"]) / size.clamp(min=1e-30), 1 / scales["transverse"])
    logs = torch.sign(along) * torch.log1p(along.abs() / scales["k"])
    return torch.cat([transverse, (logs - scales["mean"]) / scales["std"]], dim=1)


def momentum_loss(predicted: Tensor, true: Tensor, scales: Mapping[str, float], known: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Loss of momenta (B, 3), GeV, after arXiv:2604.07037: of each event, (B,), and which events are scored, bool (B,).

    It has four parts with equal weight:

    - Huber loss (delta 1) of each component over its robust scale, summed over components;
    - Huber loss of the relative error of |p|, and of that of pT, the truth in the denominator being at least a share of the scale;
    - 1 - cosine of the angle in the transverse plane, where the true pT has a direction.

    Args:
        true: rows with a NaN are not scored.
        known: bool (B,), False for further events not to score.
    """
    scored = ~true.isnan().any(dim=1)
    if known is not None:
        scored = scored & known
    true = torch.where(scored[:, None], true.to(predicted.dtype), 0.0)
    transverse, longitudinal = scales["transverse"], scales["longitudinal"]
    unit = predicted.new_tensor([transverse, transverse, longitudinal])
    components = _huber((predicted - true) / unit).sum(dim=1)
    relative = _relative(predicted, true, _P_FLOOR * longitudinal) + _relative(predicted[:, :2], true[:, :2], _PT_FLOOR * transverse)
    return components + relative + _turned(predicted, true, _DIRECTION_FLOOR * transverse), scored


def log_momentum_loss(predicted: Tensor, true: Tensor, scales: Mapping[str, float], known: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Loss of logarithms of momenta (B, 3), GeV; arguments and results as of `momentum_loss`.

    The sum of the absolute errors, round at zero, of the logarithm of pz in its spread and of log1p(pT / `transverse`), and of 1 - cosine
    of the angle in the transverse plane, where the true pT has a direction. Errors count by their ratio, so that sizes come out right in the
    median over decades; and pT is its own term, so that a size is learnt even where the direction cannot be told, where an error of
    components is least at zero.
    """
    scored = ~true.isnan().any(dim=1)
    if known is not None:
        scored = scored & known
    true = torch.where(scored[:, None], true.to(predicted.dtype), 0.0)
    (flat, along), (true_flat, true_along) = (to_cylindrical(p, scales).split([2, 1], dim=1) for p in (predicted, true))
    size, true_size = (torch.linalg.vector_norm(p, dim=1) for p in (flat, true_flat))
    sizes = _absolute(size - true_size) + _absolute((along - true_along).squeeze(1))
    return sizes + _turned(predicted, true, _DIRECTION_FLOOR * scales["transverse"]), scored


def _turned(predicted: Tensor, true: Tensor, floor: float) -> Tensor:
    """1 - cosine of the angle in the transverse plane (B,); 0 where the true pT is at most `floor`."""
    size = torch.linalg.vector_norm(true[:, :2], dim=1)
    predicted_size = (predicted[:, :2].square().sum(dim=1) + floor**2).sqrt()  # smooth at zero, where training starts
    cosine = (predicted[:, :2] * true[:, :2]).sum(dim=1) / (predicted_size * size.clamp(min=floor))
    return torch.where(size > floor, 1 - cosine, 0.0)


def _absolute(error: Tensor) -> Tensor:
    return F.smooth_l1_loss(error, torch.zeros_like(error), reduction="none", beta=_ROUND)


def _huber(error: Tensor) -> Tensor:
    return F.huber_loss(error, torch.zeros_like(error), reduction="none")


def _relative(predicted: Tensor, true: Tensor, floor: float) -> Tensor:
    size = torch.linalg.vector_norm(true, dim=1)
    return _huber((torch.linalg.vector_norm(predicted, dim=1) - size) / size.clamp(min=floor))


MOMENTUM_LOSSES = {"relative": momentum_loss, "logarithmic": log_momentum_loss}


class TaskWeights(nn.Module):
    """Learnable weights w of summed losses, `w_min + (w_max - w_min) sigmoid(u)`.

    The sum is of `w L - log(w) / 2`, which is `exp(-2 s) L + s` of arXiv:1705.07115 with w = exp(-2 s): without the logarithm every
    weight would fall to its bound. The logarithm counts as much as the share of events that a loss could score: one that had nothing to
    score leaves its weight alone, and parts of a batch add up to the whole.

    Args:
        start: w of each loss at the start, by name.
    """

    minimum, maximum = 0.01, 5.0

    def __init__(self, start: Mapping[str, float]):
        super().__init__()
        self.start = dict(start)
        for name in start:
            self.register_parameter(name, nn.Parameter(torch.empty(())))  # u

    def start_logit(self, name: str) -> float:
        """u of a loss at the start."""
        return float(np.log((self.start[name] - self.minimum) / (self.maximum - self.start[name])))

    def weights(self) -> dict[str, Tensor]:
        """w of each loss by name."""
        return {name: self.minimum + (self.maximum - self.minimum) * torch.sigmoid(u) for name, u in self.named_parameters()}

    def forward(self, losses: Mapping[str, Tensor], shares: Mapping[str, Tensor]) -> Tensor:
        """Losses of all names, and the share of events that each has scored -> their weighted sum."""
        return torch.stack([w * losses[name] - 0.5 * shares[name] * w.log() for name, w in self.weights().items()]).sum()
