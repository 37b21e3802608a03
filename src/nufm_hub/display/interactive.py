"""Event displays as interactive pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nufm_hub.detectors import DetectorSpec, VoxelBranch
from nufm_hub.events import Event, Voxels
from nufm_hub.files import new_file

from .colouring import DYNAMIC_RANGE, MARKS, NO_CLASS, Colouring, colour_voxels
from .projection import block_bounds, checked_zoom, flat_image, within, zoomed
from .text import checked_prediction, energy_text, heading, track_lines, vertices

if TYPE_CHECKING:
    import plotly.graph_objects as go

MAX_VOXELS = 20_000
"""Voxels of a branch that are drawn: more make browsers without a graphics card slow."""

# Drawn along x, y, z of the page's scene: the beam lies flat and y points up; the order is cyclic, so that handedness stays.
_SCENE = (2, 0, 1)


def event_html(
    event: Event,
    spec: DetectorSpec,
    colour_by: str = "energy",
    prediction: Mapping[str, Any] | None = None,
    path: str | Path | None = None,
    overwrite: bool = False,
    zoom: Sequence[float] | None = None,
) -> str:
    """One page with the event in 3-D, true to scale in mm, that opens without a network.

    Sub-detectors (and classes, when coloured by one) are switched on and off in the legend; the hover text gives voxel, energy and labels.
    Of each branch the 20,000 voxels of highest energy are drawn, and the legend says so when there are more.

    Args:
        event, spec, colour_by, prediction, overwrite, zoom: as for `plot_event`.
        path: also write the page to this .html file.

    Returns:
        The page, about 5 MB (it holds plotly.js).

    Raises:
        ValueError, FileExistsError, ImportError: as `plot_event`, for plotly.
    """
    try:
        import plotly.graph_objects as go
    except ImportError as error:
        raise ImportError('interactive event displays need plotly: pip install "nufm-hub[display]"') from error
    if path is not None and Path(path).suffix != ".html":
        raise ValueError(f"{path}: an interactive display is written as .html")
    event.validate(spec)
    prediction = checked_prediction(prediction, spec)
    cube = checked_zoom(zoom)
    figure = go.Figure()
    notes = heading(event, spec, prediction)
    for index, branch in enumerate(spec.voxel_branches):
        figure.add_trace(_outline(branch))
        voxels = event.voxels.get(branch.name)
        if voxels is None or not len(voxels):
            notes.append(f"{branch.name}: {'sub-detector absent' if voxels is None else 'no hits'}")
            continue
        first = branch is spec.voxel_branches[0]
        voxels, colouring = zoomed(branch, voxels, colour_voxels(event, branch, spec, colour_by, prediction), cube if first else None)
        for trace in _voxel_traces(branch, voxels, colouring, index):
            figure.add_trace(trace)
    for name, positions in vertices(event, spec.voxel_branches[0], prediction).items():
        shape, colour = MARKS[name]
        shown = positions if cube is None else positions[within(positions, cube)]
        x, y, z = (shown[:, a].tolist() for a in _SCENE)
        marker = {"symbol": f"{shape}-open", "size": 10, "color": colour, "line": {"color": colour, "width": 3}}
        figure.add_trace(go.Scatter3d(x=x, y=y, z=z, mode="markers", marker=marker, name=name, hovertemplate=f"{name}<br>{_hover_position()}"))
    for branch in spec.image_branches:
        if branch.name in event.images:
            figure.add_trace(_towers(event.images[branch.name], branch.name))
        else:
            notes.append(f"{branch.name}: sub-detector absent")
    for branch in spec.track_branches:
        header, *lines = track_lines(event, branch)
        notes += (
            [f"{branch.name} (momenta in GeV):", *(x.replace(" ", "\u00a0") for x in (header, *lines))] if lines else [f"{branch.name}: {header}"]
        )
    _lay_out(figure, notes, spec)
    # A fixed id instead of a random one: the same event gives the same page.
    page = figure.to_html(include_plotlyjs=True, div_id="event", default_height="94vh", config={"displaylogo": False})
    if path is not None:
        with new_file(path, overwrite) as temporary:
            temporary.write_text(page, encoding="utf-8")
    return page


def _voxel_traces(branch: VoxelBranch, voxels: Voxels, colouring: Colouring, index: int) -> list[go.Scatter3d]:
    """One trace for continuous colours, one a class otherwise."""
    import plotly.graph_objects as go

    rows = np.arange(len(voxels))
    drawn = f"{len(voxels):,} voxels"
    if len(voxels) > MAX_VOXELS:
        rows = np.sort(np.argsort(-voxels.energy, kind="stable")[:MAX_VOXELS])
        share = voxels.energy[rows].sum() / max(voxels.energy.sum(), 1e-12)
        drawn = f"the {MAX_VOXELS:,} of highest energy of {len(voxels):,} voxels, {share:.1%} of the energy"
    positions = np.round(branch.to_mm(voxels.coordinates[rows]), 2)
    text = _hover_texts(branch, voxels, rows)
    heading = {"legendgroup": branch.name, "legendgrouptitle": {"text": f"{branch.name}: {drawn}"}, "hovertemplate": "%{text}<extra></extra>"}
    traces = []
    classes = colouring.classes or (None,)
    for code, name in enumerate(classes):
        own = np.ones(len(rows), dtype=bool) if name is None else colouring.values[rows] == code
        if not own.any():
            continue
        x, y, z = (positions[own, a] for a in _SCENE)
        marker: dict[str, Any] = {"symbol": "square", "size": 2}
        if name is None:
            marker |= _continuous_marker(colouring, rows, branch.name, index)
        else:
            marker["color"] = colouring.colours[code]
        label = colouring.title if name is None else f"{name} ({own.sum():,})"
        # Voxels without a class would hide the others.
        hidden = name is not None and colouring.colours[code] == NO_CLASS and not own.all()
        if hidden:
            label += ", off: click to show"
        shown = "legendonly" if hidden else True
        traces.append(go.Scatter3d(x=x, y=y, z=z, mode="markers", marker=marker, name=label, text=text[own], visible=shown, **heading))
    return traces


def _continuous_marker(colouring: Colouring, rows: np.ndarray, branch: str, index: int) -> dict[str, Any]:
    values = colouring.values[rows].astype(np.float64)
    title = f"{branch}<br>{colouring.title}"
    bar: dict[str, Any] = {"title": {"text": title}, "x": 1.0 + 0.09 * index, "len": 0.5, "y": 0.25, "thickness": 12}
    if colouring.is_energy:
        values = np.log10(np.maximum(values, max(values.max(), 1e-6) * DYNAMIC_RANGE))
        ticks = np.arange(np.floor(values.min()), np.ceil(values.max()) + 1)
        bar |= {"tickvals": ticks, "ticktext": [f"{10.0**t:g}" for t in ticks]}
    return {"color": np.round(values, 3), "colorscale": "Viridis", "colorbar": bar}


def _hover_texts(branch: VoxelBranch, voxels: Voxels, rows: np.ndarray) -> np.ndarray:
    positions = branch.to_mm(voxels.coordinates[rows])
    texts = []
    for row, (x, y, z) in zip(rows, positions):
        lines = [f"{branch.name} voxel {tuple(voxels.coordinates[row].tolist())}", f"({x:.0f}, {y:.0f}, {z:.0f}) mm"]
        lines += [f"{name} {value:.3g}{' MeV' if i == 0 else ''}" for i, (name, value) in enumerate(zip(branch.channels, voxels.values[row]))]
        for label in branch.labels:
            if label.name in voxels.labels:
                shares = voxels.labels[label.name][row]
                lines.append(f"{label.name}: " + (", ".join(f"{c} {s:.2f}" for c, s in zip(label.classes, shares) if s > 0) or "none"))
        lines += [f"{name} id {ids[row]}" for name, ids in voxels.instances.items()]
        texts.append("<br>".join(lines))
    return np.array(texts, dtype=object)


def _outline(branch: VoxelBranch) -> go.Scatter3d:
    """Edges of the sensitive blocks."""
    import plotly.graph_objects as go

    corners = [(i, j, k) for i in (0, 1) for j in (0, 1) for k in (0, 1)]
    edges = [(a, b) for a in corners for b in corners if a < b and sum(u != v for u, v in zip(a, b)) == 1]
    points = [[box[c[0], 0], box[c[1], 1], box[c[2], 2]] if c else [None] * 3 for box in block_bounds(branch) for a, b in edges for c in (a, b, None)]
    x, y, z = ([p[axis] for p in points] for axis in _SCENE)
    line = {"color": "#9A9A9A", "width": 1}
    return go.Scatter3d(x=x, y=y, z=z, mode="lines", line=line, hoverinfo="skip", legendgroup=branch.name, name="volume")


def _towers(image: np.ndarray, name: str) -> go.Heatmap:
    import plotly.graph_objects as go

    plane = flat_image(image)
    hover = f"{name} tower (%{{x}}, %{{y}})<br>%{{customdata:.4g}} MeV<extra></extra>"
    label = f"{name}: {energy_text(float(plane.sum()))}, logarithmic"
    shade = np.log10(np.maximum(plane, max(plane.max(), 1e-6) * DYNAMIC_RANGE))
    return go.Heatmap(z=shade.T, customdata=plane.T, colorscale="Viridis", showscale=False, showlegend=True, name=label, hovertemplate=hover)


def _hover_position() -> str:
    return "(%{y:.0f}, %{z:.0f}, %{x:.0f}) mm<extra></extra>"


def _lay_out(figure: go.Figure, notes: list[str], spec: DetectorSpec) -> None:
    axes = {
        "xaxis": {"title": {"text": f"z [mm]{' (beam →)' if 'flavour' in spec.event_labels else ''}"}},
        "yaxis": {"title": {"text": "x [mm]"}},
        "zaxis": {"title": {"text": "y [mm]"}},
    }
    corners = np.concatenate([branch.bounds for branch in spec.voxel_branches])[:, _SCENE]
    extent = corners.max(0) - corners.min(0)
    # True to scale, with a diagonal of 2 in the units in which the camera stands some 2 away.
    aspect = dict(zip("xyz", (2 * extent / np.linalg.norm(extent)).tolist()))
    camera = {"eye": {"x": -0.4, "y": -1.9, "z": 0.8}}
    figure.update_layout(
        scene={**axes, "aspectmode": "manual", "aspectratio": aspect, "camera": camera, "domain": {"x": [0, 1], "y": [0.12, 1]}},
        legend={"groupclick": "toggleitem", "x": 0.0, "y": 0.0, "yanchor": "bottom", "bgcolor": "rgba(255,255,255,0.7)", "itemsizing": "constant"},
        margin={"l": 10, "r": 10, "t": 10, "b": 10},
        annotations=[
            {
                "text": "<br>".join(notes),
                "xref": "paper",
                "yref": "paper",
                "x": 0,
                "y": 1,
                "xanchor": "left",
                "yanchor": "top",
                "align": "left",
                "showarrow": False,
                "font": {"family": "monospace", "size": 12},
            }
        ],
    )
    if spec.image_branches:
        title = {"font": {"size": 10}}
        figure.update_layout(
            xaxis={"domain": [0.84, 0.97], "title": {"text": "tower x", **title}, "dtick": 1},
            yaxis={"domain": [0.78, 0.98], "title": {"text": "tower y", **title}, "dtick": 1, "scaleanchor": "x"},
        )
