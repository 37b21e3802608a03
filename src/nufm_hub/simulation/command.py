"""`nufm simulate`: simulations from the command line. Heavy imports happen inside the commands, so that `nufm --help` stays quick."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from .runner import SimulationSettings

Out = Annotated[Path, typer.Option(help="Folder for the shards; a new one, or that of an interrupted run.")]
Seed = Annotated[int, typer.Option(help="Seed of the run; the same seed and versions give the same bytes.")]
Workers = Annotated[int, typer.Option(help="Processes.")]

app = typer.Typer(help="Simulate events into parquet shards.", no_args_is_help=True)


@app.callback()
def simulate() -> None:
    """Simulate events into parquet shards; repeat the command to resume an interrupted run."""


@app.command()
def fasercal(
    events: Annotated[int, typer.Option(help="Number of events.")],
    out: Out,
    seed: Seed = 1,
    workers: Workers = 1,
    energy: Annotated[tuple[float, float], typer.Option(help="Lowest and highest neutrino energy in GeV, log-uniform between.")] = (50.0, 1500.0),
    shard_size: Annotated[int, typer.Option(help="Events per file.")] = 100,
    flavours: Annotated[
        str, typer.Option(help="'balanced': event i is of flavour class i modulo 6. 'natural': equal fluxes, everything else by cross section.")
    ] = "balanced",
) -> None:
    """Neutrino interactions (Pythia 8) in a FASERCal-like detector (Geant4)."""
    from .fasercal import FaserCalSettings

    _run(lambda: FaserCalSettings(energy, flavours), events, seed, out, workers, shard_size)


@app.command()
def superfgd(
    events: Annotated[int, typer.Option(help="Number of events.")],
    out: Out,
    seed: Seed = 1,
    workers: Workers = 1,
    momentum: Annotated[tuple[float, float], typer.Option(help="Lowest and highest momentum in GeV, uniform between.")] = (0.2, 1.5),
    crosstalk: Annotated[float, typer.Option(help="Light in each of the six neighbours as a share of that in the cube, 0 to 0.3.")] = 0.03,
    threshold: Annotated[int, typer.Option(help="Photo-electrons below which a cube is not seen.")] = 4,
    shard_size: Annotated[int, typer.Option(help="Events per file.")] = 1000,
) -> None:
    """Single protons, pions, muons and electrons in a SuperFGD-like block of scintillator cubes (Geant4)."""
    from .superfgd import SuperFGDSettings

    _run(lambda: SuperFGDSettings(momentum, crosstalk, threshold), events, seed, out, workers, shard_size)


@app.command()
def pilarnet(
    events: Annotated[int, typer.Option(help="Number of images.")],
    out: Out,
    seed: Seed = 1,
    workers: Workers = 1,
    vertices: Annotated[tuple[int, int], typer.Option(help="Fewest and most interaction vertices.")] = (1, 2),
    particles: Annotated[tuple[int, int], typer.Option(help="Fewest and most particles of a vertex.")] = (1, 6),
    energy: Annotated[tuple[float, float], typer.Option(help="Lowest and highest kinetic energy in MeV, uniform between.")] = (50.0, 1000.0),
    rain: Annotated[tuple[int, int], typer.Option(help="Fewest and most cosmic-like muons.")] = (2, 6),
    threshold: Annotated[float, typer.Option(help="MeV below which a voxel is dropped.")] = 0.13,
    shard_size: Annotated[int, typer.Option(help="Images per file.")] = 200,
) -> None:
    """Liquid-argon images of the PILArNet kind (Geant4). With --vertices 1 1 --particles 1 1 --rain 0 0: single particles, labelled."""
    from .pilarnet import PILArNetSettings

    _run(lambda: PILArNetSettings(vertices, particles, energy, rain, threshold), events, seed, out, workers, shard_size)


def _run(settings: Callable[[], SimulationSettings], events: int, seed: int, out: Path, workers: int, shard_size: int) -> None:
    from .runner import PROVENANCE, run_simulation

    try:
        summary = run_simulation(settings(), events, seed, out, workers, shard_size)["summary"]
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    typer.echo(
        f"{summary['events']} events in {out}: {summary['events_per_hour']} events/h, {summary['kilobytes_per_event']} kB/event; "
        f"details in {out / PROVENANCE}"
    )


if __name__ == "__main__":
    app()
