"""Event displays as matplotlib figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nufm_hub.detectors import DetectorSpec, ImageBranch, TrackBranch, VoxelBranch
from nufm_hub.events import Event
from nufm_hub.files import new_file

from .colouring import DYNAMIC_RANGE, MARKS, Colouring, colour_voxels
from .projection import block_bounds, checked_zoom, flat_image, is_long, merge_factor, project, view_limits, within, zoomed
from .text import checked_prediction, energy_text, heading, track_lines, vertices

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure, SubFigure

FORMATS = ("png", "pdf", "svg")
_VIEWS = {"top view": (2, 0), "side view": (2, 1), "front view": (0, 1)}
_SYMBOLS = {"circle": "o", "square": "s"}
_WIDTHS = {"voxels": 2.8, "image": 1.0, "tracks": 1.2}


def plot_event(
    event: Event,
    spec: DetectorSpec,
    colour_by: str = "energy",
    prediction: Mapping[str, Any] | None = None,
    path: str | Path | None = None,
    overwrite: bool = False,
    zoom: Sequence[float] | None = None,
) -> Figure:
    """Draw all sub-detectors of an event: projections of the voxels in mm, towers, and a list of the tracks.

    Args:
        event: an event of `spec`.
        spec: the detector.
        colour_by: `"energy"` (summed along the view, logarithmic), another channel, the name of a voxel label (its most probable class),
            `"instance:<name>"` or `"predicted:<label>"`. Branches that do not know it show their energy.
        prediction: what a model says: class results of `EventProcessor.post_process_classification` (or plain class names) by event
            label, `"vertex"` (3,) in mm, and `"voxels"`: per-voxel probabilities as `post_process_voxels` gives them for the event.
        path: also write a .png, .pdf or .svg file.
        overwrite: replace an existing file.
        zoom: (x, y, z, width) in mm: of the first branch, show only this cube.

    Raises:
        ValueError: the event is not of this detector, does not carry what it is to be coloured by, or the file name has another ending.
        FileExistsError: `path` exists and `overwrite` is off.
        ImportError: matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('event displays need matplotlib: pip install "nufm-hub[display]"') from error
    if path is not None and Path(path).suffix[1:] not in FORMATS:
        raise ValueError(f"{path}: a figure is written as one of {['.' + f for f in FORMATS]}")
    event.validate(spec)
    prediction = checked_prediction(prediction, spec)
    main, *others = spec.voxel_branches
    extras = [*spec.image_branches, *spec.track_branches]
    rows = max(len(others), 1) if others or extras else 0
    cube = checked_zoom(zoom)
    limits = _limits(event, main, prediction, cube)
    long = is_long(limits[1] - limits[0])
    main_height = 6.2 if long else 5.0
    figure = Figure(figsize=(14, main_height + 3.1 * rows), dpi=150, layout="constrained")
    parts = figure.subfigures(1 + rows, 1, height_ratios=[main_height, *[3.1] * rows], squeeze=False)[:, 0]
    figure.suptitle("\n".join(heading(event, spec, prediction)), fontsize=11)
    _draw_voxel_branch(parts[0], event, main, spec, colour_by, prediction, long, cube)
    for row, part in enumerate(parts[1:]):
        here = [*others[row : row + 1], *(extras if row == 0 else [])]
        columns = part.subfigures(1, len(here), width_ratios=[_WIDTHS[b.kind] for b in here], squeeze=False)[0]
        for column, branch in zip(columns, here):
            if isinstance(branch, VoxelBranch):
                _draw_voxel_branch(column, event, branch, spec, colour_by, prediction, False, None)
            elif isinstance(branch, ImageBranch):
                _draw_image(column, event, branch)
            else:
                _draw_tracks(column, event, branch)
    if path is not None:
        with new_file(path, overwrite) as temporary:
            figure.savefig(temporary, format=Path(path).suffix[1:])
    return figure


def _limits(event: Event, branch: VoxelBranch, prediction: Mapping[str, Any], cube: np.ndarray | None) -> np.ndarray:
    voxels = event.voxels.get(branch.name, ())
    if cube is not None or not len(voxels):
        return branch.bounds if cube is None else cube
    return view_limits(branch, voxels.coordinates, [p for points in vertices(event, branch, prediction).values() for p in points])


