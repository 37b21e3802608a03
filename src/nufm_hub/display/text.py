"""What a display says in words: truth, prediction, tracks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from nufm_hub.detectors import DetectorSpec, TrackBranch, VoxelBranch
from nufm_hub.events import Event

_NEUTRINOS = {12: "νe", 14: "νμ", 16: "ντ", -12: "anti-νe", -14: "anti-νμ", -16: "anti-ντ"}
_MAX_TRACKS = 10
_ENTRANCE = 0.1  # mm from a face: where particles from outside begin


def checked_prediction(prediction: Mapping[str, Any] | None, spec: DetectorSpec) -> Mapping[str, Any]:
    """`prediction`, or an empty one. Raises ValueError for what a display cannot show."""
    prediction = prediction or {}
    if unknown := set(prediction) - {*spec.event_labels, "vertex", "voxels"}:
        known = [*spec.event_labels, "vertex", "voxels"]
        raise ValueError(f"prediction has unknown keys {sorted(unknown)}; a display of {spec.name!r} shows {known}")
    if "vertex" in prediction and (np.shape(prediction["vertex"]) != (3,) or not np.isfinite(prediction["vertex"]).all()):
        raise ValueError(f"the predicted vertex must be three finite numbers in mm, got {prediction['vertex']}")
    return prediction


def vertices(event: Event, branch: VoxelBranch, prediction: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Positions in mm (M, 3) to mark, by name: `true vertex`, `true start` of a single particle, `predicted vertex`."""
    held = {"true start": event.truth.get("particle_position"), "predicted vertex": prediction.get("vertex")}
    marks = {name: np.asarray(v, dtype=np.float64)[None] for name, v in held.items() if v is not None}
    true = np.asarray(event.truth["vertex"], dtype=np.float64)[None] if "vertex" in event.truth else _interaction_vertices(event, branch)
    return {"true vertex": true, **marks} if len(true) else marks


def _interaction_vertices(event: Event, branch: VoxelBranch) -> np.ndarray:
    """Of each interaction in the branch the point that most of its particles without a parent share, (M, 3); what enters through a face has none."""
    p = event.particles
    if not {"vertex", "parent", "interaction"} <= p.keys() or "particle_position" in event.truth:
        return np.zeros((0, 3))
    low, high = branch.bounds
    first = (p["parent"] < 0) & ((p["vertex"] > low + _ENTRANCE) & (p["vertex"] < high - _ENTRANCE)).all(axis=1)
    found = []
    for interaction in np.unique(p["interaction"][first]):
        points, count = np.unique(p["vertex"][first & (p["interaction"] == interaction)], axis=0, return_counts=True)
        found.append(points[count.argmax()])
    return np.array(found, dtype=np.float64).reshape(-1, 3)


def heading(event: Event, spec: DetectorSpec, prediction: Mapping[str, Any]) -> list[str]:
    """Lines above an event: what it is, its truth, and what is predicted if anything is."""
    return [line for line in (str(event), truth_line(event, spec), prediction_line(event, prediction)) if line]


def truth_line(event: Event, spec: DetectorSpec) -> str:
    """One line such as `truth: flavour numu_cc, charm none, νμ CC of 812 GeV, vertex (1, -20, 300) mm`."""
    t, parts = event.truth, []
    parts += [f"{name} {classes[int(t[name])]}" for name, classes in sorted(spec.event_labels.items(), reverse=True) if name in t]
    if "neutrino_pdg" in t:
        current = {True: " CC", False: " NC"}[bool(t["is_cc"])] if "is_cc" in t else ""
        parts.append(f"{_NEUTRINOS.get(int(t['neutrino_pdg']), t['neutrino_pdg'])}{current}{_of_momentum(t, 'neutrino_momentum')}")
    elif "neutrino_momentum" in t:
        parts.append(f"neutrino{_of_momentum(t, 'neutrino_momentum')}")
    if "particle_pdg" in t:
        parts.append(f"PDG {t['particle_pdg']}")
    if "particle_momentum" in t:
        parts.append(f"momentum {energy_text(1e3 * float(np.linalg.norm(t['particle_momentum'])))}/c")
    if np.linalg.norm(t.get("lepton_momentum", 0)) > 0:
        parts.append(f"lepton{_of_momentum(t, 'lepton_momentum')}")
    if "vertex" in t:
        parts.append(f"vertex {_millimetres(t['vertex'])}")
    if "particle_position" in t:
        parts.append(f"start {_millimetres(t['particle_position'])}")
    elif event.particles and not t:
        number = {"particles": len(next(iter(event.particles.values())))}
        if "interaction" in event.particles:
            number = {"interactions": len(np.unique(event.particles["interaction"])), **number}
        parts += [f"{n} {name}" for name, n in number.items()]
    return "truth: " + (", ".join(parts) or "unknown")


def prediction_line(event: Event, prediction: Mapping[str, Any]) -> str:
    """One line such as `prediction: flavour numu_cc (0.93), vertex (1, -19, 310) mm, 10 mm from the truth`; empty without a prediction."""
    parts = []
    for name, value in prediction.items():
        if name == "vertex":
            parts.append(f"vertex {_millimetres(value)}")
            if "vertex" in event.truth:
                parts.append(f"{np.linalg.norm(np.asarray(value) - event.truth['vertex']):,.0f} mm from the truth")
        elif name != "voxels":
            text = f"{value['label']} ({value['score']:.2f})" if isinstance(value, Mapping) else str(value)
            parts.append(f"{name} {text}")
    return "prediction: " + ", ".join(parts) if parts else ""


def track_lines(event: Event, branch: TrackBranch) -> list[str]:
    """A header and a line a track, hardest first; or one line that says that there is none."""
    if branch.name not in event.tracks:
        return ["sub-detector absent"]
    tracks = event.tracks[branch.name]
    if not len(tracks):
        return ["no track"]
    shown = [c for c in ("charge", "p", "px", "py", "pz") if c in branch.features] or list(branch.features[:5])
    columns = [branch.features.index(c) for c in shown]
    order = np.argsort(-np.abs(tracks[:, columns[shown.index("p")]])) if "p" in shown else np.arange(len(tracks))
    lines = ["".join(f"{c:>8}" for c in shown)]
    for i in order[:_MAX_TRACKS]:
        lines.append("".join(f"{tracks[i, c]:>+8.0f}" if name == "charge" else f"{tracks[i, c]:>8.3g}" for name, c in zip(shown, columns)))
    if len(order) > _MAX_TRACKS:
        lines.append(f"... {len(order) - _MAX_TRACKS} more")
    return lines


def energy_text(mev: float) -> str:
    """An energy in MeV, GeV or TeV."""
    for scale, unit in ((1e6, "TeV"), (1e3, "GeV")):
        if mev >= scale:
            return f"{mev / scale:.3g} {unit}"
    return f"{mev:.3g} MeV"


def _of_momentum(truth: Mapping[str, Any], name: str) -> str:
    return f" of {energy_text(1e3 * float(np.linalg.norm(truth[name])))}" if name in truth else ""


def _millimetres(vertex: Any) -> str:
    return "(" + ", ".join(f"{v:.0f}" for v in np.asarray(vertex)) + ") mm"
