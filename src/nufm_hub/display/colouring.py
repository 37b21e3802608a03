"""What colour a voxel gets: its energy, or a class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from nufm_hub.detectors import DetectorSpec, VoxelBranch, VoxelLabel
from nufm_hub.events import Event, Voxels

# Okabe and Ito, "Color Universal Design" (2008): told apart by colour-blind readers.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5195", "#8C6D31")
NO_CLASS = "#B5B5B5"
# Open symbols, because what happens at the vertex is what one wants to see.
MARKS = {"true vertex": ("circle", "#E3001B"), "true start": ("circle", "#E3001B"), "predicted vertex": ("square", "#D100D1")}
# Of the largest energy: what is below is drawn in the colour of the lower end.
DYNAMIC_RANGE = 1e-4
INSTANCE, PREDICTED = "instance:", "predicted:"


@dataclass(frozen=True)
class Colouring:
    """Values of N voxels, either continuous or of a class.

    Attributes:
        title: what the colours mean.
        values: float (N,), or class indices int (N,) when `classes` is set.
        classes: class names; empty for continuous values.
        colours: one a class.
        is_energy: continuous values are energies: shown on a logarithmic scale and summed in projections.
    """

    title: str
    values: np.ndarray
    classes: tuple[str, ...] = ()
    colours: tuple[str, ...] = ()
    is_energy: bool = False


def colour_choices(spec: DetectorSpec) -> list[str]:
    """What `colour_by` can be for a detector."""
    choices: list[str] = ["energy"]
    for branch in spec.voxel_branches:
        labels = [label.name for label in branch.labels]
        choices += [*branch.channels[1:], *labels, *(INSTANCE + name for name in branch.instances), *(PREDICTED + name for name in labels)]
    return list(dict.fromkeys(choices))


def colour_voxels(event: Event, branch: VoxelBranch, spec: DetectorSpec, colour_by: str, prediction: Mapping[str, Any]) -> Colouring:
    """Colours of the voxels of a branch; energies for a branch that does not know `colour_by`.

    Raises:
        ValueError: no branch of the detector knows `colour_by`, or this one does and the event does not carry it.
    """
    if colour_by not in colour_choices(spec):
        raise ValueError(f"cannot colour by {colour_by!r}: {spec.name!r} has {colour_choices(spec)}")
    voxels = event.voxels[branch.name]
    label = next((x for x in branch.labels if x.name == colour_by.removeprefix(PREDICTED)), None)
    if label is not None and colour_by.startswith(PREDICTED):
        return _label_classes(label, _predicted_shares(event, branch, label, prediction), f"predicted {label.name}")
    if label is not None:
        return _label_classes(label, _carried(event, branch, voxels.labels, colour_by), f"true {label.name}")
    name = colour_by.removeprefix(INSTANCE)
    if colour_by.startswith(INSTANCE) and name in branch.instances:
        return _instance_classes(_carried(event, branch, voxels.instances, name), voxels, name)
    if colour_by in branch.channels[1:]:
        return Colouring(colour_by, voxels.values[:, branch.channels.index(colour_by)])
    return Colouring("energy [MeV]", voxels.energy, is_energy=True)


def _carried(event: Event, branch: VoxelBranch, held: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    if name not in held:
        raise ValueError(f"{event}, branch {branch.name!r}: the event does not carry {name!r}; it has {sorted(held)}")
    return held[name]


def _label_classes(label: VoxelLabel, shares: np.ndarray, title: str) -> Colouring:
    """The most probable class of each voxel; a binary label above one half."""
    if label.is_binary:
        names = (label.classes[0], f"not {label.classes[0]}")
        codes = np.where(shares[:, 0] > 0.5, 0, 1)
        unlabelled = np.isnan(shares[:, 0])
    else:
        names = label.classes
        codes = shares.argmax(1) if len(shares) else np.zeros(0, dtype=np.int64)
        unlabelled = ~(shares > 0).any(1)
    codes = np.where(unlabelled, len(names), codes)
    colours = tuple(PALETTE[i % len(PALETTE)] for i in range(len(names)))
    return Colouring(title, codes, (*names, "unlabelled"), (*colours, NO_CLASS))


def _instance_classes(ids: np.ndarray, voxels: Voxels, name: str) -> Colouring:
    """The instances of highest energy get a colour of their own, the others share one."""
    present, inverse = np.unique(ids, return_inverse=True)
    energies = np.bincount(inverse, weights=voxels.energy, minlength=len(present))
    ranked = [i for i in np.argsort(-energies, kind="stable") if present[i] >= 0]
    own, rest = ranked[: len(PALETTE)], ranked[len(PALETTE) :]
    code_of = np.full(len(present), len(own) + 1)
    code_of[rest] = len(own)
    code_of[own] = np.arange(len(own))
    classes = (*(f"{name} {present[i]}" for i in own), f"{len(rest)} others", "none")
    return Colouring(f"{name} (by energy)", code_of[inverse], classes, (*PALETTE[: len(own)], "#444444", NO_CLASS))


def _predicted_shares(event: Event, branch: VoxelBranch, label: VoxelLabel, prediction: Mapping[str, Any]) -> np.ndarray:
    """The label's columns of `prediction["voxels"][branch]`, per raw hit or per voxel, as (N, K) per voxel."""
    voxels = event.voxels[branch.name]
    if branch.name not in prediction.get("voxels", {}):
        raise ValueError(f"colouring by {PREDICTED}{label.name} needs prediction['voxels'][{branch.name!r}]")
    given = np.asarray(prediction["voxels"][branch.name], dtype=np.float64)
    widths = [len(x.classes) for x in branch.labels]
    hits = voxels.voxel_of_hit
    rows = {len(voxels)} | ({len(hits)} if hits is not None else set())
    if given.ndim != 2 or given.shape[1] != sum(widths) or len(given) not in rows:
        raise ValueError(f"predicted voxels of {branch.name!r} have shape {given.shape}, not ({' or '.join(map(str, sorted(rows)))}, {sum(widths)})")
    if len(given) != len(voxels):  # all hits of a voxel carry the prediction of the voxel; one without a hit stays unlabelled
        per_voxel = np.full((len(voxels), given.shape[1]), np.nan)
        per_voxel[hits] = given
        given = per_voxel
    start = sum(widths[: branch.labels.index(label)])
    shares = given[:, start : start + widths[branch.labels.index(label)]]
    return shares if label.is_binary else np.nan_to_num(shares)
