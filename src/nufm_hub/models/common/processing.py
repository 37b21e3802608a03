"""Events in physical units to model inputs, and predictions back: what must travel with the weights of any family."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, Self

import numpy as np
import torch
from transformers import BatchFeature, FeatureExtractionMixin

from nufm_hub import checkpoints
from nufm_hub.detectors import DetectorSpec, load_detector
from nufm_hub.events import Event, Voxels, geometric_vertex, summary_features, summary_sources

from .configuration import explicit_revision
from .kinematics import check_momentum_scales, fit_momentum_scales

IGNORED = -100.0  # voxel label value of padding and unlabelled voxels
# Enough for a percent-level mean and width from a few hundred events, and bounded memory for any number of them.
_VALUES_PER_EVENT = 500
_FARTHEST = 5.0  # standard deviations: a number further away says no more than that it is far


class EventProcessor(FeatureExtractionMixin):
    """Turns events of one detector into batches, and model outputs into physical units. A family gives `inputs`, the tensors its models take.

    Saved as `preprocessor_config.json` next to the weights. Energies q (MeV) become z = (log1p(q / k) - mean) / std with
    k, mean and std fitted on training events (arXiv:2604.07037); track columns use sign(x) log1p(|x| / k) likewise.

    Args:
        detector: spec, packaged name, JSON path or dictionary.
        statistics: what `fit` measured: `{"voxels": {branch: {"k", "mean", "std"}}, "image": {...}, "tracks": {...},
            "vertex": {"mean", "std"} in mm, "num_events"}`; each k, mean and std is a list with one number a column. And
            `"momentum"`, see `fit_momentum_scales`. Scales of vertex and momenta are there when the events carried them. And `"summary"` of
            `{"event": {...}}`, the same of the numbers of `summary_features`, where models read those, see `with_summary`.
        detector_hash: hash of the detector the statistics belong to; checked when given.

    Raises:
        ValueError: statistics are missing, empty, not finite or not of this detector.
    """

    def __init__(
        self,
        detector: str | Mapping[str, Any] | DetectorSpec,
        statistics: Mapping[str, Any] | None = None,
        detector_hash: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        spec = load_detector(detector)
        self._spec = spec
        self.detector = spec.to_dict()
        self.detector_hash = spec.hash
        if detector_hash is not None and detector_hash != spec.hash:
            raise ValueError(f"processor of {spec.name!r} (hash {spec.hash}): these statistics are of one with hash {detector_hash}; fit again")
        self.statistics = _checked_statistics(statistics, spec, type(self).__name__)

    @property
    def spec(self) -> DetectorSpec:
        return self._spec

    def to_dict(self) -> dict[str, Any]:
        """What is saved: the detector, its hash and the statistics."""
        output = super().to_dict()
        output.pop("_spec")
        return output

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str, **kwargs: Any) -> Self:
        """Load from a bundled id, a folder, or the Hub; arguments as for any transformers feature extractor."""
        return super().from_pretrained(checkpoints.resolve(pretrained_model_name_or_path, explicit_revision(kwargs)), **kwargs)

    @classmethod
    def fit(cls, events: Iterable[Event], detector: str | Mapping[str, Any] | DetectorSpec) -> Self:
        """Measure the statistics on training events (one pass, bounded memory).

        A branch that no training event fills gets no statistics, and the processor refuses events that fill it later.

        Raises:
            ValueError: no event, or no voxel in the first branch.
        """
        spec = load_detector(detector)
        sampled: dict[tuple[str, str], list[np.ndarray]] = {}
        truths: list[dict[str, Any]] = []
        count = 0
        for event in events:
            event.validate(spec)
            count += 1
            truths.append(_targets(event))
            for kind, name, values in _values(event, spec):
                step = max(1, len(values) // _VALUES_PER_EVENT)
                sampled.setdefault((kind, name), []).append(values[::step])
        if not count:
            raise ValueError(f"cannot fit a processor for {spec.name!r}: no events were given")
        statistics: dict[str, Any] = {"num_events": count, "voxels": {}, "image": {}, "tracks": {}}
        for (kind, name), parts in sorted(sampled.items()):
            if len(values := np.concatenate(parts)):
                statistics[kind][name] = _fit_log(values)
        if (first := spec.voxel_branches[0].name) not in statistics["voxels"]:
            raise ValueError(f"cannot fit a processor for {spec.name!r}: none of {count} events has a voxel in branch {first!r}")
        return cls(spec, statistics | _fit_targets(truths))

    def with_targets(self, events: Iterable[Event], replace: bool = False) -> Self:
        """This processor, with the scales of vertex and momenta that it lacks measured on events, or with `replace` all of them anew.

        Inputs stay as they are.
        """
        measured = _fit_targets([_targets(event) for event in events])
        return type(self)(self.spec, self.statistics | measured if replace else measured | self.statistics)

    def with_summary(self, events: Iterable[Event]) -> Self:
        """This processor, for models that read `summary_features` too: with the scale of these numbers measured on training events."""
        rows = np.array([list(summary_features(event, self.spec).values()) for event in events], dtype=np.float64)
        if not len(rows):
            raise ValueError(f"cannot fit the summary numbers of {self.spec.name!r}: no events were given")
        return type(self)(self.spec, self.statistics | {"summary": {"event": _fit_log(rows)}})

    def summary(self, events: Sequence[Event]) -> torch.Tensor:
        """The numbers of `summary_features`, standardised, float32 (B, F), at most 5 away from zero; 0 where there is nothing to measure."""
        rows = np.array([list(summary_features(event, self.spec).values()) for event in events], dtype=np.float32)
        return torch.from_numpy(np.nan_to_num(self.standardise("summary", "event", rows), nan=0.0).clip(-_FARTHEST, _FARTHEST))

    def starts(self, events: Sequence[Event]) -> torch.Tensor:
        """Where geometry finds the primary vertices, float32 (B, 3), mm, see `geometric_vertex`; NaN where it finds none."""
        return torch.from_numpy(np.stack([geometric_vertex(event, self.spec) for event in events]).astype(np.float32))

    @property
    def momentum_scales(self) -> dict[str, dict[str, float]] | None:
        """Scales of the visible, jet and lepton momenta, see `fit_momentum_scales`; None when the events of the fit carried none."""
        return self.statistics.get("momentum")

    @property
    def vertex_scale(self) -> dict[str, list[float]] | None:
        """`mean` and `std`, mm, three numbers each: labels of vertices are (position - mean) / std; None when the events of the fit had none."""
        return self.statistics.get("vertex")

    def __call__(self, events: Event | Sequence[Event], labels: str | None = None, return_tensors: str = "pt") -> BatchFeature:
        """Pack events into the model's inputs.

        Args:
            events: one event or several, of this processor's detector.
            labels: also return `labels`: the name of a categorical event label (int64 (B,)), `"vertex"` (float32 (B, 3),
                standardised); or `"voxels"` for `voxel_labels` (float32 (B, N, K), columns of all labels of the first voxel
                branch in order, -100 where there is none; the N rows of an event are the voxels of its branches in the detector's order,
                then padding); or `"reconstruction"` for a dictionary of all that event reconstruction learns, -100, NaN or `is_cc` False
                where an event lacks it.
            return_tensors: only `"pt"`.

        Returns:
            BatchFeature with what `inputs` gives, and the labels.

        Raises:
            ValueError: an event is of another detector, not finite, outside the grid, or lacks the label.
        """
        if return_tensors != "pt":
            raise ValueError(f"return_tensors={return_tensors!r} is not supported: the models are PyTorch models, use 'pt'")
        events = [events] if isinstance(events, Event) else list(events)
        if not events:
            raise ValueError("the processor was given no events")
        for event in events:
            event.validate(self.spec)
        data: dict[str, Any] = self.inputs(events)
        if labels == "voxels":
            data["voxel_labels"] = self._voxel_labels(events)
        elif labels == "reconstruction":
            data["labels"] = self._reconstruction_labels(events)
        elif labels is not None:
            data["labels"] = self._event_labels(events, labels)
        return BatchFeature(data)

    def inputs(self, events: Sequence[Event]) -> dict[str, torch.Tensor]:
        """What the family's models take, of validated events, by name; batch first."""
        raise NotImplementedError(f"{type(self).__name__} does not say what its models take")

    def branch_mask(self, events: Sequence[Event]) -> torch.Tensor:
        """Which branches of the detector each event has, bool (B, branches): what `absent` sub-detectors of an evaluation are taken out of."""
        return torch.tensor([[b.name in {**e.voxels, **e.images, **e.tracks} for b in self.spec.branches] for e in events])

    def most_voxels(self, events: Sequence[Event]) -> int:
        """N, the number of rows that the voxels of all branches of an event need; at least 1."""
        return max(1, *(sum(len(v) for v in e.voxels.values()) for e in events))

    def _voxel_labels(self, events: Sequence[Event]) -> torch.Tensor:
        branch = self.spec.voxel_branches[0]
        out = np.full((len(events), self.most_voxels(events), sum(len(x.classes) for x in branch.labels)), IGNORED, dtype=np.float32)
        for row, event in enumerate(events):
            voxels = event.voxels.get(branch.name)
            column = 0
            for label in branch.labels:
                if voxels is not None and (shares := voxels.labels.get(label.name)) is not None:
                    unlabelled = np.isnan(shares).any(1) if label.is_binary else ~(shares > 0).any(1)
                    out[row, : len(voxels), column : column + len(label.classes)] = np.where(unlabelled[:, None], IGNORED, shares)
                column += len(label.classes)
        return torch.from_numpy(out)

    def _event_labels(self, events: Sequence[Event], name: str) -> torch.Tensor:
        for event in events:
            if name not in event.truth:
                raise ValueError(f"{event} has no truth {name!r}; it has {sorted(event.truth)}")
        if name in self.spec.event_labels:
            return torch.tensor([int(e.truth[name]) for e in events])
        if name == "vertex":
            mean, std = self._vertex_scale()
            vertices = np.stack([np.asarray(e.truth["vertex"], dtype=np.float64) for e in events])
            return torch.from_numpy(((vertices - mean) / std).astype(np.float32))
        raise ValueError(f"labels={name!r} is not one of {[*self.spec.event_labels, 'vertex', 'voxels', 'reconstruction']}")

    def _reconstruction_labels(self, events: Sequence[Event]) -> dict[str, torch.Tensor]:
        nothing = np.full(3, np.nan)
        labels = {
            name: torch.tensor([int(e.truth.get(name, IGNORED)) for e in events]) for name in ("flavour", "charm") if name in self.spec.event_labels
        }
        for name in ("visible_momentum", "jet_momentum"):
            labels[name] = torch.from_numpy(np.stack([np.asarray(e.truth.get(name, nothing), dtype=np.float32) for e in events]))
        labels["is_cc"] = torch.tensor([bool(e.truth.get("is_cc", False)) for e in events])
        vertices = np.stack([np.asarray(e.truth.get("vertex", nothing), dtype=np.float64) for e in events])
        if not np.isnan(vertices).all():
            mean, std = self._vertex_scale()
            vertices = (vertices - mean) / std
        labels["vertex"] = torch.from_numpy(vertices.astype(np.float32))
        return labels

    def _vertex_scale(self) -> tuple[np.ndarray, np.ndarray]:
        if "vertex" not in self.statistics:
            raise ValueError("this processor has no vertex statistics: the events it was fitted on carried no vertex")
        return np.asarray(self.statistics["vertex"]["mean"]), np.asarray(self.statistics["vertex"]["std"])

    def standardise(self, kind: str, branch: str, values: np.ndarray) -> np.ndarray:
        """Values (N, columns) of a branch, whose `kind` is `"voxels"`, `"image"` or `"tracks"`, on the scale that was fitted.

        Raises:
            ValueError: nothing was fitted for this branch.
        """
        if not len(values):
            return values
        if branch not in self.statistics[kind]:
            raise ValueError(f"branch {branch!r} has no statistics: no event of the fit filled it; fit again, or drop the branch from the events")
        s = self.statistics[kind][branch]
        k, mean, std = (np.asarray(s[key], dtype=np.float32) for key in ("k", "mean", "std"))
        return (_log(values, k) - mean) / std

    def post_process_classification(self, outputs: Any, label: str = "flavour") -> list[dict[str, Any]]:
        """Per event `{"label": class name, "score": its probability, "probabilities": {class: probability}}` from `outputs.logits` (B, K)."""
        classes = self.spec.classes(label)
        logits = outputs.logits
        if logits.shape[-1] != len(classes):
            raise ValueError(f"{logits.shape[-1]} logits do not fit the {len(classes)} {label} classes of {self.spec.name!r}")
        results = []
        for row in logits.float().softmax(-1).tolist():
            best = int(np.argmax(row))
            results.append({"label": classes[best], "score": row[best], "probabilities": dict(zip(classes, row))})
        return results

    def post_process_vertex(self, outputs: Any) -> np.ndarray:
        """Vertices in mm in the detector frame, float64 (B, 3), from `outputs.logits` (B, 3)."""
        mean, std = self._vertex_scale()
        return outputs.logits.detach().double().cpu().numpy() * std + mean

    def post_process_reconstruction(self, outputs: Any) -> list[dict[str, Any]]:
        """Per event, of `ReconstructionOutput`, in physical units.

        Returns:
            `flavour`, `charm`: as of `post_process_classification`; `visible_momentum`, `jet_momentum`, `lepton_momentum`: float64 (3,), GeV;
            `missing_pt`: GeV; `vertex`: float64 (3,), mm, detector frame. What the model does not give is left out.
        """
        columns: dict[str, Any] = {}
        for label in ("flavour", "charm"):
            if (logits := outputs.get(f"{label}_logits")) is not None:
                columns[label] = self.post_process_classification(SimpleNamespace(logits=logits), label)
        for name in ("visible_momentum", "jet_momentum", "lepton_momentum"):
            columns[name] = outputs[name].detach().double().cpu().numpy()
        columns["missing_pt"] = outputs["missing_pt"].detach().double().cpu().tolist()
        if (vertex := outputs.get("vertex")) is not None:
            columns["vertex"] = self.post_process_vertex(SimpleNamespace(logits=vertex))
        return [dict(zip(columns, row)) for row in zip(*columns.values(), strict=True)]

    def post_process_voxels(self, values: torch.Tensor, events: Sequence[Event]) -> list[dict[str, np.ndarray]]:
        """Per-voxel predictions (B, N, K), rows as this processor packed them, to the raw hits: per event one (hits, K) array a branch."""
        results = []
        for row, event in zip(values.detach().cpu().numpy(), events, strict=True):
            start, per_branch = 0, {}
            for branch in self.spec.voxel_branches:
                voxels: Voxels | None = event.voxels.get(branch.name)
                if voxels is None:
                    continue
                prediction = row[start : start + len(voxels)]
                per_branch[branch.name] = prediction if voxels.voxel_of_hit is None else prediction[voxels.voxel_of_hit]
                start += len(voxels)
            results.append(per_branch)
        return results


