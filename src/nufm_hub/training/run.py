"""One training from a recipe: `train("flavour", "fasercal-finetune-nano", ...)`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments, set_seed

from nufm_hub.evaluation import checkpoint_folder, weights_sha256
from nufm_hub.provenance import git_revision, machine, package_versions
from nufm_hub.tasks import get_task

from .data import AugmentedEvents, EvaluateAt, EventCollator, SetEpoch, describe_data, open_events
from .ema import ExponentialMovingAverage
from .folder import MODEL_FOLDER, claim, resumable, save_checkpoint
from .logs import LogEnd, loggers
from .particles import ParticleCollator
from .recipe import Recipe, load_recipe
from .start import start
from .trainer import EventTrainer


def train(
    task: str,
    recipe: str | Path | Mapping[str, Any] | Recipe,
    events: str | Path | list[str | Path],
    output_dir: str | Path,
    source: str | Path | None = None,
    validation: str | Path | list[str | Path] | None = None,
    seed: int = 0,
    use_cpu: bool = False,
    workers: int = 0,
    save_every: int = 5,
    report_to: str = "none",
    gradient_checkpointing: bool = False,
    max_events: int | None = None,
    transfer: bool = False,
    evaluations: int | None = None,
    precision: str = "float32",
) -> Path:
    """Train a model and save it, with its processor and `training.json`, in `output_dir/model`.

    An interrupted run in `output_dir` is taken up at its last checkpoint if all settings are the same.

    Args:
        task: one of `TASKS`.
        recipe: see `load_recipe`.
        events: parquet shards to train on: file, folder, glob or a list of these.
        output_dir: folder of the run.
        source: id or folder of the checkpoint to start from; random weights of the recipe's preset when None.
        validation: parquet shards for the loss and metrics after each epoch (with a recipe in steps, at least ten times); the weights with
            the lowest validation loss are kept, unless `evaluations` is given.
        seed: of weights, order, augmentation and masking.
        use_cpu: train on the CPU even where there is a GPU.
        workers: processes that prepare batches.
        save_every: epochs between checkpoints; with a recipe in steps, tenths of the training where these are shorter.
        report_to: where to log besides `training.json`, with commas between names: `"csv"`, `"tensorboard"`, see `loggers`.
        gradient_checkpointing: compute activations twice instead of keeping them: less memory, more time, same weights.
        max_events: use only so many of the events, for weights and statistics alike: the first of a random order that the seed gives,
            so that of one seed the smaller subset lies in the larger one.
        transfer: the source reads another detector: take its encoder along, and all else new, see `nufm_hub.transfer_encoder`. The report
            of what was carried over is saved with the model.
        evaluations: evaluate validation events so often, at equal numbers of steps, and keep the weights of the end of the training.
        precision: `"float32"`, or `"bf16"` or `"fp16"` for mixed precision on a GPU: weights stay float32, matrix products do not.

    Returns:
        `output_dir/model`.

    Raises:
        ValueError: unknown task, recipe or logger, data of another detector than the source's (without `transfer`), fewer events than
            `max_events`, no such source, sizes of the model that are not the source's, several GPUs in one process, a precision that the
            device lacks, or options that do not go together.
        ImportError: a logger's package is missing.
        FileExistsError: `output_dir` holds a finished run, a run with other settings, or other files.
    """
    definition, recipe, output_dir = get_task(task), load_recipe(recipe), Path(output_dir)
    source = None if source is None else str(source)
    if evaluations is not None and (validation is None or evaluations < 1):
        raise ValueError(f"evaluations={evaluations} needs validation events and at least 1")
    integrations, own_loggers = loggers(report_to)
    processes = _processes(output_dir, use_cpu)
    mixed = _mixed_precision(precision, use_cpu)
    with processes.main_process_first(local=False):
        train_events, validation_events = open_events(definition, events, validation, max_events, seed)
        settings = {
            "task": task,
            "source": source,
            "recipe": recipe.to_dict(),
            "seed": seed,
            "data": {"train": describe_data(train_events), "validation": None if validation_events is None else describe_data(validation_events)},
        }
        options = {"max_events": max_events, "transfer": transfer or None, "evaluations": evaluations, "precision": precision if mixed else None}
        settings |= {name: value for name, value in options.items() if value is not None}
        resume = resumable(output_dir, settings)
    processes.distributed_state.wait_for_everyone()  # all have looked before one writes into the folder

    accumulation = _accumulation(recipe, processes.world_size)
    source_sha256 = None if source is None else weights_sha256(checkpoint_folder(source))
    set_seed(seed)
    model, processor = start(definition, recipe, train_events, source, transfer, replace_targets=max_events is not None)
    claim(output_dir, settings)

    augmentation = recipe.make_augmentation()
    trainer = EventTrainer(
        recipe=recipe,
        ema=ExponentialMovingAverage(recipe.ema_decay, resume) if recipe.ema_decay else None,
        model=model,
        args=_arguments(
            output_dir,
            recipe,
            steps_per_epoch=-(-len(train_events) // recipe.batch_size),
            gradient_accumulation_steps=accumulation,
            keep_best=validation_events is not None and evaluations is None,
            save_every=save_every,
            seed=seed,
            data_seed=seed,
            use_cpu=use_cpu,
            dataloader_num_workers=workers,
            dataloader_pin_memory=torch.cuda.is_available() and not use_cpu,
            prediction_loss_only=definition.metrics is None,
            report_to=integrations,
            **mixed,
            **({"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}} if gradient_checkpointing else {}),
        ),
        train_dataset=train_events if augmentation is None else AugmentedEvents(train_events, augmentation, train_events.spec, seed),
        eval_dataset=validation_events,
        data_collator=ParticleCollator(processor) if definition.grouped else EventCollator(processor, definition.labels),
        processing_class=processor,
        compute_metrics=definition.metrics(processor) if definition.metrics and validation_events is not None else None,
        callbacks=[SetEpoch(), LogEnd(), *own_loggers, *([EvaluateAt(evaluations)] if evaluations else [])],
    )
    started = time.time()
    trainer.train(resume_from_checkpoint=resume)
    record = {
        **settings,
        "source_sha256": source_sha256,
        "git_revision": git_revision(),
        "versions": package_versions(),
        "machine": machine(),
        "processes": processes.world_size,
        "seconds": round(time.time() - started, 1),
        **trainer.rates,
        "resumed": resume is not None,
        "parameters": sum(p.numel() for p in model.parameters()),
        "best_checkpoint_metric": trainer.state.best_metric,
        "curves": trainer.state.log_history,
    }
    target = output_dir / MODEL_FOLDER
    if trainer.is_world_process_zero():
        save_checkpoint(model, processor, record, target)
    return target


def _processes(output_dir: Path, use_cpu: bool) -> TrainingArguments:
    """What is known of the processes of this training; several GPUs in one of them are refused."""
    processes = TrainingArguments(output_dir=str(output_dir), use_cpu=use_cpu)
    if processes.n_gpu > 1:  # the Trainer would split batches among them by DataParallel, which our inputs and losses do not allow
        raise ValueError(
            f"{processes.n_gpu} GPUs are visible to one process: start one for each with `torchrun --no-python --nproc-per-node "
            f"{processes.n_gpu} nufm ...`, or choose one with CUDA_VISIBLE_DEVICES"
        )
    return processes


def _mixed_precision(precision: str, use_cpu: bool) -> dict[str, bool]:
    """The argument of `TrainingArguments` that asks for it; none for float32."""
    if precision == "float32":
        return {}
    if precision not in ("bf16", "fp16"):
        raise ValueError(f"precision={precision!r} is none of float32, bf16, fp16")
    if use_cpu or not torch.cuda.is_available():
        raise ValueError(f"precision={precision!r} needs a GPU: on a CPU it is slower than float32, and less exact")
    if precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ValueError(f"precision='bf16': {torch.cuda.get_device_name()} has no bfloat16; use fp16 or float32")
    return {precision: True}


def _accumulation(recipe: Recipe, world: int) -> int:
    per_pass = recipe.micro_batch_size * world
    if recipe.batch_size % per_pass:
        raise ValueError(f"batch_size {recipe.batch_size} is no multiple of micro_batch_size {recipe.micro_batch_size} times {world} processes")
    return recipe.batch_size // per_pass


def _arguments(
    output_dir: Path, recipe: Recipe, steps_per_epoch: int, keep_best: bool, save_every: int, **options: Any
) -> TrainingArguments:
    """The recipe in the words of `Trainer`; with `keep_best` the weights with the lowest validation loss are loaded at the end."""
    if recipe.steps is None:
        length, unit, interval = {"num_train_epochs": recipe.epochs}, "epoch", steps_per_epoch
    else:  # an epoch of many events may be longer than all of the training
        length, unit, interval = {"max_steps": recipe.steps}, "steps", min(steps_per_epoch, -(-recipe.steps // 10))
    return TrainingArguments(
        output_dir=str(output_dir),
        **length,
        per_device_train_batch_size=recipe.micro_batch_size,
        per_device_eval_batch_size=recipe.micro_batch_size,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=recipe.warmup,
        max_grad_norm=recipe.max_grad_norm,
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
        eval_strategy=unit if keep_best else "no",
        eval_steps=interval,
        save_strategy=unit if keep_best else "steps",
        save_steps=interval if keep_best else save_every * interval,
        save_total_limit=2,
        load_best_model_at_end=keep_best,
        # Not "epoch", which logs after a checkpoint of the same step is written: a resumed run would lack that entry.
        logging_strategy="steps",
        logging_steps=interval,
        disable_tqdm=False,
        **options,
    )
