"""What frozen encoders know: linear probes and nearest neighbours on their pooled output, and a picture of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.preprocessing import StandardScaler

from nufm_hub.detectors import DetectorSpec
from nufm_hub.display.colouring import PALETTE
from nufm_hub.evaluation import class_scores, vertex_scores
from nufm_hub.events import EventDataset
from nufm_hub.files import sha256_of
from nufm_hub.models import AutoModel, AutoProcessor
from nufm_hub.training.data import EventSubset, describe_data

from .comparison import label_numbers
from .features import Encoded, encode, encoder_sha256, random_encoder, summarised
from .fine_tuning import refuse_shared_files
from .plots import new_figure, save
from .probes import linear_classes, linear_values, nearest_classes, nearest_values
from .runs import StudyRun, execute
from .tables import flatten, summarise, write_results

SCRATCH = "scratch"
# Features that probes read: event vectors, hand-made numbers of the events (the rival), or both.
VECTOR, SUMMARY, BOTH = "vector", "summary", "vector + summary"
EMBEDDING = "embedding.npz"
_SHOWN = 2000  # events of the picture


def study_representation(
    checkpoints: Mapping[str, str],
    events: Sequence[str | Path],
    test: Sequence[str | Path],
    folder: str | Path,
    results: str | Path,
    budgets: Sequence[int | str] = ("all",),
    seeds: Sequence[int] = (0,),
    scratch_seeds: int = 3,
    batch_size: int = 32,
    workers: int = 0,
    use_cpu: bool = False,
    num_resamples: int = 1000,
) -> list[dict[str, Any]]:
    """Probe frozen encoders, and write `representation.csv`, `.json` and `.png`.

    Args:
        checkpoints: id or folder of a checkpoint by name of its initialisation.
        events: parquet shards of the events that probes are fitted on.
        test: parquet shards of the events that they are judged by.
        folder: of the runs; what is done there is not done again, see `nufm_hub.studies.runs.execute`.
        results: folder of the tables and the figure, which are replaced.
        budgets: numbers of labelled events to fit on, shares such as `"10%"`, or `"all"`; they are those that a training with `max_events` has.
        seeds: of these subsets.
        scratch_seeds: number of encoders with random weights beside them, of the size and with the processor of the first checkpoint.
        batch_size: events of one forward pass.
        workers: processes that prepare batches.
        use_cpu: stay on the CPU even where there is a GPU.
        num_resamples: of the bootstrap intervals.

    Returns:
        The rows of the table, one for each encoder (and `summary`, which is none), kind of features, number of labels, subset and probe.

    Raises:
        ValueError: no checkpoint, one called scratch, events of another detector, or files that are in both `events` and `test`.
    """
    if not checkpoints or {SCRATCH, SUMMARY} & checkpoints.keys():
        raise ValueError(
            f"give the checkpoint of at least one initialisation, and none for {SCRATCH!r} (random weights) and {SUMMARY!r} (hand-made numbers); "
            f"got {dict(checkpoints)}"
        )
    new_figure()  # what plots need is missing now, not after hours
    refuse_shared_files({"events": events, "test": test})
    train_events, test_events = EventDataset(list(events)), EventDataset(list(test))
    spec, numbers = train_events.spec, label_numbers(budgets, len(train_events))
    identity = {"train": _identity(train_events), "test": _identity(test_events), "num_resamples": num_resamples, "subsets": list(seeds)}
    identity["labels"] = numbers
    loaded = {name: _described(checkpoint) for name, checkpoint in checkpoints.items()}
    first = next(iter(checkpoints))
    like = {key: value for key, value in loaded[first].items() if key != "encoder_sha256"}
    settings = [{"initialisation": SCRATCH, "seed": seed, **like} for seed in range(scratch_seeds)]
    settings += [{"initialisation": name, "seed": None, **described} for name, described in loaded.items()]
    settings.append({"initialisation": SUMMARY, "seed": None})
    runs = [StudyRun(s["initialisation"] if s["seed"] is None else f"{SCRATCH}-{s['seed']}", {**s, **identity}) for s in settings]

    @cache
    def by_hand() -> tuple[Encoded, Encoded]:
        processor = AutoProcessor.from_pretrained(checkpoints[first])
        processor = processor.with_summary(train_events[i] for i in range(len(train_events)))
        return summarised(processor, train_events), summarised(processor, test_events)

    def work(settings: dict[str, Any], run_folder: Path) -> list[dict[str, Any]]:
        if settings["initialisation"] == SUMMARY:
            tables = {SUMMARY: by_hand()}
        else:
            checkpoint = checkpoints.get(settings["initialisation"], checkpoints[first])
            model, processor = (kind.from_pretrained(checkpoint) for kind in (AutoModel, AutoProcessor))
            if settings["initialisation"] == SCRATCH:
                model = random_encoder(model, settings["seed"])
            model.to("cuda" if torch.cuda.is_available() and not use_cpu else "cpu")
            vectors = tuple(encode(model, processor, dataset, batch_size, workers) for dataset in (train_events, test_events))
            np.savez(run_folder / EMBEDDING, **embedding(vectors[1]))
            tables = {VECTOR: vectors, BOTH: tuple(v.beside(s.features) for v, s in zip(vectors, by_hand()))}
        found = []
        for (kind, (train, held)), number, seed in product(tables.items(), numbers, seeds):
            if number < len(train_events) or seed == seeds[0]:
                part = train.select(EventSubset(train_events, number, seed).indices)
                found.append({"features": kind, "labels": number, "subset": seed, "probes": probe(part, held, spec, num_resamples=num_resamples)})
        return found

    records = execute(runs, folder, work, keep=[EMBEDDING])
    rows = rows_of(records)
    summary = {
        "study": "representation",
        "checkpoints": {name: Path(c).resolve().name if Path(c).is_dir() else c for name, c in checkpoints.items()},
        "data": {"train": describe_data(train_events), "test": describe_data(test_events)},
        "summary": summarise(rows, ["initialisation", "features", "labels", "probe"]),
        "runs": records,
    }
    write_results("representation", rows, summary, results)
    shown = [name for name in (run.name for run in runs) if name in checkpoints or name == f"{SCRATCH}-0"]
    labels = list(test_events.spec.event_labels)
    label = "flavour" if "flavour" in labels else labels[0]
    plot_embeddings(folder, shown, test_events.spec, label, Path(results) / "representation.png")
    return rows


def _described(checkpoint: str) -> dict[str, Any]:
    model, processor = AutoModel.from_pretrained(checkpoint), AutoProcessor.from_pretrained(checkpoint)
    statistics = hashlib.sha256(json.dumps(processor.statistics, sort_keys=True).encode()).hexdigest()
    return {"encoder_sha256": encoder_sha256(model), "parameters": model.num_parameters(), "statistics_sha256": statistics}


def _identity(events: EventDataset) -> dict[str, Any]:
    return {"detector": events.spec.name, "events": len(events), "sha256": sha256_of(events.files)}


def probe(train: Encoded, test: Encoded, spec: DetectorSpec, seed: int = 0, num_resamples: int = 1000) -> dict[str, dict[str, Any]]:
    """Both probes, fitted on training events and judged on test events, for all quantities that both carry.

    Returns:
        `linear` and `nearest`: by quantity (event labels, `vertex`, and `vertex_baseline`, which always answers the mean training vertex) what
        `nufm_hub.evaluation` gives, with `num_train` and `chosen` by cross-validation.
    """
    result: dict[str, dict[str, Any]] = {"linear": {}, "nearest": {}}
    options = {"num_resamples": num_resamples, "seed": seed}
    for name, labels in train.labels.items():
        known, judged = labels >= 0, test.labels[name] >= 0
        if len(np.unique(labels[known])) < 2 or not judged.any():
            continue
        classes = spec.classes(name)
        for kind, fit in (("linear", linear_classes), ("nearest", nearest_classes)):
            found = fit(train.features[known], labels[known], test.features[judged], len(classes), seed)
            scores = class_scores(found.predictions, test.labels[name][judged], classes, **options)
            result[kind][name] = {**scores, "num_train": int(known.sum()), "chosen": found.chosen}
    known, judged = (~np.isnan(part.vertex).any(axis=1) for part in (train, test))
    if known.any() and judged.any():
        x, y, held, true = train.features[known], train.vertex[known], test.features[judged], test.vertex[judged]
        for kind, found in (("linear", linear_values(x, y, held)), ("nearest", nearest_values(x, y, held, seed))):
            scores = vertex_scores(found.predictions, true, y.mean(axis=0), **options)
            chosen = dict(zip("xyz", found.chosen)) if kind == "linear" else found.chosen
            result[kind] |= scores | {"vertex": {**scores["vertex"], "num_train": int(known.sum()), "chosen": chosen}}
    return result


def rows_of(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row for each encoder, kind of features, number of labels, subset and probe, with the columns of `nufm_hub.studies.tables`."""
    rows = []
    for record in results:
        settings = record["settings"]
        for found in record["result"]:
            same = {**{key: settings[key] for key in ("initialisation", "seed")}, **{key: found[key] for key in ("features", "labels", "subset")}}
            rows += [{**same, "probe": kind, **flatten(quantities)} for kind, quantities in found["probes"].items()]
    return rows


