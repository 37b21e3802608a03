"""`nufm show`: draw one event of a parquet file."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from nufm_hub.events import Event


def show(
    file: Annotated[Path, typer.Argument(help="Parquet file of events, or the detector of a packaged sample.", show_default=False)],
    event: Annotated[int, typer.Option(help="Position of the event in the file, from 0.")] = 0,
    out: Annotated[Path | None, typer.Option(help="What to write: .png, .pdf, .svg, or .html (interactive). Default: FILE-eventI.png here.")] = None,
    colour_by: Annotated[str, typer.Option(help="energy, a voxel label such as hierarchy, or instance:NAME.")] = "energy",
    zoom: Annotated[tuple[float, float, float, float] | None, typer.Option(help="Show only a cube: X Y Z WIDTH in mm.")] = None,
    model: Annotated[list[str] | None, typer.Option(help="Id or folder of a flavour, vertex or particle model to predict with; repeatable.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
) -> None:
    """Draw an event of a parquet file: projections, towers and tracks, or an interactive page."""
    from nufm_hub.events import read_detector, read_events
    from nufm_hub.events.samples import list_samples, sample_path

    from .interactive import event_html
    from .static import FORMATS, plot_event

    out = Path(f"{file.stem}-event{event}.png") if out is None else out
    if out.suffix not in (".html", *(f".{f}" for f in FORMATS)):
        raise typer.BadParameter(f"{out} ends neither in .html nor in one of {', '.join('.' + f for f in FORMATS)}", param_hint="--out")
    if out.exists() and not overwrite:
        raise typer.BadParameter(f"{out} exists already: choose another name, or give --overwrite", param_hint="--out")
    if str(file) in list_samples() and not file.exists():
        file = sample_path(str(file))
    if not file.is_file():
        raise typer.BadParameter(f"there is no file {file}", param_hint="FILE")
    if event < 0:
        raise typer.BadParameter(f"{event} is negative; events count from 0", param_hint="--event")
    try:
        spec = read_detector(file)
        events = read_events(file)
        skipped = sum(1 for _ in islice(events, event))
        chosen = next(events, None)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="FILE") from error
    if chosen is None:
        raise typer.BadParameter(f"{file} holds {skipped} events, so there is no event {event}", param_hint="--event")
    draw = event_html if out.suffix == ".html" else plot_event
    try:
        draw(chosen, spec, colour_by, _predict(chosen, model or []), out, overwrite, zoom)
    except (ValueError, OSError) as error:
        raise typer.BadParameter(str(error)) from error
    typer.echo(f"wrote {out}")


def _predict(event: Event, models: list[str]) -> dict[str, Any]:
    """What models of any of the three tasks say about an event, as the displays take it."""
    if not models:
        return {}
    from transformers import AutoConfig

    from nufm_hub.checkpoints import resolve
    from nufm_hub.pipelines import FlavourPipeline, ParticlePipeline, VertexPipeline

    prediction = {}
    for name in models:
        architecture = (AutoConfig.from_pretrained(resolve(name)).architectures or ["none"])[0]
        for key, pipeline in (("flavour", FlavourPipeline), ("vertex", VertexPipeline), ("particle", ParticlePipeline)):
            if architecture.endswith(pipeline.auto_model.__name__.removeprefix("AutoModel")):
                prediction[key] = pipeline.from_pretrained(name)(event)
                break
        else:
            raise ValueError(f"{name} is a {architecture}: give a model that predicts flavour, vertex or particle")
    return prediction
