"""Parquet shards as uncompressed Arrow files, which are mapped into memory: decoded once, whatever reads them afterwards."""

from __future__ import annotations

from pathlib import Path

import datasets
import pyarrow as pa
from filelock import FileLock

from nufm_hub.files import new_file, sha256_of

from .parquet import _open

_FOLDER = "nufm_hub-events"
_ROWS = 256  # events of a batch: what is decoded at once when one of them is asked for


def arrow_copy(shard: str | Path, events: int, cache_dir: str | Path | None) -> Path:
    """The Arrow file of a shard, made if it is not there, cannot be read, or holds another number of events.

    Its name is the hash of the content of the shard: a copy belongs to what the shard holds, and not to its name, place or time of change, and
    data sets that share shards share copies.

    Args:
        shard: parquet file.
        events: that it holds.
        cache_dir: folder that holds the folder of copies; `HF_DATASETS_CACHE` when None.

    Raises:
        ValueError: the shard is damaged.
    """
    folder = Path(datasets.config.HF_DATASETS_CACHE if cache_dir is None else cache_dir) / _FOLDER
    copy = folder / f"{sha256_of([shard])}.arrow"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(copy.with_suffix(".lock")):
        if _events(copy) != events:
            _convert(shard, copy)
    return copy


def mapped(copy: Path) -> pa.Table:
    """The rows of a copy; nothing is read before it is looked at."""
    return pa.ipc.open_stream(pa.memory_map(str(copy))).read_all()


def _events(copy: Path) -> int | None:
    """How many events a copy holds; None where it is missing or damaged."""
    try:
        return mapped(copy).num_rows
    except (OSError, pa.ArrowInvalid):
        return None


def _convert(shard: str | Path, copy: Path) -> None:
    file, _ = _open(shard)
    try:
        with (
            file,
            new_file(copy, overwrite=True) as temporary,
            pa.OSFile(str(temporary), "wb") as sink,
            pa.ipc.new_stream(sink, file.schema_arrow) as writer,
        ):
            # Arrow's own threads may drop the Python extension types of datasets while the interpreter ends, which aborts it.
            for batch in file.iter_batches(_ROWS, use_threads=False):
                writer.write_batch(batch)
    except (OSError, pa.ArrowInvalid) as error:
        raise ValueError(f"{shard} cannot be read (damaged file), or its copy not be written to {copy.parent}: {error}") from error
