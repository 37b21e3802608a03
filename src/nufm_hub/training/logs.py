"""Where a training writes its curves besides `training.json`: a CSV file, and what transformers knows by name."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.integrations import INTEGRATION_TO_CALLBACK, is_tensorboard_available

from nufm_hub.files import new_file

LOG_FILE = "log.csv"


class CSVLogger(TrainerCallback):
    """Writes all that the Trainer logs to `log.csv` in the folder of the run: one row a log, `step` and `epoch` first.

    Quantities that appear later (the first evaluation, the end of the training) get further columns; cells are empty where a row has no value.
    A resumed training starts from the history of its checkpoint: rows that were logged after it, or cut short, are written again.
    """

    def __init__(self) -> None:
        self._columns: list[str] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self._rewrite(args, state)

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        row = state.log_history[-1]
        if set(row) <= set(self._columns):
            with (Path(args.output_dir) / LOG_FILE).open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, self._columns).writerow(row)
        else:
            self._rewrite(args, state)

    def _rewrite(self, args: Any, state: Any) -> None:
        self._columns = list(dict.fromkeys(["step", "epoch", *(name for row in state.log_history for name in row)]))
        with new_file(Path(args.output_dir) / LOG_FILE, overwrite=True) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(state.log_history)


class LogEnd(TrainerCallback):
    """Logs after the last step too, which the interval between logs need not meet."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_log |= state.global_step >= state.max_steps


def loggers(report_to: str) -> tuple[list[str], list[TrainerCallback]]:
    """What `TrainingArguments` takes as `report_to`, and further callbacks, for names with commas between them: `csv`, `none`, or any that
    transformers knows (`tensorboard`, ...).

    Raises:
        ValueError: an unknown name.
        ImportError: tensorboard is missing.
    """
    names = list(dict.fromkeys(name.strip() for name in report_to.split(",")))
    if names == ["none"]:
        return [], []
    if unknown := [name for name in names if name not in {"csv", *INTEGRATION_TO_CALLBACK}]:
        raise ValueError(f"cannot log to {unknown[0]!r}: give none, or some of csv, tensorboard and the others that transformers knows")
    if "tensorboard" in names and not is_tensorboard_available():
        raise ImportError('logging to TensorBoard needs tensorboard: pip install "nufm-hub[logging]"')
    return [name for name in names if name != "csv"], [CSVLogger()] if "csv" in names else []
