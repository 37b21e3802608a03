"""What is logged can be read back, whatever interrupted the training."""

import csv
import json
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from nufm_hub.cli import app
from nufm_hub.training import logs, train
from nufm_hub.training.logs import LOG_FILE, CSVLogger, loggers

HISTORY = [
    {"loss": 2.5, "epoch": 1.0, "step": 8},
    {"eval_loss": 2.25, "epoch": 1.0, "step": 8},
    {"loss": 2.0, "loss_vertex": 0.5, "epoch": 2.0, "step": 16},
    {"eval_loss": 1.75, "epoch": 2.0, "step": 16},
    {"train_runtime": 3.5, "epoch": 2.0, "step": 16},
]


def read(path):
    with path.open(newline="") as file:
        return [{name: float(cell) for name, cell in row.items() if cell} for row in csv.DictReader(file)]


class FakeTrainer:
    """Calls a logger as the Trainer does: the history already holds the row."""

    def __init__(self, folder, history=(), first=True):
        self.args, self.state = SimpleNamespace(output_dir=str(folder)), SimpleNamespace(log_history=list(history), is_world_process_zero=first)
        self.logger = CSVLogger()
        self.logger.on_train_begin(self.args, self.state, None)

    def log(self, rows):
        for row in rows:
            self.state.log_history.append(row)
            self.logger.on_log(self.args, self.state, None)


def test_rows_are_complete_after_every_log_and_columns_grow(tmp_path):
    trainer = FakeTrainer(tmp_path)
    for count, row in enumerate(HISTORY, start=1):
        trainer.log([row])
        assert read(tmp_path / LOG_FILE) == HISTORY[:count]
    with (tmp_path / LOG_FILE).open(newline="") as file:
        assert next(csv.reader(file)) == ["step", "epoch", "loss", "eval_loss", "loss_vertex", "train_runtime"]
    assert [p.name for p in tmp_path.iterdir()] == [LOG_FILE]


def test_a_resumed_training_goes_on_from_its_checkpoint(tmp_path):
    for name in ("whole", "halves"):
        (tmp_path / name).mkdir()
    FakeTrainer(tmp_path / "whole").log(HISTORY)
    FakeTrainer(tmp_path / "halves").log([*HISTORY[:3], {"loss": 9.0, "epoch": 3.0, "step": 24}])
    with (tmp_path / "halves" / LOG_FILE).open("a") as file:
        file.write("3")  # the power failed in the middle of a row
    FakeTrainer(tmp_path / "halves", HISTORY[:2]).log(HISTORY[2:])
    assert (tmp_path / "halves" / LOG_FILE).read_bytes() == (tmp_path / "whole" / LOG_FILE).read_bytes()
    FakeTrainer(tmp_path / "halves")  # one that starts over
    assert read(tmp_path / "halves" / LOG_FILE) == []


def test_only_the_first_process_writes(tmp_path):
    FakeTrainer(tmp_path, first=False).log(HISTORY)
    assert not list(tmp_path.iterdir())


def test_a_training_logs_to_csv_and_tensorboard(toy_files, recipe, tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    settings = recipe | {"epochs": 3}
    model = train("flavour", settings, toy_files["train"], tmp_path / "run", None, toy_files["validation"], use_cpu=True, report_to="csv,tensorboard")
    curves = json.loads((model / "training.json").read_text())["curves"]
    assert read(tmp_path / "run" / LOG_FILE) == curves
    assert [row["step"] for row in curves if "loss" in row] == [8, 16, 24]

    written = list((tmp_path / "run" / "runs").rglob("events.out.tfevents.*"))
    assert len(written) == 1
    events = event_accumulator.EventAccumulator(str(written[0])).Reload()
    for tag, name in (("train/loss", "loss"), ("eval/loss", "eval_loss"), ("eval/macro_auroc", "eval_macro_auroc")):
        expected = [(row["step"], pytest.approx(row[name], rel=1e-6)) for row in curves if name in row]
        assert [(scalar.step, scalar.value) for scalar in events.Scalars(tag)] == expected


def test_names_of_loggers(monkeypatch, tmp_path):
    assert loggers("none") == ([], [])
    names, own = loggers("tensorboard, csv")
    assert names == ["tensorboard"]
    assert [type(logger) for logger in own] == [CSVLogger]
    with pytest.raises(ValueError, match="cannot log to 'tensorbord'"):
        loggers("csv,tensorbord")
    with pytest.raises(ValueError, match="cannot log to 'none'"):
        loggers("csv,none")
    monkeypatch.setattr(logs, "is_tensorboard_available", lambda: False)
    result = CliRunner().invoke(app, ["finetune", "flavour", "--events", "x", "--out", str(tmp_path / "run"), "--report-to", "tensorboard"])
    assert result.exit_code == 2
    assert "nufm-hub[logging]" in result.output.replace("\n", "")
