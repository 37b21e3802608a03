"""Foreign files to parquet shards, in steps that can be interrupted and resumed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from nufm_hub.detectors import DetectorSpec, load_detector
from nufm_hub.files import new_file

from .parquet import write_events
from .readers import FORMATS, Format, SourceFile, read_range, source_files

JOURNAL = "conversion.json"


@dataclass
class Conversion:
    """What a conversion did.

    Attributes:
        events: events written, also those of earlier runs.
        shards: the parquet files.
        skipped: one message a file or event that could not be read.
    """

    events: int = 0
    shards: list[Path] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def convert(
    format_name: str,
    source: str | Path | Sequence[str | Path],
    out: str | Path,
    detector: str | Path | DetectorSpec | None = None,
    events_per_shard: int = 500,
    skip_bad: bool = False,
    **options: Any,
) -> Conversion:
    """Write all events of a source as `out/events-00000.parquet` and so on.

    The folder also gets `conversion.json`, which says what the shards were made from. Called again with the same arguments, an
    interrupted conversion continues after the last complete shard.

    Args:
        format_name: one of `nufm_hub.events.readers.FORMATS`.
        source: a file, a folder (searched recursively), or a list of these.
        out: folder, new or with an interrupted conversion of the same source.
        detector: detector of the events; None takes that of the format.
        events_per_shard: events of the source a shard.
        skip_bad: leave out files and events that cannot be read, and report them, instead of stopping at the first.
        options: those of the format's reader (`version`, `length_unit`, ...).

    Raises:
        ValueError: unknown format or option, an unreadable event (names file, event and dataset), or `out` holds another conversion.
        FileExistsError: `out` holds files that are not from a conversion.
    """
    fmt, spec = _checked(format_name, detector, events_per_shard, options)
    out = Path(out)
    skipped: list[ValueError] = []
    on_bad = skipped.append if skip_bad else None
    files = [(file, _count(fmt, file, spec, on_bad, options)) for file in source_files(source, fmt.suffixes)]
    journal = {
        "format": fmt.name,
        "detector": spec.hash,
        "options": {k: str(v) for k, v in sorted(options.items())},
        "events_per_shard": events_per_shard,
        "skip_bad": skip_bad,
        "files": [[file.name, count] for file, count in files],
        "skipped": [str(error) for error in skipped],
        "shards": {},
    }
    _resume(out, journal)
    total = sum(count for _, count in files)
    with tqdm(total=total, unit="event", desc=fmt.name) as progress:
        for number, start in enumerate(range(0, total, events_per_shard)):
            path = out / f"events-{number:05d}.parquet"
            stop = min(start + events_per_shard, total)
            if path.name not in journal["shards"]:
                skipped.clear()
                path.unlink(missing_ok=True)  # complete, but the journal never heard of it: written just before an interruption
                events = write_events(_events(fmt, files, spec, start, stop, on_bad, options), path, spec)
                journal["shards"][path.name] = {"events": events, "skipped": [str(error) for error in skipped]}
                _write(journal, out)
            progress.update(stop - start)
    done = journal["shards"].values()
    return Conversion(
        sum(shard["events"] for shard in done),
        [out / name for name in journal["shards"]],
        journal["skipped"] + [message for shard in done for message in shard["skipped"]],
    )


def _checked(
    format_name: str, detector: str | Path | DetectorSpec | None, events_per_shard: int, options: dict[str, Any]
) -> tuple[Format, DetectorSpec]:
    if format_name not in FORMATS:
        raise ValueError(f"unknown format {format_name!r}: it is one of {sorted(FORMATS)}")
    fmt = FORMATS[format_name]
    if unknown := set(options) - set(fmt.options):
        raise ValueError(f"format {fmt.name!r} has no option {sorted(unknown)}; it has {list(fmt.options)}")
    fmt.check(**options)
    if events_per_shard < 1:
        raise ValueError(f"events_per_shard must be at least 1, got {events_per_shard}")
    if fmt.detector is None and detector is None:
        raise ValueError(f"format {fmt.name!r} fits any detector: say which")
    return fmt, load_detector(detector if detector is not None else fmt.detector)


def _count(fmt: Format, file: SourceFile, spec: DetectorSpec, on_bad: Any, options: dict[str, Any]) -> int:
    try:
        opened = fmt.open(file.path, file.name, spec, **options)
    except ValueError as error:
        error = ValueError(f"{file.name}: {error}")
        if on_bad is None:
            raise error from None
        on_bad(error)
        return 0
    try:
        return len(opened)
    finally:
        opened.close()


def _events(fmt: Format, files: list[tuple[SourceFile, int]], spec: DetectorSpec, start: int, stop: int, on_bad: Any, options: dict[str, Any]):
    """Events `start` to `stop`, counted over all files."""
    first = 0
    for file, count in files:
        low, high = max(start - first, 0), min(stop - first, count)
        if low < high:
            yield from read_range(fmt, file, spec, low, high, on_bad, **options)
        first += count


def _resume(out: Path, journal: dict[str, Any]) -> None:
    """Take over the finished shards of an earlier run into `journal`."""
    path = out / JOURNAL
    if not path.exists():
        if out.is_dir() and any(out.iterdir()):
            raise FileExistsError(f"{out} is not empty and holds no {JOURNAL}: choose another folder")
        _write(journal, out)
        return
    try:
        earlier = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged ({error}): remove {out} and convert again") from error
    for key, value in journal.items():
        if key != "shards" and earlier.get(key) != value:
            raise ValueError(f"{out} holds a conversion with another {key!r}: choose another folder, or remove this one")
    journal["shards"] = {name: shard for name, shard in earlier["shards"].items() if (out / name).exists()}


def _write(journal: dict[str, Any], out: Path) -> None:
    with new_file(out / JOURNAL, overwrite=True) as temporary:
        temporary.write_text(json.dumps(journal, indent=1) + "\n", encoding="utf-8")
