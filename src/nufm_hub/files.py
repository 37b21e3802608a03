"""Files and folders that appear under their name only when they are complete; hashes of files."""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def new_file(path: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """A temporary path to write to; renamed to `path` on success, removed on failure.

    Raises:
        FileExistsError: `path` exists and `overwrite` is off; nothing is touched.
    """
    path = Path(path)
    _refuse_existing(path, overwrite)
    temporary = _temporary(path)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(path: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder to fill; renamed to `path` on success, removed on failure.

    With `overwrite`, the old folder goes only once the new one is complete.

    Raises:
        FileExistsError: `path` exists and `overwrite` is off; nothing is touched.
    """
    path = Path(path)
    _refuse_existing(path, overwrite)
    temporary, old = _temporary(path), _temporary(path)
    temporary.mkdir()
    try:
        yield temporary
        if path.exists():
            os.replace(path, old)
        os.replace(temporary, path)
    finally:
        for leftover in (temporary, old):
            shutil.rmtree(leftover, ignore_errors=True)


def sha256_of(files: Iterable[str | Path]) -> str:
    """SHA-256 of a file's content, as hexadecimal digits; of several files, of their digests in order."""
    digests = []
    for path in files:
        with open(path, "rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def _refuse_existing(path: Path, overwrite: bool) -> None:
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists already: choose another name, or remove it first")
    path.parent.mkdir(parents=True, exist_ok=True)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
