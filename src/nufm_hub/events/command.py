"""`nufm convert-data`, `nufm crop`, `nufm check-leaks` and `nufm distort`.

Heavy imports happen inside the commands, so that `nufm --help` stays quick.
"""

from __future__ import annotations

import json
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
        raise typer.BadParameter(str(error)) from error
    typer.echo(f"{result.events} events in {len(result.shards)} shards in {out}; {len(result.skipped)} skipped")
    for message in result.skipped:
        typer.echo(f"skipped {message}")


def crop(
    source: Annotated[Path, typer.Argument(help="Parquet file or folder of events.")],
    out: Annotated[Path, typer.Argument(help="Folder to make, with train/, validation/ and test/.")],
    settings: Annotated[str | None, typer.Option(help="superfgd, pilarnet, or a JSON file; those of the events' detector by default.")] = None,
    features: Annotated[bool, typer.Option("--features/--no-features", help="Give each crop its 31 shape and context features.")] = True,
    fractions: Annotated[tuple[float, float, float], typer.Option(help="Shares of train, validation and test.")] = (0.85, 0.05, 0.10),
    seed: Annotated[int, typer.Option(help="Chooses the split; groups of related events are never divided.")] = 7,
) -> None:
    """Crop events around their particles, split without leaks: the data set that particle identification trains on."""
    from .crop_files import CropSettings, write_crops
    from .parquet import read_detector
    from .streaming import list_shards

    try:
        chosen = CropSettings.load(settings or read_detector(list_shards(source)[0]).name, features=features)
        counts = write_crops(source, out, chosen, fractions, seed)
    except (ValueError, FileExistsError) as error:
        raise typer.BadParameter(str(error)) from error
    typer.echo(f"crops in {out}: " + ", ".join(f"{count} {name}" for name, count in counts.items()))


def check_leaks(
    train: Annotated[Path, typer.Argument(help="Parquet file or folder.")],
    test: Annotated[Path, typer.Argument(help="Parquet file or folder.")],
) -> None:
    """Say which events of TEST are in TRAIN too, by truth or by voxels; exit code 1 when there is any."""
    from .leaks import check_leaks as compare

    try:
        report = compare(train, test)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    typer.echo(str(report))
    if report:
        raise typer.Exit(1)


def distort(
    source: Annotated[Path, typer.Argument(help="Parquet file of events.")],
    out: Annotated[Path, typer.Argument(help="Parquet file to write; a JSON file beside it says what was done.")],
    effect: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE, e.g. crosstalk=0.05; may be repeated. Without any: defaults of the detector.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of noise and smearing; dead_seed=... chooses the dead channels.")] = 0,
) -> None:
    """Apply detector effects: lifetime, diffusion, crosstalk, noise, dead channels, energy scale and smearing."""
    from dataclasses import asdict

    from nufm_hub.files import new_file

    from .effects import DetectorEffects
    from .effects import distort as apply
    from .parquet import read_detector, read_events, write_events

    try:
        spec = read_detector(source)
        effects = DetectorEffects(**_values(effect)) if effect else DetectorEffects.of(spec.name)
        with new_file(out.with_suffix(".json")) as temporary:
            count = write_events(apply(read_events(source), spec, effects, seed), out, spec)
            off = asdict(DetectorEffects())
            done = {"source": source.name, "seed": seed, "effects": {k: v for k, v in asdict(effects).items() if v != off[k]}}
            temporary.write_text(json.dumps(done, indent=1) + "\n", encoding="utf-8")
    except (ValueError, TypeError, OSError) as error:
        raise typer.BadParameter(str(error)) from error
    typer.echo(f"{count} events in {out}")


def _values(settings: list[str]) -> dict[str, object]:
    values = {}
    for setting in settings:
        name, _, value = setting.partition("=")
        try:
            values[name] = json.loads(value)
        except json.JSONDecodeError as error:
            raise ValueError(f"--effect {setting}: give NAME=VALUE with a number, a list or a quoted word, such as crosstalk=0.05") from error
    return values
