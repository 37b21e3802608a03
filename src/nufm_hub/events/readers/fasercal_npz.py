"""FASERCal events of the authors of arXiv:2604.07037: one `.npz` file an event."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nufm_hub.detectors import DetectorSpec, load_detector

from ..event import Event, Voxels
from .common import Format, OnBad, SingleEventFile, read_format

# Columns of `true_hits`.
_TRACK, _PARENT, _PRIMARY, _PDG = 0, 1, 2, 3
_IS_PRIMARY, _IS_SECONDARY = 9, 10
_ELECTROMAGNETIC_PDG = (22, 11, 111, 221, 331)
_TAU_MODE_ELECTRON, _TAU_MODE_MUON = 1, 2


def read_fasercal_npz(source: str | Path | Sequence[str | Path], on_bad: OnBad | None = None) -> Iterator[Event]:
    """Events of the `fasercal` detector from a `.npz` file, a folder of them, or a list of these.

    Voxel labels are shares of the true energy: `ghost` (a voxel without true deposit, matched or not), `hierarchy` (the track
    is a primary, the child of one, or other) and `category` (electromagnetic: gamma, e, pi0, eta, eta'; muon; hadron:
    everything else; a tau counts as its decay mode). Files without `muspec_info`, `ahcal_hits` or `ecal_hits` are events
    without that sub-detector. `provenance` holds the run as seed and the event number as index.

    Args:
        source: where the files are.
        on_bad: called with the error of an unreadable event, which is then skipped; None raises it.

    Raises:
        ValueError: names the file, the array and what is wrong with it.
    """
    return read_format(FASERCAL_NPZ, source, load_detector("fasercal"), on_bad)


class _NpzFile(SingleEventFile):
    def event(self, index: int) -> Event:
        try:
            with np.load(self._path, allow_pickle=False) as arrays:
                return _event(_Arrays(arrays), self._spec)
        except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"is not a readable npz file (truncated, or of another format): {error}") from error


class _Arrays:
    """Arrays of a file with their shapes checked; a dimension of -1 may have any length."""

    def __init__(self, arrays: Any) -> None:
        self._arrays = arrays

    def __contains__(self, name: str) -> bool:
        return name in self._arrays

    def get(self, name: str, *shape: int) -> np.ndarray:
        if name not in self:
            raise ValueError(f"array {name!r} is missing")
        try:
            array = self._arrays[name]
        except ValueError as error:
            raise ValueError(f"array {name!r} cannot be read without unpickling, which is refused: {error}") from error
        if array.ndim != len(shape) or any(want not in (-1, have) for want, have in zip(shape, array.shape)):
            raise ValueError(f"array {name!r} has shape {array.shape}, not {tuple('any' if n < 0 else n for n in shape)}")
        return array

    def scalar(self, name: str) -> Any:
        return self.get(name).item()


def _event(a: _Arrays, spec: DetectorSpec) -> Event:
    calorimeter, ahcal = spec.voxel_branches
    event = Event("fasercal", provenance={"generator": "faserDL", "seed": int(a.scalar("run_number")), "index": int(a.scalar("event_id"))})
    hits = a.get("reco_hits", -1, 6)
    true_hits = a.get("true_hits", -1, 13)
    tau_mode = int(a.scalar("tau_decay_mode")) if "tau_decay_mode" in a and bool(a.scalar("is_tau")) else 0
    event.voxels[calorimeter.name] = Voxels(
        _indices(hits[:, :3], "reco_hits"), hits[:, 4], _voxel_labels(a, len(hits), hits[:, 5], true_hits, tau_mode)
    )
    if "ahcal_hits" in a:
        deposits = a.get("ahcal_hits", -1, 4)
        event.voxels[ahcal.name] = Voxels(_indices(deposits[:, :3], "ahcal_hits"), deposits[:, 3])
    if "ecal_hits" in a:
        event.images[spec.image_branch.name] = a.get("ecal_hits", *spec.image_branch.shape).astype(np.float32)
    if "muspec_info" in a:
        features = len(spec.track_branch.features)
        info = a.get("muspec_info", -1) if a._arrays["muspec_info"].ndim == 1 else a.get("muspec_info", features, -1)
        if info.ndim == 1 and info.size:
            raise ValueError(f"array 'muspec_info' has shape {info.shape}, not ({features}, tracks)")
        event.tracks[spec.track_branch.name] = info.reshape(features, -1).T.astype(np.float32)
    event.truth = _truth(a, spec, tau_mode)
    ids, first = np.unique(true_hits[:, _TRACK].astype(np.int32), return_index=True)
    event.particles = {"id": ids, "parent": true_hits[first, _PARENT].astype(np.int32), "pdg": true_hits[first, _PDG].astype(np.int32)}
    return event


def _indices(values: np.ndarray, name: str) -> np.ndarray:
    rounded = np.rint(values)
    if not np.array_equal(rounded, values):
        row = int(np.flatnonzero((rounded != values).any(axis=1))[0])
        raise ValueError(f"array {name!r}, row {row}: {values[row].tolist()} are not voxel indices")
    return rounded.astype(np.int64)


def _voxel_labels(a: _Arrays, n: int, flag: np.ndarray, true_hits: np.ndarray, tau_mode: int) -> dict[str, np.ndarray]:
    indptr = a.get("indptr", n + 1).astype(np.int64)
    true_index = a.get("true_index", -1).astype(np.int64)
    weight = a.get("link_weight", len(true_index))
    if indptr[0] != 0 or indptr[-1] != len(true_index) or (np.diff(indptr) < 0).any():
        raise ValueError(f"array 'indptr' runs from {indptr[0]} to {indptr[-1]}, not rising from 0 to the {len(true_index)} rows of 'true_index'")
    if len(true_index) and not 0 <= true_index.min() <= true_index.max() < len(true_hits):
        raise ValueError(f"array 'true_index' points to rows {true_index.min()}..{true_index.max()} of 'true_hits', which has {len(true_hits)}")
    voxel = np.repeat(np.arange(n), np.diff(indptr))
    linked = true_hits[true_index]
    hierarchy = np.where(linked[:, _IS_PRIMARY] > 0, 1, np.where(linked[:, _IS_SECONDARY] > 0, 2, 0))
    ghost = (a.get("ghost_mask", n).astype(bool) | (flag != 0)).astype(np.float32)
    return {
        "ghost": ghost,
        "hierarchy": _shares(hierarchy, weight, voxel, n),
        "category": _shares(_category(linked[:, _PDG].astype(np.int64), tau_mode), weight, voxel, n),
    }


def _category(pdg: np.ndarray, tau_mode: int) -> np.ndarray:
    """0 electromagnetic, 1 muon, 2 hadron, for PDG codes (E,)."""
    pdg = np.abs(pdg)
    electromagnetic = np.isin(pdg, _ELECTROMAGNETIC_PDG) | ((pdg == 15) & (tau_mode == _TAU_MODE_ELECTRON))
    muon = (pdg == 13) | ((pdg == 15) & (tau_mode == _TAU_MODE_MUON))
    return np.where(electromagnetic, 0, np.where(muon, 1, 2))


def _shares(classes: np.ndarray, weight: np.ndarray, voxel: np.ndarray, n: int) -> np.ndarray:
    sums = np.bincount(voxel * 3 + classes, weight, 3 * n).reshape(n, 3)
    total = sums.sum(axis=1, keepdims=True)
    return sums / np.where(total > 0, total, 1.0)


def _truth(a: _Arrays, spec: DetectorSpec, tau_mode: int) -> dict[str, Any]:
    is_cc, neutrino = bool(a.scalar("is_cc")), int(a.scalar("in_neutrino_pdg"))
    truth: dict[str, Any] = {
        "is_cc": is_cc,
        "neutrino_pdg": neutrino,
        "neutrino_momentum": a.get("in_neutrino_momentum", 3).astype(np.float64),
        "visible_momentum": a.get("vis_sp_momentum", 3).astype(np.float64),
        "jet_momentum": a.get("jet_momentum", 3).astype(np.float64),
        "vertex": a.get("primary_vertex", 3).astype(np.float64),
        "tau_decay_mode": tau_mode,
    }
    # The visible part of a tau is what the detector sees of it; a neutral current has no charged lepton.
    lepton = "tau_vis_momentum" if abs(neutrino) == 16 else "out_lepton_momentum"
    truth["lepton_momentum"] = a.get(lepton, 3).astype(np.float64) if is_cc else np.zeros(3)
    if tau_mode and "tau_decay_length" in a:
        truth["tau_decay_length"] = float(a.scalar("tau_decay_length"))
    # Scattering on electrons is neither of the six flavours.
    if not ("is_es" in a and bool(a.scalar("is_es"))) and (flavour := _flavour(is_cc, neutrino, tau_mode)) is not None:
        truth["flavour"] = spec.classes("flavour").index(flavour)
    if not bool(a.scalar("is_charmed")):
        truth |= {"charm": spec.classes("charm").index("none"), "charm_pdg": 0}
    elif "charm_decay" in a:
        products = a.get("charm_decay", -1)
        pdg = np.abs(products["pdg"] if products.dtype.names else products)
        truth["charm"] = spec.classes("charm").index("charm_mu" if 13 in pdg else "charm_e" if 11 in pdg else "charm_had")
    return truth


def _flavour(is_cc: bool, neutrino: int, tau_mode: int) -> str | None:
    if not is_cc:
        return "nc"
    if abs(neutrino) == 16:
        if not tau_mode:
            return None
        return {_TAU_MODE_ELECTRON: "nutau_cc_e", _TAU_MODE_MUON: "nutau_cc_mu"}.get(tau_mode, "nutau_cc_had")
    names = {12: "nue_cc", 14: "numu_cc"}
    if abs(neutrino) not in names:
        raise ValueError(f"in_neutrino_pdg is {neutrino}, which is not a neutrino")
    return names[abs(neutrino)]


FASERCAL_NPZ = Format("fasercal-npz", (".npz",), "fasercal", _NpzFile)
