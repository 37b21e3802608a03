"""`nufm convert-data` and `nufm check-leaks`.

Heavy imports happen inside the commands, so that `nufm --help` stays quick.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def convert_data(
    format_name: Annotated[str, typer.Argument(metavar="FORMAT", help="fasercal-npz, pilarnet-m, pilarnet-larcv, scintillator or edep-sim.")],
    source: Annotated[Path, typer.Argument(help="File, or folder searched recursively.")],
    out: Annotated[Path, typer.Argument(help="Folder for the parquet shards; run again to resume.")],
    detector: Annotated[str | None, typer.Option(help="Packaged detector or JSON file; that of the format by default.")] = None,
    version: Annotated[str | None, typer.Option(help="PILArNet-M: v1, v2 or v3; found out by default.")] = None,
    threshold: Annotated[float | None, typer.Option(help="PILArNet-M: drop points of at most this energy in MeV.")] = None,
    length_unit: Annotated[str | None, typer.Option(help="edep-sim: mm or cm.")] = None,
    offset: Annotated[tuple[float, float, float] | None, typer.Option(help="edep-sim: mm added to positions.")] = None,
    momentum_unit: Annotated[str | None, typer.Option(help="scintillator: MeV or GeV.")] = None,
    events_per_shard: Annotated[int, typer.Option(min=1)] = 500,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Skip what cannot be read, and list it.")] = False,
) -> None:
    """Convert foreign files to parquet shards of events."""
    from .convert import convert

    given = {"version": version, "threshold": threshold, "length_unit": length_unit, "offset": offset, "momentum_unit": momentum_unit}
    options = {k: v for k, v in given.items() if v is not None}
    try:
        result = convert(format_name, source, out, detector, events_per_shard, skip_bad, **options)
    except (ValueError, OSError, ImportError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    typer.echo(f"{result.events} events in {len(result.shards)} shards in {out}; {len(result.skipped)} skipped")
    for message in result.skipped:
        typer.echo(f"skipped {message}")


def check_leaks(
    train: Annotated[Path, typer.Argument(help="Parquet file or folder.")],
    test: Annotated[Path, typer.Argument(help="Parquet file or folder.")],
) -> None:
    """Say which events of TEST are in TRAIN too, by truth or by voxels; exit code 1 when there is any."""
    from .leaks import check_leaks as compare

    try:
        report = compare(train, test)
    except ValueError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
    typer.echo(str(report))
    if report:
        raise typer.Exit(1)