def _log(values: np.ndarray, k: np.ndarray) -> np.ndarray:
    return np.sign(values) * np.log1p(np.abs(values) / k)


def _values(event: Event, spec: DetectorSpec) -> Iterable[tuple[str, str, np.ndarray]]:
    for b in spec.voxel_branches:
        if b.name in event.voxels:
            yield "voxels", b.name, event.voxels[b.name].values
    for b in spec.image_branches:
        if b.name in event.images:
            yield "image", b.name, np.asarray(event.images[b.name], dtype=np.float32).reshape(1, -1)
    for b in spec.track_branches:
        if b.name in event.tracks:
            yield "tracks", b.name, np.asarray(event.tracks[b.name], dtype=np.float32)


def _columns(spec: DetectorSpec) -> dict[tuple[str, str], int]:
    return {
        **{("voxels", b.name): len(b.channels) for b in spec.voxel_branches},
        **{("image", b.name): b.size for b in spec.image_branches},
        **{("tracks", b.name): len(b.features) for b in spec.track_branches},
        ("summary", "event"): len(summary_sources(spec)),
    }


def _fit_log(values: np.ndarray) -> dict[str, list[float]]:
    """k = median of |x| over the non-zero x of a column (1 where there is none), then mean and std of the logs; what is not finite is left out."""
    k, mean, std = [], [], []
    for column in values.T.astype(np.float64):
        column = column[np.isfinite(column)]
        sizes = np.abs(column[column != 0])
        k.append(float(np.median(sizes)) if len(sizes) else 1.0)
        logs = _log(column, np.float64(k[-1]))
        mean.append(float(logs.mean()) if len(logs) else 0.0)
        spread = float(logs.std()) if len(logs) else 0.0
        # A column that never varies carries nothing: leave its scale alone instead of blowing up rounding noise.
        std.append(spread if spread > 1e-6 else 1.0)
    return {"k": k, "mean": mean, "std": std}