def _draw_voxel_branch(
    part: SubFigure,
    event: Event,
    branch: VoxelBranch,
    spec: DetectorSpec,
    colour_by: str,
    prediction: Mapping[str, Any],
    long: bool,
    cube: np.ndarray | None,
) -> None:
    voxels = event.voxels.get(branch.name)
    if voxels is None or not len(voxels):
        part.suptitle(f"{branch.name}: {'sub-detector absent' if voxels is None else 'no hits'}", fontsize=10)
        return
    every = len(voxels)
    voxels, colouring = zoomed(branch, voxels, colour_voxels(event, branch, spec, colour_by, prediction), cube)
    number = f"{len(voxels):,}" if cube is None else f"{len(voxels):,} of {every:,}"
    part.suptitle(f"{branch.name}: {number} voxels, energy {energy_text(float(voxels.energy.sum()))}", fontsize=10)
    if not len(voxels):
        return
    first = branch is spec.voxel_branches[0]
    marks = vertices(event, branch, prediction) if first else {}
    limits = _limits(event, branch, prediction, cube)
    marks = {name: points[within(points, limits)] for name, points in marks.items()}
    if long:
        grid = part.add_gridspec(2, 2, width_ratios=[3.2, 1])
        axes = [part.add_subplot(grid[0, 0]), part.add_subplot(grid[1, 0]), part.add_subplot(grid[0, 1])]
        key = part.add_subplot(grid[1, 1])
        cells = [(600, 150), (600, 150), (150, 150)]
    else:
        along, across = (limits[1] - limits[0])[[2, 1]]
        ratio = float(np.clip(along / across, 0.7, 2))
        with_key = first or bool(colouring.classes)
        grid = part.add_gridspec(1, 3 + with_key, width_ratios=[ratio, ratio, 1, *[0.45] * with_key])
        axes = [part.add_subplot(grid[0, i]) for i in range(3)]
        key = part.add_subplot(grid[0, 3]) if with_key else None
        cells = [(400, 400) if first else (100, 100)] * 3
    merges = [tuple(merge_factor(branch, a, limits, n) for a, n in zip(view, most)) for view, most in zip(_VIEWS.values(), cells)]
    pictures = [project(branch, voxels, colouring, view, merge) for view, merge in zip(_VIEWS.values(), merges)]
    norm, colour_map = _scale(colouring, pictures)
    beam = "flavour" in spec.event_labels
    for ax, (name, view), picture, merge in zip(axes, _VIEWS.items(), pictures, merges):
        _draw_outline(ax, branch, view, limits)
        mesh = ax.pcolormesh(picture.horizontal, picture.vertical, picture.image.T, norm=norm, cmap=colour_map, rasterized=True)
        for mark, position in marks.items():
            ax.plot(*position[:, list(view)].T, zorder=5, **_marker(mark))
        _label_view(ax, name, view, limits, merge, beam)
    if key is not None:
        _draw_key(part, key, colouring, mesh, marks)
    else:
        _add_colour_bar(part, mesh, colouring, ax=axes, aspect=14, shrink=0.7)


def _scale(colouring: Colouring, pictures: list[Any]) -> tuple[Normalize, Any]:
    """One colour scale for all views of a branch."""
    from matplotlib import colormaps
    from matplotlib.colors import BoundaryNorm, ListedColormap, LogNorm, Normalize

    if colouring.classes:
        return BoundaryNorm(np.arange(len(colouring.classes) + 1) - 0.5, len(colouring.classes)), ListedColormap(colouring.colours)
    values = np.concatenate([p.image.compressed() for p in pictures])
    if colouring.is_energy:
        high = max(values.max(), 1e-6)
        return LogNorm(max(min(values.min(), high / 2), high * DYNAMIC_RANGE), high, clip=True), colormaps["viridis"]
    return Normalize(values.min(), values.max()), colormaps["viridis"]


def _draw_outline(ax: Axes, branch: VoxelBranch, view: tuple[int, int], limits: np.ndarray) -> None:
    """The sensitive volume in grey, block by block, so that gaps show."""
    from matplotlib.patches import Rectangle

    blocks, (h, v) = branch.blocks, view
    in_blocks = blocks is not None and blocks.axis in view
    for number, (low, high) in enumerate(block_bounds(branch) if in_blocks else branch.bounds[None]):
        size = high - low
        ax.add_patch(Rectangle((low[h], low[v]), size[h], size[v], facecolor="#F4F4F4", edgecolor="#C8C8C8", linewidth=0.6, zorder=0))
        middle = (low[h] + high[h]) / 2
        if in_blocks and h == blocks.axis and limits[0, h] < middle < limits[1, h]:
            place = {"xycoords": ("data", "axes fraction"), "ha": "center", "va": "bottom"}
            ax.annotate(str(number), (middle, 1.0), fontsize=7, color="grey", **place)


