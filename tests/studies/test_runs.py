"""What is done stays done, whoever did it and however it ended."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nufm_hub.studies.runs import RESULT, StudyRun, execute, finished

RUNS = [StudyRun(f"n={n}", {"n": n}) for n in range(3)]


def square(settings, folder):
    (folder / "model").mkdir()
    (folder / "model" / "weights").write_text("w")
    (folder / "checkpoint-1").mkdir()
    return {"square": settings["n"] ** 2}


def test_results_are_in_order_and_only_what_is_to_be_kept_stays(tmp_path):
    results = execute(RUNS, tmp_path / "study", square, keep=["model"])
    assert [r["result"]["square"] for r in results] == [0, 1, 4]
    assert results[2]["settings"] == {"n": 2}
    assert {"name", "settings", "result", "git_revision", "versions", "seconds"} == results[0].keys()
    assert {p.name for p in (tmp_path / "study" / "n=1").iterdir()} == {RESULT, "model"}


def test_a_run_is_done_once(tmp_path):
    execute(RUNS[:2], tmp_path, square)
    called = []
    execute(RUNS, tmp_path, lambda settings, folder: called.append(settings["n"]) or {})
    assert called == [2]


def test_an_exception_is_not_swallowed_and_the_run_is_taken_up_where_it_was(tmp_path):
    def work(settings, folder):
        seen = (folder / "half").is_file()
        (folder / "half").write_text("")
        if settings["n"] == 1 and not seen:
            raise RuntimeError("lights out")
        return {"seen": seen}

    with pytest.raises(RuntimeError, match="lights out"):
        execute(RUNS, tmp_path, work)
    assert [r["name"] for r in finished(RUNS, tmp_path)] == ["n=0"]
    assert [r["result"]["seen"] for r in execute(RUNS, tmp_path, work)] == [False, True, False]


def test_other_settings_are_refused_before_anything_is_done(tmp_path):
    execute(RUNS[1:2], tmp_path, square)
    with pytest.raises(ValueError, match=r"run 'n=1' .*other settings \(more, n\)"):
        execute([RUNS[0], StudyRun("n=1", {"n": 5, "more": True})], tmp_path, square)
    assert not (tmp_path / "n=0").exists()

    def broken(settings, folder):
        raise RuntimeError

    with pytest.raises(RuntimeError):
        execute(RUNS[:1], tmp_path, broken)
    with pytest.raises(ValueError, match="run 'n=0'"):
        execute([StudyRun("n=0", {"n": 7})], tmp_path, square)


@pytest.mark.parametrize("names", [("a", "a"), ("a/b",), ("..",), ("",)])
def test_names_must_be_folder_names(names, tmp_path):
    with pytest.raises(ValueError, match="names must differ"):
        execute([StudyRun(name, {}) for name in names], tmp_path, square)


def test_leftovers_of_a_finished_run_go(tmp_path):
    execute(RUNS, tmp_path, square)
    (tmp_path / "n=1" / "checkpoint-9").mkdir()
    execute(RUNS, tmp_path, square)
    assert {p.name for p in (tmp_path / "n=1").iterdir()} == {RESULT}


PROCESS = """
import os, sys, time
from nufm_hub.studies.runs import StudyRun, execute
def work(settings, folder):
    (folder / "started").write_text(str(os.getpid()))
    with open(sys.argv[3], "a") as log:
        log.write(f"{settings['n']}\\n")
    time.sleep(float(sys.argv[2]))
    return {"pid": os.getpid()}
execute([StudyRun(f"n={n}", {"n": n}) for n in range(4)], sys.argv[1], work)
"""


def start(folder: Path, seconds: float) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", PROCESS, str(folder), str(seconds), str(folder / "log")], stderr=subprocess.DEVNULL)


def wait_for(path: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_processes_share_the_runs_and_take_over_from_the_dead(tmp_path):
    killed = start(tmp_path, 600)
    wait_for(tmp_path / "n=0" / "started", killed)
    other = start(tmp_path, 0.05)
    wait_for(tmp_path / "n=3" / RESULT, other)
    time.sleep(0.3)
    assert other.poll() is None, "waits for the run that is still being worked on"
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert other.wait(timeout=60) == 0
    results = [json.loads((tmp_path / f"n={n}" / RESULT).read_text()) for n in range(4)]
    assert [r["result"]["pid"] for r in results] == [other.pid] * 4


def test_two_living_processes_do_each_run_once(tmp_path):
    processes = [start(tmp_path, 0.3) for _ in range(2)]
    assert [p.wait(timeout=60) for p in processes] == [0, 0]
    assert sorted((tmp_path / "log").read_text().split()) == ["0", "1", "2", "3"]
