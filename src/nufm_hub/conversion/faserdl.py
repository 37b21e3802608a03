"""faserDL checkpoints (https://github.com/saulam/faserDL, MIT; spconv era) to folders of this package.

Read: pre-training and fine-tuning models of FASERCal, and the particle models transferred to PILArNet (crops alone, with features, whole
events) and to the scintillator tracker. What has no counterpart here is left out and listed in `conversion.json`: the pre-training decoder,
and the heads of other tasks.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nufm_hub.detectors import DetectorSpec, load_detector
from nufm_hub.events.crops import crop_detector
from nufm_hub.files import new_folder
from nufm_hub.models import nufm
from nufm_hub.models.common.loading import check_finite
from nufm_hub.models.nufm import NuFMConfig, NuFMPreTrainedModel, NuFMProcessor
from nufm_hub.models.nufm.layers_nufm import sincos_position

from .names import Layout, crop_layout, event_layout, fasercal_layout

RECORD_FILE = "conversion.json"
_WITH_FEATURES = ("pilarnet-features", "pilarnet-event")  # kinds whose features are added to the particle's vector
# Task -> model class, and their head.
_TASKS = {
    "encoder": ("NuFMModel", None),
    "flavour": ("NuFMForFlavourClassification", "heads.flavour"),
    "charm": ("NuFMForCharmClassification", "heads.charm"),
    "vertex": ("NuFMForVertexRegression", "heads.vertex"),
    "particle": ("NuFMForParticleID", "head_pid"),
}
_INDICES = re.compile(r"(encoder\.)?((fcal|ahcal|ecal)_patch_size(_buf)?|(intra_)?idx_template|(module|window)_token_indices|window_ids)")
_PRETRAINING = re.compile(
    r"(decoder_\w+_pos_embed|module_embed_dec|(ahcal_|ecal_)?query_tokens|global_query|enc_to_dec|decode_lat_xattn_blocks|\w+_voxel_head|"
    r"\w+_sep_basis|(ecal|muon)_recon_head|heads\.(gho|hie|pid|occ|reg|occ_ahcal|reg_ahcal|occ_ecal|reg_ecal))(\..+)?"
)
# Instead of the mean over the latents, which the published sizes take.
_TASK_TOKENS = re.compile(r"task_tokens|gamma|(task_cross_attn|latents_norm)\..+")
_HEADS = re.compile(r"(heads\.(flavour|charm|vis|jet|vertex)|(encoder\.)?head_pid)\.(0|2|2\.mlp)\.(weight|bias)")


def convert_faserdl(
    checkpoint: str | Path,
    out: str | Path,
    statistics: str | Path | Mapping[str, Any] | None,
    task: str | None = None,
    detector: str | Path | Mapping[str, Any] | DetectorSpec | None = None,
    heads: int = 12,
    overwrite: bool = False,
) -> Path:
    """Convert a checkpoint; the new folder holds config, weights, processor and `conversion.json`.

    Args:
        checkpoint: Lightning `.ckpt`, or a file with a state dictionary. Read without running anything in it.
        out: folder to make.
        statistics: how charges were normalised, which checkpoints do not say: `{"k": ..., "mu": ..., "sigma": ...}` of
            z = (log1p(q / k) - mu) / sigma, q in MeV, for every voxel branch; or all of `NuFMProcessor`'s statistics; or a JSON file with either.
        task: `"encoder"`, `"flavour"`, `"charm"`, `"vertex"` or `"particle"`. By default the encoder of a pre-training checkpoint, the flavour
            head of a fine-tuned one, the particle head of a transferred one. Of a checkpoint that pools with task tokens only the encoder.
        detector: what the checkpoint reads. By default `fasercal` with the checkpoint's patches, or the published crops.
        heads: attention heads, which checkpoints do not say either.
        overwrite: replace an existing folder.

    Returns:
        `out`. `statistics_missing` in its `conversion.json` names what else the processor must have been fitted to before it takes events.

    Raises:
        ValueError: not such a checkpoint; names that are unknown or missing (all are listed); values that are not finite; a detector or
            statistics that do not fit.
        FileExistsError: `out` exists.
    """
    checkpoint = Path(checkpoint)
    weights, left_out = _read(checkpoint)
    check_finite(weights, str(checkpoint))
    kind = _kind(weights, checkpoint)
    spec = _detector(kind, weights, detector)
    layout = _layout(kind, spec)
    cls, head = _task(kind, weights, task)
    if head is not None:
        layout.modules |= {f"{head}.0": "head.norm", f"{head}.2": "head.output"}
    config = _config(kind, weights, spec, heads, weights[f"{head}.2.weight"].shape[0] if head else None)
    renamed, unused = _rename(weights, layout, config.hidden_size, checkpoint)
    _check_complete(cls, config, renamed, checkpoint)
    model = cls.from_pretrained(None, config=config, state_dict=renamed, dtype=torch.float32)
    processor = NuFMProcessor(spec, _statistics(statistics, spec))
    with new_folder(out, overwrite) as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        digest = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
        record = {"format": "faserdl", "layout": kind, "file": checkpoint.name, "sha256": digest, "left_out": sorted(left_out + unused)}
        record["statistics_missing"] = _lacking(processor, cls)
        (folder / RECORD_FILE).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return Path(out)


def _read(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """Weights of the network by their names, and the names of what belongs to the training around it (weights of losses)."""
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    except Exception as error:  # a damaged or foreign pickle can fail in any way
        raise ValueError(
            f"{path} is no checkpoint that can be read without running code in it. Where you trust it, save its state_dict alone: "
            f'torch.save({{"state_dict": checkpoint["state_dict"]}}, path). ({error})'
        ) from error
    state = held.get("state_dict", held) if isinstance(held, Mapping) else None
    if not isinstance(state, Mapping) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"{path} holds no state_dict of tensors")
    network = {k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")}
    if not network:
        return dict(state), []
    return network, [k for k in state if not k.startswith("model.")]


def _kind(weights: Mapping[str, Tensor], path: Path) -> str:
    if "module_cls_token" in weights:
        return "fasercal"
    if "encoder.cls_token" in weights and "meta_proj.1.weight" in weights:
        return "pilarnet-event"
    if "cls_token" in weights and "local_pos_embed.weight" in weights:
        return "scintillator" if "context_type_embed" in weights else "pilarnet-features" if "meta_proj.1.weight" in weights else "pilarnet"
    raise ValueError(f"{path} is no faserDL encoder of a layout known here: it has neither module_cls_token nor cls_token and local_pos_embed.weight")


def _detector(kind: str, weights: Mapping[str, Tensor], given: Any) -> DetectorSpec:
    if kind == "fasercal":
        return _fasercal(weights, given)
    if given is not None:
        return load_detector(given)
    if kind == "scintillator":
        return crop_detector(load_detector("superfgd"), (120, 120, 120), (12, 12, 10), (2, 2, 2), "clamp")
    crops = crop_detector(load_detector("pilarnet"), (168, 168, 180), (12, 12, 10), (2, 2, 3), "scale")
    return replace(crops, branches=crops.voxel_branches) if kind == "pilarnet" else crops


def _layout(kind: str, spec: DetectorSpec) -> Layout:
    if kind == "fasercal":
        return fasercal_layout(spec)
    branch = spec.voxel_branches[0]
    return event_layout(branch, spec) if kind == "pilarnet-event" else crop_layout(kind, branch, spec)


def _fasercal(weights: Mapping[str, Tensor], given: Any) -> DetectorSpec:
    """The detector of a FASERCal checkpoint; the packaged one takes over the checkpoint's patches."""
    spec = load_detector("fasercal" if given is None else given)
    calorimeters = ["fcal", "ahcal"] + ["ecal"] * ("ecal_cls_token" in weights)
    tracks, features = spec.track_branch, weights.get("muon_spec_embed.weight", torch.empty(0, 0)).shape[1]
    if len(spec.voxel_branches) != len(calorimeters) or (spec.image_branch is None) != (len(calorimeters) == 3):
        wanted = "an image (dense ECAL)" if len(calorimeters) == 2 else "a third one (sparse ECAL) and no image"
        raise ValueError(f"the checkpoint reads two voxel branches and {wanted}; detector {spec.name!r} does not: give another detector")
    if tracks is None or len(tracks.model_features) != features:
        raise ValueError(f"the checkpoint reads {features} features a track: give a detector whose tracks branch names them in model_features")
    if given is not None:
        return spec
    branches = []
    for branch, name in zip(spec.voxel_branches, calorimeters):
        kernels = [v.shape[1:4] for k, v in weights.items() if re.fullmatch(rf"{name}_patch_embed\.(\d\.)?weight", k) and v.ndim == 5]
        patch = tuple(int(torch.tensor([k[axis] for k in kernels]).prod()) for axis in range(3)) if kernels else branch.patch
        grid = replace(branch, patch=patch).patch_grid
        modules = weights["module_embed_enc.weight"].shape[0] if name == "fcal" and "module_embed_enc.weight" in weights else 1
        branches.append(replace(branch, patch=patch, window=(grid[0], grid[1], max(1, grid[2] // modules))))
    return replace(spec, branches=(*branches, *spec.image_branches, *spec.track_branches))


def _task(kind: str, weights: Mapping[str, Tensor], task: str | None) -> tuple[type[NuFMPreTrainedModel], str | None]:
    heads = {name: head for name, (_, head) in _TASKS.items() if head is None or f"{head}.2.weight" in weights}
    if kind in _WITH_FEATURES:
        del heads["encoder"]  # features enter in the head
    if task is None:
        task = next((name for name in ("particle", "flavour") if name in heads), "encoder")
    if (tokens := sorted(filter(_TASK_TOKENS.fullmatch, weights))) and task != "encoder":
        raise ValueError(f"this {kind} checkpoint pools with task tokens, which has no counterpart here: {tokens}; task='encoder' leaves them out")
    if task not in heads:
        raise ValueError(f"task={task!r}: this {kind} checkpoint can become one of {sorted(heads)}")
    return getattr(nufm, "NuFMForEventParticleID" if kind in _WITH_FEATURES else _TASKS[task][0]), heads[task]


def _config(kind: str, weights: Mapping[str, Tensor], spec: DetectorSpec, heads: int, outputs: int | None) -> NuFMConfig:
    context_depth = 1 + max((int(name.split(".")[2]) for name in weights if name.startswith("context_blocks.")), default=-1)
    if kind == "pilarnet-event":
        weights = {name.removeprefix("encoder."): tensor for name, tensor in weights.items() if name.startswith("encoder.")}

    def depth(prefix: str) -> int:
        return 1 + max((int(m[1]) for name in weights if (m := re.match(rf"{prefix}\.(\d+)\.", name))), default=-1)

    needed = ["norm.weight", "blocks.0.mlp.fc1.weight", "lat_xattn_blocks.0.norm_q.weight"]
    if absent := [name for name in needed if name not in weights]:
        raise ValueError(f"this {kind} checkpoint lacks {absent}")
    size = weights["norm.weight"].shape[0]
    cls_token = weights["module_cls_token" if kind == "fasercal" else "cls_token"]
    stacks = ["blocks", "ahcal_blocks", "ecal_blocks"][: len(spec.voxel_branches)]
    labels = {} if outputs is None else {"num_labels": outputs}
    return NuFMConfig(
        detector=spec.to_dict(),
        hidden_size=size,
        num_attention_heads=heads,
        mlp_ratio=weights["blocks.0.mlp.fc1.weight"].shape[0] / size,
        window_depths=[depth(stack) for stack in stacks],
        fusion_depth=depth("lat_xattn_blocks"),
        num_window_cls=cls_token.shape[1],
        window_position="learned" if kind == "fasercal" else "sincos",
        min_voxels_per_branch=2 if kind == "fasercal" else 1,
        context_depth=context_depth,
        context_pooled_norm=kind not in _WITH_FEATURES,
        **labels,
    )


def _rename(weights: Mapping[str, Tensor], layout: Layout, size: int, path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """Our names, and those of theirs that have no place here."""
    renamed: dict[str, Tensor] = {}
    unknown, unused = [], []
    for name, tensor in weights.items():
        if name in layout.positions:
            _check_position(name, tensor, layout.positions[name], size, path)
        elif converted := dict(layout.convert(name, tensor)):
            # own memory: pieces of a fused tensor could not be saved
            renamed |= {ours: value.to(torch.float32, copy=True).contiguous() for ours, value in converted.items()}
        elif any(pattern.fullmatch(name) for pattern in (_PRETRAINING, _HEADS, _TASK_TOKENS)):
            unused.append(name)
        elif not _INDICES.fullmatch(name):
            unknown.append(name)
    if unknown:
        raise ValueError(f"{path}: {len(unknown)} names are unknown in a {layout.name} checkpoint; nothing was converted: {sorted(unknown)}")
    return renamed, unused


def _check_position(name: str, table: Tensor, grid: tuple[int, int, int], size: int, path: Path) -> None:
    ours = sincos_position(size, grid)
    if table.shape != ours.shape or not torch.allclose(table.float(), ours, atol=1e-5):
        raise ValueError(
            f"{path}: {name} {tuple(table.shape)} is not the frozen sine-cosine table of a grid of {grid}: check the detector's patch and window"
        )


def _check_complete(cls: type[NuFMPreTrainedModel], config: NuFMConfig, renamed: Mapping[str, Tensor], path: Path) -> None:
    with torch.device("meta"):
        wanted = {name: tensor.shape for name, tensor in cls(config).state_dict().items()}
    problems = [f"missing {name} {tuple(shape)}" for name, shape in wanted.items() if name not in renamed]
    problems += [f"{name} {tuple(t.shape)} has no place" for name, t in renamed.items() if name not in wanted]
    problems += [
        f"{name} {tuple(renamed[name].shape)} should be {tuple(s)}" for name, s in wanted.items() if name in renamed and renamed[name].shape != s
    ]
    if problems:
        raise ValueError(f"{path} does not make a complete {cls.__name__} (our names): " + "; ".join(problems))


def _lacking(processor: NuFMProcessor, cls: type[NuFMPreTrainedModel]) -> list[str]:
    """What a processor has no statistics of, without which it refuses events or cannot give vertices."""
    spec, held = processor.spec, processor.statistics
    kinds = {"image": spec.image_branches, "tracks": spec.track_branches}
    lacking = [branch.name for kind, branches in kinds.items() for branch in branches if branch.name not in held[kind]]
    return lacking + ["vertex"] * (cls.__name__ == "NuFMForVertexRegression" and "vertex" not in held)


def _statistics(given: str | Path | Mapping[str, Any] | None, spec: DetectorSpec) -> dict[str, Any]:
    if given is None:
        raise ValueError(
            'checkpoints do not say how charges were normalised: give statistics, {"k": ..., "mu": ..., "sigma": ...} or a JSON file of them'
        )
    if not isinstance(given, Mapping):
        try:
            given = json.loads(Path(given).read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError) as error:
            raise ValueError(f"cannot read statistics: {error}") from error
    if isinstance(given, Mapping) and set(given) == {"k", "mu", "sigma"}:
        each = {
            b.name: {key: [float(given[name])] * len(b.channels) for key, name in (("k", "k"), ("mean", "mu"), ("std", "sigma"))}
            for b in spec.voxel_branches
        }
        return {"voxels": each, "image": {}, "tracks": {}}
    if not isinstance(given, Mapping) or "voxels" not in given:
        raise ValueError("statistics must hold either k, mu and sigma, or the statistics of a NuFMProcessor")
    return {"image": {}, "tracks": {}, **given}
