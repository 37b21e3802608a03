"""One training from a recipe: `train("flavour", "fasercal-finetune-nano", ...)`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, Trainer, TrainingArguments, set_seed
from transformers.trainer import TRAINER_STATE_NAME

from nufm_hub.detectors import DetectorSpec
from nufm_hub.evaluation import checkpoint_folder, weights_sha256
from nufm_hub.events import Event, EventDataset
from nufm_hub.files import new_file, new_folder
from nufm_hub.metrics import flavour_metrics, momentum_metrics, reconstruction_metrics, vertex_metrics, voxel_metrics
from nufm_hub.models import (
    NuFMConfig,
    NuFMForCharmClassification,
    NuFMForEventParticleID,
    NuFMForEventReconstruction,
    NuFMForFlavourClassification,
    NuFMForMomentumRegression,
    NuFMForParticleID,
    NuFMForPreTraining,
    NuFMForVertexRegression,
    NuFMForVoxelClassification,
    NuFMProcessor,
)
from nufm_hub.provenance import git_revision, machine, package_versions, simulations_of
from nufm_hub.transfer import transfer_encoder

from .data import AugmentedEvents, EvaluateAt, EventSubset, HeldEvents, NuFMCollator, SetEpoch
from .ema import ExponentialMovingAverage
from .logs import loggers
from .optimiser import parameter_groups
from .particles import ParticleCollator, ParticleEvents
from .recipe import Recipe, load_recipe

MODEL_FOLDER, MARKER = "model", "run.json"
_HELD_BYTES = 600_000_000  # of events small enough to keep in memory


@dataclass(frozen=True)
class Task:
    """A model class, the labels its loss needs (see `NuFMProcessor.__call__`), its metrics, whether it needs scales of momenta, and whether it
    takes all particles of an event at once."""

    model: type[PreTrainedModel]
    labels: str
    metrics: Callable[[NuFMProcessor], Callable] | None = None
    momenta: bool = False
    grouped: bool = False

    def open(self, events: str | Path | list[str | Path], detector: DetectorSpec | None = None) -> EventDataset | ParticleEvents:
        """The events of parquet shards, as the model takes them."""
        opened = EventDataset(events, detector)
        return ParticleEvents(opened) if self.grouped else opened


TASKS = {
    "pretraining": Task(NuFMForPreTraining, "voxels"),
    "flavour": Task(NuFMForFlavourClassification, "flavour", lambda processor: flavour_metrics),
    "vertex": Task(NuFMForVertexRegression, "vertex", vertex_metrics),
    "charm": Task(NuFMForCharmClassification, "charm", lambda processor: flavour_metrics),
    "momentum": Task(NuFMForMomentumRegression, "reconstruction", momentum_metrics, momenta=True),
    "reconstruction": Task(NuFMForEventReconstruction, "reconstruction", reconstruction_metrics, momenta=True),
    "voxels": Task(NuFMForVoxelClassification, "voxels", voxel_metrics),
    "particle": Task(NuFMForParticleID, "particle", lambda processor: flavour_metrics),
    # No metrics during training: the Trainer expects one prediction an event, and cuts off what is more in the last batch.
    "event-particles": Task(NuFMForEventParticleID, "particle", grouped=True),
}


Events = EventDataset | EventSubset | ParticleEvents | HeldEvents


class NuFMTrainer(Trainer):
    """`Trainer` with the recipe's parameter groups; evaluates and saves a moving average if there is one; logs the parts of a summed loss."""

    def __init__(self, *args: Any, recipe: Recipe, ema: ExponentialMovingAverage | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.recipe, self.ema = recipe, ema
        if ema is not None:
            self.add_callback(ema)
        self._parts: dict[str, list[torch.Tensor]] = {}

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            r = self.recipe
            report = getattr(self.model, "transfer_report", None)
            carried = set(report.names("loaded")) if report else ()
            groups = parameter_groups(self.model if model is None else model, r.learning_rate, r.weight_decay, r.layer_decay, carried, r.carried_rate)
            self.optimizer = torch.optim.AdamW(groups, lr=r.learning_rate, betas=r.betas)
        return self.optimizer

    def compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **kwargs: Any) -> Any:
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        if model.training:
            for name, value in (outputs.get("losses") or {}).items():
                self._parts.setdefault(name, []).append(value.detach())
        return (loss, outputs) if return_outputs else loss

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        with nullcontext() if self.ema is None else self.ema.averaged(self.model):
            return super().evaluate(*args, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        if self.ema is None:
            return super()._save(output_dir, state_dict)
        with self.ema.averaged(self.model):
            super()._save(output_dir, state_dict)
        if self.args.should_save and self.is_in_train:
            self.ema.save_weights(self.model, output_dir or self.args.output_dir)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs:
            logs |= {f"loss_{name}": round(torch.stack(values).mean().item(), 5) for name, values in sorted(self._parts.items())}
            self._parts.clear()
        super().log(logs, *args, **kwargs)


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
) -> Path:
    """Train a model and save it, with its processor and `training.json`, in `output_dir/model`.

    An interrupted run in `output_dir` is taken up at its last checkpoint if all settings are the same.

    Args:
        task: one of `TASKS`.
        recipe: see `load_recipe`.
        events: parquet shards to train on: file, folder, glob or a list of these.
        output_dir: folder of the run.
        source: id or folder of the checkpoint to start from; random weights of the recipe's preset when None.
        validation: parquet shards for the loss and metrics after each epoch; the weights with the lowest validation loss are kept, unless
            `evaluations` is given.
        seed: of weights, order, augmentation and masking.
        use_cpu: train on the CPU even where there is a GPU.
        workers: processes that prepare batches.
        save_every: epochs between checkpoints.
        report_to: where to log besides `training.json`, with commas between names: `"csv"`, `"tensorboard"`, see `loggers`.
        gradient_checkpointing: compute activations twice instead of keeping them: less memory, more time, same weights.
        max_events: use only so many of the events, for weights and statistics alike: the first of a random order that the seed gives,
            so that of one seed the smaller subset lies in the larger one.
        transfer: the source reads another detector: take its encoder along, and all else new, see `nufm_hub.transfer_encoder`. The report
            of what was carried over is saved with the model.
        evaluations: evaluate validation events so often, at equal numbers of steps, and keep the weights of the end of the training.

    Returns:
        `output_dir/model`.

    Raises:
        ValueError: unknown task, recipe or logger, data of another detector than the source's (without `transfer`), fewer events than
            `max_events`, no such source, sizes of the model that are not the source's, several GPUs in one process, or options that do not
            go together.
        ImportError: a logger's package is missing.
        FileExistsError: `output_dir` holds a finished run, a run with other settings, or other files.
    """
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}: give one of {sorted(TASKS)}")
    definition, recipe, output_dir = TASKS[task], load_recipe(recipe), Path(output_dir)
    source = None if source is None else str(source)
    augmentation = recipe.make_augmentation()
    if evaluations is not None and (validation is None or evaluations < 1):
        raise ValueError(f"evaluations={evaluations} needs validation events and at least 1")
    integrations, own_loggers = loggers(report_to)
    processes = TrainingArguments(output_dir=str(output_dir), use_cpu=use_cpu)
    if processes.n_gpu > 1:  # the Trainer would split batches among them by DataParallel, which our inputs and losses do not allow
        raise ValueError(
            f"{processes.n_gpu} GPUs are visible to one process: start one for each with `torchrun --no-python --nproc-per-node "
            f"{processes.n_gpu} nufm ...`, or choose one with CUDA_VISIBLE_DEVICES"
        )
    with processes.main_process_first(local=False):
        train_events = definition.open(events)
        validation_events = definition.open(validation, train_events.spec) if validation is not None else None
        if max_events is not None:
            train_events = EventSubset(train_events, max_events, seed)
        if workers == 0:  # others would hold copies of their own
            train_events, validation_events = (e if e is None or e.nbytes > _HELD_BYTES else HeldEvents(e) for e in (train_events, validation_events))
        settings = {
            "task": task,
            "source": source,
            "recipe": recipe.to_dict(),
            "seed": seed,
            "data": {"train": describe_data(train_events), "validation": None if validation_events is None else describe_data(validation_events)},
        }
        options = {"max_events": max_events, "transfer": transfer or None, "evaluations": evaluations}
        settings |= {name: value for name, value in options.items() if value is not None}
        resume = _resumable(output_dir, settings)
    processes.distributed_state.wait_for_everyone()  # all have looked before one writes into the folder

    accumulation = _accumulation(recipe, processes.world_size)
    source_sha256 = None if source is None else weights_sha256(checkpoint_folder(source))
    set_seed(seed)
    model, processor = _start(definition, recipe, train_events, source, transfer, replace_targets=max_events is not None)
    _claim(output_dir, settings)

    keep_best = validation_events is not None and evaluations is None
    steps = -(-len(train_events) // recipe.batch_size)  # of an epoch
    trainer = NuFMTrainer(
        recipe=recipe,
        ema=ExponentialMovingAverage(recipe.ema_decay, resume) if recipe.ema_decay else None,
        model=model,
        args=TrainingArguments(
            output_dir=str(output_dir),
            num_train_epochs=recipe.epochs,
            per_device_train_batch_size=recipe.micro_batch_size,
            per_device_eval_batch_size=recipe.micro_batch_size,
            gradient_accumulation_steps=accumulation,
            learning_rate=recipe.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=recipe.warmup,
            max_grad_norm=recipe.max_grad_norm,
            seed=seed,
            data_seed=seed,
            use_cpu=use_cpu,
            dataloader_num_workers=workers,
            dataloader_pin_memory=torch.cuda.is_available() and not use_cpu,
            remove_unused_columns=False,
            ddp_find_unused_parameters=False,
            eval_strategy="epoch" if keep_best else "no",
            save_strategy="epoch" if keep_best else "steps",
            save_steps=1 if keep_best else save_every * steps,
            save_total_limit=2,
            load_best_model_at_end=keep_best,
            prediction_loss_only=definition.metrics is None,
            # Not "epoch", which logs after a checkpoint of the same step is written: a resumed run would lack that entry.
            logging_strategy="steps",
            logging_steps=steps,
            report_to=integrations,
            **({"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}} if gradient_checkpointing else {}),
            disable_tqdm=False,
        ),
        train_dataset=train_events if augmentation is None else AugmentedEvents(train_events, augmentation, train_events.spec, seed),
        eval_dataset=validation_events,
        data_collator=ParticleCollator(processor) if definition.grouped else NuFMCollator(processor, definition.labels),
        processing_class=processor,
        compute_metrics=definition.metrics(processor) if definition.metrics and validation_events is not None else None,
        callbacks=[SetEpoch(), *own_loggers, *([EvaluateAt(evaluations)] if evaluations else [])],
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
        "resumed": resume is not None,
        "parameters": sum(p.numel() for p in model.parameters()),
        "best_checkpoint_metric": trainer.state.best_metric,
        "curves": trainer.state.log_history,
    }
    target = output_dir / MODEL_FOLDER
    if trainer.is_world_process_zero():
        save_checkpoint(model, processor, record, target)
    return target


def _start(
    definition: Task, recipe: Recipe, events: Events, source: str | None, transfer: bool, replace_targets: bool
) -> tuple[PreTrainedModel, NuFMProcessor]:
    """The model before training, and its processor."""
    if source is None or transfer:
        if source is None and transfer:
            raise ValueError("transfer=True needs a source to take the encoder from")
        if transfer and NuFMConfig.from_pretrained(source).spec.hash == events.spec.hash:
            raise ValueError(f"{source} reads {events.spec.name!r} already: fine-tune it as it is, without transfer")
        processor = NuFMProcessor.fit(_singles(events), events.spec)
        options = _model_options(definition, recipe, processor)
        if transfer:
            return transfer_encoder(source, definition.model, events.spec, **options)[0], processor
        return definition.model(NuFMConfig.preset(recipe.preset, detector=events.spec, **options)), processor
    processor = NuFMProcessor.from_pretrained(source)
    if processor.spec.hash != events.spec.hash:
        raise ValueError(
            f"{source} reads detector {processor.spec.name!r} (hash {processor.spec.hash}), the events are of {events.spec.name!r} "
            f"(hash {events.spec.hash}): transfer the encoder to the new detector (transfer=True, --transfer)"
        )
    if replace_targets or (definition.momenta and processor.momentum_scales is None):
        # The source may have seen the truth of more events than it is to learn from now.
        processor = processor.with_targets(_singles(events), replace=replace_targets)
    options = _model_options(definition, recipe, processor)
    model, info = definition.model.from_pretrained(source, ignore_mismatched_sizes=True, output_loading_info=True, **options)
    # A new head or decoder is as it should be; another shape, or a layer of the encoder that the source lacks, comes of sizes in the recipe.
    if unfit := sorted({name for name, *_ in info["mismatched_keys"]} | {name for name in info["missing_keys"] if name.startswith("encoder.")}):
        raise ValueError(
            f"{source} has no weights that fit {unfit[:3]} ...: its sizes cannot be changed by the recipe, which has model={recipe.model}"
        )
    return model, processor


def _model_options(definition: Task, recipe: Recipe, processor: NuFMProcessor) -> dict[str, Any]:
    return recipe.model | ({"momentum_scales": processor.momentum_scales} if definition.momenta else {})


def _singles(events: Events) -> Iterator[Event]:
    """One by one, also the particles of an event."""
    for i in range(len(events)):
        event = events[i]
        yield from event if isinstance(event, list) else [event]


def save_checkpoint(model: PreTrainedModel, processor: NuFMProcessor, record: Mapping[str, Any], folder: Path, overwrite: bool = False) -> None:
    """Config, weights, processor and `training.json` in a new folder."""
    with new_folder(folder, overwrite) as temporary:
        model.save_pretrained(temporary)
        processor.save_pretrained(temporary)
        (temporary / "training.json").write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def describe_data(events: Events) -> dict[str, Any]:
    """Detector, number of events and where they came from; file names only, no folders."""
    return {
        "detector": events.spec.name,
        "detector_hash": events.spec.hash,
        "events": len(events),
        "files": [Path(f).name for f in events.files],
        "simulations": simulations_of(events.files),
    }


def _accumulation(recipe: Recipe, world: int) -> int:
    per_pass = recipe.micro_batch_size * world
    if recipe.batch_size % per_pass:
        raise ValueError(f"batch_size {recipe.batch_size} is no multiple of micro_batch_size {recipe.micro_batch_size} times {world} processes")
    return recipe.batch_size // per_pass


def _last_checkpoint(output_dir: Path) -> str | None:
    """The newest checkpoint that was written to its end."""
    complete = [folder for folder in output_dir.glob("checkpoint-*") if _is_complete(folder / TRAINER_STATE_NAME)]
    return str(max(complete, key=lambda folder: int(folder.name.split("-")[1]))) if complete else None


def _is_complete(state: Path) -> bool:
    """Whether the Trainer's state, which it writes last, and in place, is there to its closing bracket."""
    try:
        json.loads(state.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return False
    return True


def _resumable(output_dir: Path, settings: dict[str, Any]) -> str | None:
    """The checkpoint to resume from, if there is one of a run with these settings; refuses a folder that holds anything else."""
    marker = output_dir / MARKER
    if (output_dir / MODEL_FOLDER).exists():
        raise FileExistsError(f"{output_dir} holds a finished run: choose another output folder, or remove it first")
    if marker.is_file():
        if json.loads(marker.read_text(encoding="utf-8")) != json.loads(json.dumps(settings)):
            raise FileExistsError(f"{output_dir} holds a run with other settings ({marker.name}): choose another output folder, or remove it first")
        return _last_checkpoint(output_dir)
    if output_dir.exists() and any(output_dir.iterdir()):
        raise FileExistsError(f"{output_dir} exists and holds other files: choose another output folder")
    return None


def _claim(output_dir: Path, settings: dict[str, Any]) -> None:
    """Make the run's folder. Only once nothing is left to refuse: the same folder is then free for what is put right."""
    output_dir.mkdir(parents=True, exist_ok=True)
    with new_file(output_dir / MARKER, overwrite=True) as temporary:
        temporary.write_text(json.dumps(settings, indent=1, sort_keys=True) + "\n", encoding="utf-8")