def _targets(event: Event) -> dict[str, Any]:
    return {name: event.truth[name] for name in ("vertex", "visible_momentum", "jet_momentum", "is_cc") if name in event.truth}


def _fit_targets(truths: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Scales of vertex and momenta, of what the events carry; the lepton is visible minus jet of charged-current events."""

    def stack(rows: list[Any]) -> np.ndarray:
        return np.asarray(rows, dtype=np.float64).reshape(-1, 3)

    statistics: dict[str, Any] = {}
    if len(vertices := stack([t["vertex"] for t in truths if "vertex" in t])):
        # One scale for the three axes: a squared error on it is the squared distance. Each axis on its own spread would give the narrow
        # axes of a beam, where there is little to gain, most of the loss.
        spread = max(float(np.sqrt(vertices.var(0).mean())), 1e-6)
        statistics["vertex"] = {"mean": vertices.mean(0).tolist(), "std": [spread] * 3}
    both = [t for t in truths if "visible_momentum" in t and "jet_momentum" in t]
    if both:
        cc = np.array([bool(t.get("is_cc", False)) for t in both])
        visible, jet = stack([t["visible_momentum"] for t in both]), stack([t["jet_momentum"] for t in both])
        statistics["momentum"] = fit_momentum_scales({"visible": visible, "jet": jet, "lepton": (visible - jet)[cc]})
    return statistics


def _checked_statistics(statistics: Mapping[str, Any] | None, spec: DetectorSpec, processor: str) -> dict[str, Any]:
    if not statistics:
        raise ValueError(f"the processor of {spec.name!r} has no statistics: fit one with {processor}.fit(events, detector) or load a saved one")
    columns = _columns(spec)
    for kind in ("voxels", "image", "tracks", "summary"):
        for name, held in statistics.get(kind, {}).items():
            for key in ("k", "mean", "std"):
                numbers = np.asarray(held.get(key, []), dtype=np.float64)
                if numbers.shape != (columns.get((kind, name)),) or not np.isfinite(numbers).all() or (key != "mean" and (numbers <= 0).any()):
                    raise ValueError(f"the processor of {spec.name!r} has no valid {key} for branch {name!r}: {numbers.tolist()}; fit it again")
    if (first := spec.voxel_branches[0].name) not in statistics.get("voxels", {}):
        raise ValueError(f"the processor of {spec.name!r} has no statistics for its first branch {first!r}; fit it again")
    if "momentum" in statistics:
        check_momentum_scales(statistics["momentum"], statistics["momentum"])
    return dict(statistics)
