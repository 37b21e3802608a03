"""The whole study on toy events: tuned on validation, compared on test, resumed, shared, summarised."""

import csv
import json
import os
import subprocess
import sys
import time

import pytest
import torch
from typer.testing import CliRunner

from nufm_hub.cli import app
from nufm_hub.files import sha256_of
from nufm_hub.studies import fine_tuning
from nufm_hub.training import train
from nufm_hub.training.folder import _last_checkpoint

RATES = (0.02, 0.2)


@pytest.fixture(scope="module")
def pretrained(toy_files, recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrained")
    return train("pretraining", recipe | {"epochs": 1}, toy_files["train"], folder / "mae", use_cpu=True)


@pytest.fixture
def arguments(toy_files, recipe, pretrained, tmp_path):
    """Makes a command with `budgets` x `seeds` runs of each initialisation; tuning takes two trials of each."""
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    plan = {
        "recipe": str(tmp_path / "recipe.json"),
        "epochs": {"8": 2, "48": 1},
        "overrides": {"scratch": {"warmup": 0.0}},
        "tuning": {"base_learning_rates": RATES, "epoch_factors": [1], "budgets": [16], "seeds": [77]},
    }
    (tmp_path / "plan.json").write_text(json.dumps(plan))

    def make(budgets=("8",), seeds=(0,), initialisations=("scratch", f"mae={pretrained}")):
        return [
            *("study", "data-efficiency", "--cpu", "--plan", str(tmp_path / "plan.json")),
            *(f"--{name}={toy_files[file]}" for name, file in (("events", "train"), ("validation", "validation"), ("test", "test"))),
            *(f"--initialisation={i}" for i in initialisations),
            *(f"--budget={b}" for b in budgets),
            *(f"--seed={seed}" for seed in seeds),
            *("--rival", "mean"),
            *("--out", str(tmp_path / "runs"), "--results", str(tmp_path / "results")),
        ]

    return make


def invoke(command):
    return CliRunner().invoke(app, command)


def says(result, message):
    """Whatever lines and boxes the message was broken into."""
    return "".join(message.split()) in "".join(result.output.replace("│", "").split())


def read_csv(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def results_of(tmp_path):
    folder = tmp_path / "results"
    return json.loads((folder / "data-efficiency.json").read_text()), read_csv(folder / "data-efficiency.csv")


@pytest.fixture
def one_thread():
    """As `start` has: sums over threads differ in the last digits, and so do the weights in the end."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def start(command, tmp_path):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    run = [sys.executable, "-c", "from nufm_hub.cli import app; app()", *command]
    return subprocess.Popen(run, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def metrics(rows):
    """What does not depend on the time it took."""
    return [{k: v for k, v in row.items() if k not in ("seconds", "training_seconds", "git_revision")} for row in rows]


@pytest.mark.slow
def test_from_tuning_to_figures_through_an_interruption(arguments, toy_files, tmp_path, monkeypatch):
    command, evaluated, stop_before = arguments(["8", "all"], [0, 1]), [], 3
    original = fine_tuning.evaluate

    def watched(model, events, **kwargs):
        if len(evaluated) == stop_before:
            raise KeyboardInterrupt
        evaluated.append((str(model).split(os.sep)[-3], [str(e) for e in events]))
        return original(model, events, **kwargs)

    monkeypatch.setattr(fine_tuning, "evaluate", watched)
    for done in ("3 of 4 trials, 0 of 12 runs", "4 of 4 trials, 3 of 12 runs"):
        assert invoke(command).exit_code != 0
        result = invoke([*command, "--summarise"])
        assert result.exit_code == 0
        assert done in result.output
        stop_before = 6
    assert len(results_of(tmp_path)[1]) == results_of(tmp_path)[0]["runs"]["finished"] == 3
    stop_before = None
    result = invoke(command)
    assert result.exit_code == 0, result.output
    assert "4 of 4 trials, 12 of 12 runs" in result.output

    # In spite of all that, every model is evaluated once: trials on validation, and only then runs on test.
    assert evaluated == [("tuning", [str(toy_files["validation"])])] * 4 + [("study", [str(toy_files["test"])])] * 8

    summary, rows = results_of(tmp_path)
    order = [(int(r["seed"]), int(r["labels"]), r["initialisation"]) for r in rows]
    assert order == [(s, n, i) for s in (0, 1) for n in (8, 48) for i in ("scratch", "mae", "mean")]
    trials = read_csv(tmp_path / "results" / "data-efficiency-tuning.csv")
    assert len(trials) == 4
    for name in ("scratch", "mae"):
        best = min((t for t in trials if t["initialisation"] == name), key=lambda t: float(t["objective"]))
        chosen = next(c for c in summary["tuning"]["chosen"] if c["initialisation"] == name)
        assert chosen["base_learning_rate"] == float(best["base_learning_rate"])
        assert {float(r["base_learning_rate"]) for r in rows if r["initialisation"] == name} == {chosen["base_learning_rate"]}
    assert [r["epochs"] for r in rows[:6]] == ["2", "2", "", "1", "1", ""]
    assert [r["steps"] for r in rows[:6]] == ["2", "2", "", "6", "6", ""]

    record = json.loads((tmp_path / "runs" / "study" / "n8-seed0-scratch" / "result.json").read_text())
    assert float(rows[0]["flavour.macro_auroc"]) == record["result"]["evaluation"]["metrics"]["flavour"]["macro_auroc"]
    assert record["settings"]["recipe"]["warmup"] == 0.0
    assert record["settings"]["evaluated"]["test"]["sha256"] == sha256_of([toy_files["test"]])
    left = {p.name for p in (tmp_path / "runs" / "study" / "n8-seed0-scratch").iterdir()}
    assert left == {"result.json", "predictions.npz"}, "no weights are left"

    entry = summary["summary"][0]
    values = [float(r["vertex.vertex_error_mean"]) for r in rows if (r["initialisation"], r["labels"]) == ("scratch", "8")]
    assert entry["metrics"]["vertex.vertex_error_mean"]["mean"] == pytest.approx(sum(values) / 2)
    assert entry["metrics"]["vertex.vertex_error_mean"]["values"] == values
    against = next(c for c in summary["against_scratch"] if (c["metric"], c["labels"]) == ("vertex.vertex_error_mean", 8))
    assert against["reference_mean"] == pytest.approx(sum(values) / 2)
    assert {name: d["events"] for name, d in summary["data"].items()} == {"train": 48, "validation": 20, "test": 24}
    assert summary["runs"] == {"finished": 12, "planned": 12, "diverged": 0}
    versus = next(c for c in summary["against_rivals"] if (c["initialisation"], c["metric"], c["labels"]) == ("mae", "vertex.vertex_error_mean", 8))
    by_name = {(r["initialisation"], int(r["seed"])): float(r["vertex.vertex_error_mean"]) for r in rows if r["labels"] == "8"}
    assert (versus["rival"], versus["seeds"]) == ("mean", [0, 1])
    assert versus["difference"] == pytest.approx([by_name["mae", seed] - by_name["mean", seed] for seed in (0, 1)])
    assert all(low <= value <= high for low, value, high in zip(versus["low"], versus["difference"], versus["high"]))
    assert versus["better_outside"] == sum(high < 0 for high in versus["high"])
    assert summary["plan"]["epochs"] == {"8": 2, "48": 1}
    assert summary["plan"]["recipe"]["batch_size"] == 8
    for figure in ("curves", "classes", "kinematics"):
        assert (tmp_path / "results" / f"data-efficiency-{figure}.png").read_bytes().startswith(b"\x89PNG")

    # Once more: nothing is trained, the same comes out.
    evaluated.clear()
    before = {p.name: p.read_bytes() for p in (tmp_path / "results").iterdir()}
    assert invoke(command).exit_code == 0
    assert not evaluated
    assert {name: data for name, data in before.items() if not name.endswith("png")} == {
        p.name: p.read_bytes() for p in (tmp_path / "results").iterdir() if p.suffix != ".png"
    }


@pytest.mark.usefixtures("one_thread")
def test_a_recipe_in_steps_trains_every_point_alike(arguments, tmp_path):
    result = invoke([*arguments(["8", "48"], [0], ["scratch"]), "--tune-learning-rate", "0.1", "--set", "steps=3"])
    assert result.exit_code == 0, result.output
    trained = [r for r in results_of(tmp_path)[1] if r["initialisation"] == "scratch"]
    assert [(r["labels"], r["steps"], r["epochs"]) for r in trained] == [("8", "3", ""), ("48", "3", "")]


def test_test_events_stay_closed_until_all_is_tuned(arguments, tmp_path):
    (tmp_path / "sealed.parquet").write_bytes(b"cannot be read")
    result = invoke([a if not a.startswith("--test=") else f"--test={tmp_path / 'sealed.parquet'}" for a in arguments()])
    assert result.exit_code == 2
    assert says(result, "sealed.parquet is not a readable parquet file")
    assert len(list((tmp_path / "runs" / "tuning").glob("*/result.json"))) == 4
    assert not (tmp_path / "runs" / "study").exists()


def test_each_task_has_files_of_its_own(arguments, tmp_path):
    """So that the results of another task do not replace those of the joint one."""
    result = invoke([*arguments(initialisations=["scratch"]), "--task", "vertex", "--tune-learning-rate", "0.02"])
    assert result.exit_code == 0, result.output
    names = {p.name for p in (tmp_path / "results").iterdir()}
    assert names == {f"data-efficiency-vertex{end}" for end in (".csv", ".json", "-curves.png", "-kinematics.png")}
    assert json.loads((tmp_path / "results" / "data-efficiency-vertex.json").read_text())["study"] == "data-efficiency-vertex"


@pytest.mark.slow
def test_a_study_that_was_killed_goes_on_to_the_same_results(arguments, tmp_path, one_thread):
    """In the middle of a training, which is resumed from its checkpoint."""
    command = [*arguments(["all"], [0], ["scratch"]), "--tune-epochs", "40", "--tune-learning-rate", "0.1"]
    whole = [*command, "--out", str(tmp_path / "whole"), "--results", str(tmp_path / "whole-results")]
    assert invoke(whole).exit_code == 0
    process = start(command, tmp_path)
    deadline = time.monotonic() + 120
    while not any(_last_checkpoint(folder) for folder in (tmp_path / "runs").rglob("training")):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert not (tmp_path / "results" / "data-efficiency.csv").exists()
    assert invoke(command).exit_code == 0
    result = json.loads((tmp_path / "runs" / "study" / "n48-seed0-scratch" / "result.json").read_text())
    assert result["result"]["training"]["resumed"]
    expected = read_csv(tmp_path / "whole-results" / "data-efficiency.csv")
    assert metrics(results_of(tmp_path)[1]) == metrics(expected)


@pytest.mark.slow
def test_two_processes_share_the_study(arguments, tmp_path):
    processes = [start(arguments(), tmp_path) for _ in range(2)]
    for process in processes:
        output, _ = process.communicate(timeout=240)
        assert process.returncode == 0, output
        assert "4 of 4 trials, 3 of 3 runs" in output
    assert len(results_of(tmp_path)[1]) == 3


def test_a_single_setting_needs_no_tuning_and_weights_that_diverge_are_counted(arguments, tmp_path, monkeypatch):
    original = fine_tuning.train

    def broken(task, recipe, events, output, *args, seed, **kwargs):
        return original(
            task, recipe | ({"base_learning_rate": 1e30, "max_grad_norm": 1e30} if seed else {}), events, output, *args, seed=seed, **kwargs
        )

    monkeypatch.setattr(fine_tuning, "train", broken)
    result = invoke([*arguments(["8"], [0, 1], ["scratch"]), "--tune-learning-rate", "0.1"])
    assert result.exit_code == 0, result.output
    summary, rows = results_of(tmp_path)
    assert (summary["tuning"]["planned"], summary["runs"]["diverged"]) == (0, 1)
    trained = [r for r in rows if r["initialisation"] == "scratch"]
    assert {r["base_learning_rate"] for r in trained} == {"0.1"}
    assert [bool(r["flavour.macro_auroc"]) for r in trained] == [True, False]
    assert summary["summary"][0]["metrics"]["flavour.macro_auroc"]["count"] == 1


def test_other_settings_in_the_same_folder_are_refused(arguments):
    command = [*arguments(initialisations=["scratch"]), "--tune-learning-rate", "0.1"]
    assert invoke(command).exit_code == 0
    result = invoke([*command[:-1], "0.2"])
    assert result.exit_code == 2
    assert says(result, "other settings (recipe)")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--budget", "49"], "budget '49': give numbers from 1 to 48"),
        (["--budget", "few"], "budget 'few'"),
        (["--seed", "77"], r"seeds [77] are those of the tuning"),
        (["--seed", "0"], "seeds [0, 1, 0]: give one or more, each once"),
        (["--initialisation", "mae"], "initialisation 'mae': give scratch, or NAME=checkpoint"),
        (["--initialisation", "scratch=x"], "initialisation 'scratch=x'"),
        (["--initialisation", "b=nowhere/at-all"], "nowhere/at-all is neither"),
        (["--task", "pretraining"], "task 'pretraining'"),
        (["--tune-budget", "100"], "tuning budget 100 is larger than the 48 training events"),
        (["--set", "colour=1"], "colour"),
        (["--validation", "TRAIN"], "train.parquet is among both events and validation"),
        (["--test", "nowhere"], "nowhere matches no parquet file"),
        (["--plan", "nothing"], "unknown plan 'nothing'"),
    ],
)
def test_bad_input_is_named_before_anything_is_trained(options, message, arguments, toy_files, tmp_path):
    result = invoke([*arguments(seeds=[0, 1]), *(str(toy_files["train"]) if o == "TRAIN" else o for o in options)])
    assert result.exit_code == 2
    assert says(result, message)
    assert not (tmp_path / "runs").exists()
