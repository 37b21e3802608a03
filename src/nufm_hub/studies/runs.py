"""The way every study runs: unattended, resumable, shared by as many processes as one starts."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from tqdm import tqdm

from nufm_hub.files import new_file
from nufm_hub.provenance import git_revision, package_versions

RESULT = "result.json"
SETTINGS = "settings.json"
_POLL = 1.0  # seconds between looks at a run that another process works on

Work = Callable[[dict[str, Any], Path], dict[str, Any]]


@dataclass(frozen=True)
class StudyRun:
    """One unit of work of a study.

    Attributes:
        name: of the run and of its folder: letters, digits and `._=+-`.
        settings: JSON, and all that decides the result: two runs with equal settings give the same result.
    """

    name: str
    settings: dict[str, Any]


def execute(runs: Sequence[StudyRun], folder: str | Path, work: Work, keep: Collection[str] = ()) -> list[dict[str, Any]]:
    """Do all runs that are not done yet, in order, and return the results of all.

    Any number of processes, on one machine or on several with a shared disk, may execute the same runs in the same folder: each run is
    locked by the process that works on it, and taken over if that process dies. The call returns when all runs are done, by whomever.

    Args:
        runs: what to do; `folder/<name>` is the folder of each.
        folder: of the study.
        work: called with the settings and the folder of a run; returns its JSON-able result. After an interruption it finds the folder
            as it left it, and should go on from there.
        keep: names in a run's folder that stay once the run is done, such as a final model; all else (checkpoints) is removed.

    Returns:
        As of `finished`.

    Raises:
        ValueError: a name that is no folder name or is used twice, or a run in `folder` that was made or started with other settings.
        Exception: whatever `work` raises; what is done stays done, and the next call takes the run up again.
    """
    folder, revision = Path(folder), git_revision()
    finished(runs, folder)
    for run in runs:
        _check_settings(folder / run.name / SETTINGS, run)
    with tqdm(total=len(runs), desc=folder.name, unit="run") as progress:
        waiting = list(runs)
        # First whatever nobody else works on; then wait for the others, should one of them die.
        for timeout in (0, -1):
            locked = []
            for run in waiting:
                try:
                    _do(run, folder, work, keep, revision, timeout)
                    progress.update()
                except Timeout:
                    locked.append(run)
            waiting = locked
    return finished(runs, folder)


def finished(runs: Sequence[StudyRun], folder: str | Path) -> list[dict[str, Any]]:
    """Results of the runs that are done: `{"name", "settings", "result", "git_revision", "versions", "seconds"}`, in the order of `runs`.

    Raises:
        ValueError: as of `execute`.
    """
    for name, times in Counter(run.name for run in runs).items():
        if times > 1 or not re.fullmatch(r"[\w=+-][\w.=+-]*", name):
            raise ValueError(f"run {name!r}: names must differ from each other and consist of letters, digits and ._=+-")
    results = []
    for run in runs:
        path = Path(folder) / run.name / RESULT
        if path.is_file():
            _check_settings(path, run)
            results.append(json.loads(path.read_text(encoding="utf-8")))
    return results


def _do(run: StudyRun, folder: Path, work: Work, keep: Collection[str], revision: str | None, timeout: float) -> None:
    run_folder = folder / run.name
    run_folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f"{run.name}.lock", timeout=timeout, poll_interval=_POLL):
        if not (run_folder / RESULT).is_file():
            if not (run_folder / SETTINGS).is_file():
                _write(run_folder / SETTINGS, {"name": run.name, "settings": run.settings})
            started = time.time()
            result = work(run.settings, run_folder)
            record = {
                "name": run.name,
                "settings": run.settings,
                "result": result,
                "git_revision": revision,
                "versions": package_versions(),
                "seconds": round(time.time() - started, 1),
            }
            _write(run_folder / RESULT, record)
        # Also of a run whose process died right after the result was written.
        for path in run_folder.iterdir():
            if path.name not in {RESULT, *keep}:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _write(path: Path, record: dict[str, Any]) -> None:
    with new_file(path) as temporary:
        temporary.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _check_settings(path: Path, run: StudyRun) -> None:
    """A settings or result file that is there must be of these settings."""
    if not path.is_file():
        return
    there, wanted = json.loads(path.read_text(encoding="utf-8"))["settings"], json.loads(json.dumps(run.settings))
    if there != wanted:
        differing = sorted(key for key in {*there, *wanted} if there.get(key) != wanted.get(key))
        raise ValueError(
            f"run {run.name!r} in {path.parent.parent} has other settings ({', '.join(differing)}): choose another folder, or remove {path.parent}"
        )