def _label_view(ax: Axes, name: str, view: tuple[int, int], limits: np.ndarray, merge: tuple[int, ...], beam: bool) -> None:
    h, v = view
    ax.set_xlim(limits[:, h])
    ax.set_ylim(limits[:, v])
    ax.set_xlabel(f"{'xyz'[h]} [mm]", fontsize=9)
    ax.set_ylabel(f"{'xyz'[v]} [mm]", fontsize=9)
    ax.tick_params(labelsize=8)
    span = limits[1] - limits[0]
    if 0.4 < span[h] / span[v] < 2.5:
        ax.set_aspect("equal")
    # x to the right and y up put the reader downstream of the detector: the beam comes out of the page.
    direction = "" if not beam else ", beam →" if h == 2 else ", beam ⊙"
    merged = "" if max(merge) == 1 else f", {merge[0]}×{merge[1]} voxels a pixel"
    ax.set_title(f"{name}{direction}{merged}", fontsize=8, loc="left", pad=11)


def _draw_key(part: SubFigure, ax: Axes, colouring: Colouring, mesh: Any, marks: Mapping[str, np.ndarray]) -> None:
    """Colour bar or legend of classes, and the vertex symbols."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    ax.axis("off")
    handles: list[Any] = []
    if colouring.classes:
        shown = np.unique(colouring.values)
        handles += [Patch(color=colouring.colours[i], label=f"{colouring.classes[i]} ({(colouring.values == i).sum():,})") for i in shown]
    else:
        _add_colour_bar(part, mesh, colouring, ax=ax, location="left", fraction=0.3, aspect=16, shrink=0.75)
    handles += [Line2D([], [], label=name, **_marker(name)) for name, points in marks.items() if len(points)]
    if handles:
        title = f"{colouring.title}, of highest energy\nalong the view (number of voxels)" if colouring.classes else None
        ax.legend(handles=handles, title=title, loc="center left", fontsize=8, title_fontsize=8, frameon=False, alignment="left")


def _add_colour_bar(part: SubFigure, mesh: Any, colouring: Colouring, **place: Any) -> None:
    bar = part.colorbar(mesh, **place)
    bar.set_label("energy along the view [MeV]" if colouring.is_energy else f"mean {colouring.title}", fontsize=8)
    bar.ax.tick_params(labelsize=8)


def _marker(name: str) -> dict[str, Any]:
    shape, colour = MARKS[name]
    edge = {"markerfacecolor": "none", "markeredgecolor": colour, "markeredgewidth": 1.6}
    return {"linestyle": "", "marker": _SYMBOLS[shape], "markersize": 11, **edge}


def _draw_image(part: SubFigure, event: Event, branch: ImageBranch) -> None:
    from matplotlib.colors import LogNorm

    if branch.name not in event.images:
        part.suptitle(f"{branch.name}: sub-detector absent", fontsize=10)
        return
    plane = flat_image(event.images[branch.name])
    if not (plane > 0).any():
        part.suptitle(f"{branch.name}: no energy", fontsize=10)
        return
    part.suptitle(f"{branch.name}: energy {energy_text(float(plane.sum()))}", fontsize=10)
    ax = part.add_subplot()
    high = plane.max()
    norm = LogNorm(max(plane[plane > 0].min() * 0.99, high * DYNAMIC_RANGE), high, clip=True)
    ax.set_facecolor("#F4F4F4")
    drawn = ax.imshow(np.ma.masked_less_equal(plane, 0).T, origin="lower", norm=norm, cmap="viridis")
    if plane.size <= 64:
        for (i, j), value in np.ndenumerate(plane):
            dark = value > 0 and norm(value) < 0.6
            ax.text(i, j, f"{value:.0f}", ha="center", va="center", fontsize=6.5, color="white" if dark else "black")
    ax.set_xlabel("tower x", fontsize=9)
    ax.set_ylabel("tower y", fontsize=9)
    ax.tick_params(labelsize=8)
    bar = part.colorbar(drawn, ax=ax, shrink=0.9)
    bar.set_label("energy [MeV]", fontsize=8)
    bar.ax.tick_params(labelsize=8)


def _draw_tracks(part: SubFigure, event: Event, branch: TrackBranch) -> None:
    count = len(event.tracks.get(branch.name, ()))
    lines = track_lines(event, branch)
    if not count:
        part.suptitle(f"{branch.name}: {lines[0]}", fontsize=10)
        return
    unit = ", momenta in GeV" if "p" in branch.features else ""
    part.suptitle(f"{branch.name}: {count} track{'s' * (count != 1)}{unit}", fontsize=10)
    ax = part.add_subplot()
    ax.axis("off")
    ax.text(0, 0.95, "\n".join(lines), transform=ax.transAxes, va="top", family="monospace", fontsize=7)