def embedding(encoded: Encoded, seed: int = 0) -> dict[str, np.ndarray]:
    """Two flat pictures of standardised features, of the first 2,000 events.

    Returns:
        `pca`, `tsne`: float (N, 2); `explained`: share of the variance of the two components; `label_<name>`: class indices int64 (N,).
    """
    features = StandardScaler().fit_transform(encoded.features[:_SHOWN].astype(np.float64))
    pca = PCA(2, random_state=seed)
    flat = pca.fit_transform(features)
    perplexity = min(30.0, (len(features) - 1) / 3)
    return {
        "pca": flat,
        "tsne": TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(features),
        "explained": pca.explained_variance_ratio_,
        **{f"label_{name}": labels[:_SHOWN] for name, labels in encoded.labels.items()},
    }


def plot_embeddings(folder: str | Path, runs: Sequence[str], spec: DetectorSpec, label: str, path: str | Path) -> None:
    """One column an encoder, coloured by a class: principal components above, t-SNE (van der Maaten and Hinton, JMLR 9 (2008) 2579) below.

    Args:
        folder: of the study's runs.
        runs: names of the runs to show.
        path: PNG file to write or replace.
    """
    classes = spec.classes(label)
    figure = new_figure(figsize=(3.4 * len(runs), 7.2))
    panels = figure.subplots(2, len(runs), squeeze=False)
    for column, run in enumerate(runs):
        with np.load(Path(folder) / run / EMBEDDING, allow_pickle=False) as held:
            flat, labels, explained = {"pca": held["pca"], "tsne": held["tsne"]}, held[f"label_{label}"], held["explained"]
        for panel, (kind, points) in zip(panels[:, column], flat.items()):
            for k, name in enumerate(classes):
                panel.scatter(*points[labels == k].T, s=9, color=PALETTE[k % len(PALETTE)], label=name, alpha=0.75, linewidths=0)
            panel.set(xticks=[], yticks=[])
            panel.set_title(f"{run}: PCA, {explained.sum():.0%} of the variance" if kind == "pca" else f"{run}: t-SNE", fontsize=9)
    handles, names = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), fontsize=9, markerscale=2)
    save(figure, path)
