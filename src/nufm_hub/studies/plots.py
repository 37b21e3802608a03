"""Curves of metrics with their spread over seeds, as PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nufm_hub.files import new_file

from .tables import better

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Distinguishable with any colour vision (Okabe and Ito); further groups take the rest in order.
COLOURS = {"scratch": "#555555", "mae": "#0072B2", "mae-rel": "#D55E00"}
_FURTHER = ("#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_COLUMNS = 4
# Points of the groups stand side by side: factor on the axis from one group to the next.
_SHIFT = 1.06


@dataclass(frozen=True)
class Panel:
    """One metric: its column, what the axis says, and a column with the value of a guess that knows no event, drawn as a line."""

    column: str
    title: str
    baseline: str | None = None


def new_figure(**kwargs: Any) -> Figure:
    """An empty figure that belongs to no window.

    Raises:
        ImportError: matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('plots need matplotlib: pip install "nufm-hub[display]"') from error
    return Figure(layout="constrained", dpi=150, **kwargs)


def colours_of(groups: Sequence[str]) -> dict[str, str]:
    """A colour for each group; the same initialisation has the same one in every figure."""
    others = [g for g in groups if g not in COLOURS]
    return {g: COLOURS.get(g) or _FURTHER[others.index(g) % len(_FURTHER)] for g in groups}


def save(figure: Figure, path: str | Path) -> None:
    """Write a PNG file; what was there is replaced."""
    with new_file(path, overwrite=True) as temporary:
        figure.savefig(temporary, format="png")


def draw_spread(axes: Axes, x: Sequence[float] | np.ndarray, values: Sequence[Sequence[float]] | np.ndarray, colour: str, name: str) -> None:
    """A line through the means, and a band from the lowest to the highest, of the values at each of `x`."""
    axes.plot(x, [np.mean(v) for v in values], color=colour, label=name, lw=1.6)
    axes.fill_between(x, [np.min(v) for v in values], [np.max(v) for v in values], color=colour, alpha=0.15, lw=0)


def set_style(axes: Axes, title: str) -> None:
    """Title, labels and grid of a panel."""
    axes.set_title(title, fontsize=9)
    axes.tick_params(labelsize=8, which="both")
    axes.grid(alpha=0.25, lw=0.6)


def add_legend(figure: Figure, title: str) -> None:
    """The curves of the first panel and the title, above all panels."""
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=len(names), frameon=False, title=title or None, title_fontsize=11)


def plot_curves(
    rows: Sequence[Mapping[str, Any]],
    panels: Sequence[Panel],
    path: str | Path,
    x: str = "labels",
    group: str = "initialisation",
    x_title: str = "labelled training events",
    title: str = "",
    logarithmic: bool = True,
) -> None:
    """Draw metrics against a number: a point for each run, a line through the means, a band from the lowest to the
    highest run.

    Args:
        rows: one a run; undefined values (None) are left out.
        panels: one a metric.
        path: of the PNG file, which is replaced.
        x: column of the horizontal axis.
        group: column that curves differ in.
        x_title: what the horizontal axis says.
        title: of the figure.
        logarithmic: the horizontal axis; numbers are then positive.
    """
    columns = min(len(panels), _COLUMNS) if len(panels) != 4 else 2
    lines = -(-len(panels) // columns)
    figure = new_figure(figsize=(3.9 * columns, 0.7 + 3.2 * lines))
    colours = colours_of(list(dict.fromkeys(row[group] for row in rows)))
    all_axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes, panel in zip(all_axes, panels):
        _draw(axes, rows, panel, x, group, colours, logarithmic)
    for axes in all_axes[len(panels) :]:
        axes.set_visible(False)
    figure.supxlabel(x_title, fontsize=10)
    add_legend(figure, title)
    save(figure, path)


def _draw(axes: Axes, rows: Sequence[Mapping[str, Any]], panel: Panel, x: str, group: str, colours: Mapping[str, str], logarithmic: bool) -> None:
    for i, (name, colour) in enumerate(colours.items()):
        found: dict[float, list[float]] = {}
        for row in rows:
            if row[group] == name and row.get(panel.column) is not None:
                found.setdefault(row[x], []).append(row[panel.column])
        at = sorted(found)
        shifted = np.array(at) * (_SHIFT ** (i - (len(colours) - 1) / 2) if logarithmic else 1)
        draw_spread(axes, shifted, [found[a] for a in at], colour, name)
        for a, position in zip(at, shifted):
            axes.plot([position] * len(found[a]), found[a], "o", color=colour, ms=3.5, alpha=0.8, mew=0)
    baselines = [row[panel.baseline] for row in rows if panel.baseline and row.get(panel.baseline) is not None]
    if baselines:
        axes.set_yscale("log")  # models are much better: on a linear scale they would all lie at the bottom
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
        level = float(np.mean(baselines))
        axes.axhline(level, color="#999999", lw=1, ls="--")
        axes.annotate("without looking", (0.98, level), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=7, color="#777777")
    if logarithmic:
        axes.set_xscale("log")
    ticks = sorted({row[x] for row in rows})
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks], rotation=0 if logarithmic else 90)
    axes.set_xticks([], minor=True)
    arrow = {"higher": " (higher is better)", "lower": " (lower is better)"}.get(better(panel.column), "")
    set_style(axes, f"{panel.title}{arrow}")
