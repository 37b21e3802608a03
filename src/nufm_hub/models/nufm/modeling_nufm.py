"""NuFM: a sparse, multimodal encoder for neutrino detectors, and its task heads.

Voxels become patch tokens; the occupied patches of each window of the detector attend to each other and to a few CLS tokens; the CLS
tokens of all windows are the latents, which gather all tokens, images and tracks included, in Perceiver-IO fashion
(arXiv:2107.14795). After arXiv:2604.07037. Only occupied patches and windows are computed.

Names of weights say what moves to another detector: `embeddings.*` belongs to one detector, `encoder.*` does not; `head.*` belongs to a
task, `decoder.*` to pre-training and to the labels of voxels. They are the same in every class here, so that checkpoints of any of them
load into any other; only a head, with the classes it names, stays with its task.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from nufm_hub.detectors import DetectorSpec

from .configuration_nufm import NuFMConfig, explicit_revision
from .encoder_nufm import NuFMEmbeddings, NuFMEncoder, Tokens
from .layers_nufm import FrozenPosition, Sequences, WindowEmbedding, sincos_position
from .objectives_nufm import event_mean, vertex_loss
from .patch_embedding import Patches, SparsePatchConv3d, patchify


@dataclass
class NuFMModelOutput(ModelOutput):
    """Output of `NuFMModel`.

    Attributes:
        last_hidden_state: float (B, L, hidden_size), the latents; L is the largest number of active latents in the batch.
        latent_mask: bool (B, L), True where a latent is active; the others are zero.
        pooler_output: float (B, hidden_size), mean of the active latents.
        hidden_states: with `output_hidden_states`, latents before and after each fusion round: `fusion_depth + 1` of (B, L, hidden_size).
        attentions: with `output_attentions` and eager attention, how latents look at tokens: `fusion_depth` of (B, heads, L, tokens).
    """

    last_hidden_state: Tensor | None = None
    latent_mask: Tensor | None = None
    pooler_output: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class NuFMHeadOutput(ModelOutput):
    """Output of the task heads.

    Attributes:
        loss: scalar, when labels were given.
        logits: float (B, num_labels): class scores, or the regressed values.
        hidden_states, attentions: see `NuFMModelOutput`.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class NuFMHeadLinear(nn.Linear):
    """A linear layer that starts close to zero, so that the first predictions are neutral."""


class NuFMHead(nn.Module):
    """LayerNorm, dropout, linear."""

    def __init__(self, config: NuFMConfig, outputs: int):
        super().__init__()
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.head_dropout)
        self.output = NuFMHeadLinear(config.hidden_size, outputs)

    def forward(self, pooled: Tensor) -> Tensor:
        """(B, hidden_size) -> (B, outputs)."""
        return self.output(self.dropout(self.norm(pooled)))


def check_finite(weights: Mapping[str, Tensor], where: str) -> None:
    """Raises ValueError that names the first tensor with NaN or infinity."""
    bad = [n for n, tensor in weights.items() if tensor.is_floating_point() and not tensor.is_meta and not torch.isfinite(tensor).all()]
    if bad:
        raise ValueError(f"{where}: {len(bad)} tensors hold NaN or infinity, the first is {bad[0]!r}; take another checkpoint")


_FROM_HUB = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")


def saved_as(folder: str, options: Mapping[str, Any]) -> str | None:
    """Name of the class that a checkpoint was saved as, where its `config.json` says so; `options` are those of `from_pretrained`."""
    return (_saved_config(folder, options).get("architectures") or [None])[0]


def _saved_config(folder: str, options: Mapping[str, Any]) -> dict[str, Any]:
    return NuFMConfig.get_config_dict(folder, **{name: options[name] for name in _FROM_HUB if name in options})[0]


def _check_heads(folder: str, options: Mapping[str, Any]) -> None:
    saved = _saved_config(folder, options)
    wanted = vars(options["config"]) if isinstance(options.get("config"), NuFMConfig) else options
    for name in {"num_attention_heads", "decoder_num_attention_heads"} & saved.keys():
        if wanted.get(name, saved[name]) != saved[name]:
            raise ValueError(f"{name}={wanted[name]} cannot change what was trained with {saved[name]}: the same matrices would mean another thing")


def with_own_classes(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of `from_pretrained` under which a model names its classes anew, not as another task's checkpoint does; given ones are kept."""
    if {"config", "id2label"} & options.keys():
        return dict(options)
    names = {i: f"LABEL_{i}" for i in range(options.get("num_labels", 2))}  # what the library has where nothing is said
    return {"id2label": names, "label2id": {name: i for i, name in names.items()}, "problem_type": None, **options}


class NuFMPreTrainedModel(PreTrainedModel):
    """Start of weights, loading, and the encoder that every NuFM model has."""

    config_class = NuFMConfig
    base_model_prefix = "nufm"
    main_input_name = "voxel_features"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # losses are means over the events of the batch
    _supports_sdpa = True
    _no_split_modules = ("NuFMLayer",)
    transfer_report: Any = None  # of `nufm_hub.transfer_encoder`, which made the model; saved with it

    def __init__(self, config: NuFMConfig):
        super().__init__(config)
        self.embeddings = NuFMEmbeddings(config)
        self.encoder = NuFMEncoder(config)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # one rule per weight: while a checkpoint loads, what has been set once is left alone
        if isinstance(module, NuFMHeadLinear):
            init.trunc_normal_(module.weight, std=self.config.head_init_std)
            init.zeros_(module.bias)
        elif isinstance(module, (nn.Linear, SparsePatchConv3d)):
            bound = math.sqrt(6 / (module.weight.shape[0] + math.prod(module.weight.shape[1:])))  # Xavier, a kernel counts as a linear map
            init.uniform_(module.weight, -bound, bound)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, FrozenPosition):
            init.copy_(module.weight, sincos_position(module.size, module.grid))
        elif isinstance(module, WindowEmbedding):
            init.normal_(module.weight)
        else:
            super()._init_weights(module)
        for name in ("source", "cls_token", "query"):
            if isinstance(getattr(module, name, None), nn.Parameter):
                init.normal_(getattr(module, name), std=self.config.initializer_range)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args: Any, **kwargs: Any):
        """As in the library; an id of a checkpoint that comes with the package is read from there.

        Of a checkpoint that was saved as another class the head is not taken, nor its classes: they belong to another task.

        Raises:
            ValueError: the weights file is truncated or damaged, or holds values that are not finite; values of the configuration that do not
                fit together, or another number of attention heads than the weights were trained with.
        """
        from nufm_hub.checkpoints import resolve

        if pretrained_model_name_or_path is None:
            return super().from_pretrained(None, *args, **kwargs)
        folder = resolve(pretrained_model_name_or_path, revision=explicit_revision(kwargs))
        saved = saved_as(folder, kwargs)
        _check_heads(folder, kwargs)
        try:
            if saved in (None, cls.__name__):
                loaded = super().from_pretrained(folder, *args, **kwargs)
            else:
                loaded = cls._from_another_task(folder, saved, *args, **kwargs)
        except SafetensorError as error:
            raise ValueError(f"the weights in {pretrained_model_name_or_path} are truncated or damaged ({error}): fetch them again") from error
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        check_finite(model.state_dict(), str(pretrained_model_name_or_path))
        model.config.name_or_path = model.name_or_path = str(pretrained_model_name_or_path)
        return loaded

    @classmethod
    def _from_another_task(cls, folder: str, saved: str, *args: Any, **kwargs: Any):
        """All but the head, whose weights bear the same names in every class, of what was saved as another one."""
        from nufm_hub import models

        hub = {name: kwargs.pop(name) for name in _FROM_HUB if name in kwargs}
        source, info = super(NuFMPreTrainedModel, getattr(models, saved, NuFMModel)).from_pretrained(folder, output_loading_info=True, **hub)
        weights = {n: w for n, w in source.state_dict().items() if not n.startswith("head.") and n not in info["missing_keys"]}
        if "config" not in kwargs:
            dtype = {name: kwargs.pop(name) for name in ("dtype", "torch_dtype") if name in kwargs}  # of the model, not a value of the configuration
            options = with_own_classes(kwargs)
            config, kwargs = cls.config_class.from_pretrained(folder, return_unused_kwargs=True, **hub, **options)
            kwargs |= {"config": config, **dtype}
        return super().from_pretrained(None, *args, state_dict=weights, **kwargs)

    def save_pretrained(self, save_directory: str | os.PathLike[str], is_main_process: bool = True, **kwargs: Any) -> None:
        """As in the library; a transferred model also leaves its report, as `transfer_report.json` and in the card."""
        super().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)
        if self.transfer_report is not None and is_main_process:
            self.transfer_report.save(save_directory)

    def _returned(self, output: ModelOutput, return_dict: bool | None) -> ModelOutput | tuple:
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()

    def patches(self, voxel_coordinates: Tensor, voxel_features: Tensor, voxel_branch: Tensor, branch_mask: Tensor | None) -> list[Patches]:
        """Occupied patches of every voxel branch of a batch: padding, absent branches and branches with too few voxels drop out.

        `Patches.voxel` indexes the flattened (B * N) voxels. For the arguments see `NuFMModel.forward`.
        """
        spec = self.config.spec
        batch, length = voxel_branch.shape
        self._check_inputs(spec, voxel_coordinates, voxel_features, voxel_branch, branch_mask)
        branch_of_voxel, coordinates, features = voxel_branch.flatten(), voxel_coordinates.flatten(0, 1), voxel_features.flatten(0, 1)
        table = []
        for i, branch in enumerate(spec.voxel_branches):
            voxel = (branch_of_voxel == i).nonzero().squeeze(1)
            event = voxel // max(length, 1)
            present = torch.bincount(event, minlength=batch) >= self.config.min_voxels_per_branch
            if branch_mask is not None:
                present = present & branch_mask[:, i].bool()
            kept = present[event]
            voxel, event = voxel[kept], event[kept]
            inputs = features[voxel, : len(branch.channels)]
            table.append(patchify(coordinates[voxel], event, inputs, voxel, branch, batch))
        return table

    @staticmethod
    def _check_inputs(spec: DetectorSpec, coordinates: Tensor, features: Tensor, branch: Tensor, branch_mask: Tensor | None) -> None:
        channels = max(len(b.channels) for b in spec.voxel_branches)
        if coordinates.shape != (*branch.shape, 3) or features.shape[:2] != branch.shape or features.shape[2] < channels:
            raise ValueError(
                f"detector {spec.name!r} needs voxel_coordinates (B, N, 3), voxel_features (B, N, {channels}) and voxel_branch (B, N); got "
                f"{tuple(coordinates.shape)}, {tuple(features.shape)} and {tuple(branch.shape)}"
            )
        if branch_mask is not None and branch_mask.shape != (branch.shape[0], len(spec.branches)):
            raise ValueError(f"branch_mask must be (B, {len(spec.branches)}), one column per branch of {spec.name!r}; got {tuple(branch_mask.shape)}")
        if branch.device.type == "cpu" and branch.numel() and int(branch.max()) >= len(spec.voxel_branches):
            raise ValueError(f"voxel_branch {int(branch.max())} is no voxel branch of {spec.name!r}, which has {len(spec.voxel_branches)}")

    def other_tokens(
        self, batch_size: int, image_features: Tensor | None, track_features: Tensor | None, track_mask: Tensor | None, branch_mask: Tensor | None
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Tokens (T, hidden_size) of the image and of the tracks, with their events int64 (T,); absent branches make none."""
        spec, tokens = self.config.spec, {}
        for name, branch, values in (("image", spec.image_branch, image_features), ("tracks", spec.track_branch, track_features)):
            if branch is None or getattr(self.embeddings, name) is None:
                continue
            if values is None or (name == "tracks" and track_mask is None):
                needed = "image_features" if name == "image" else "track_features and track_mask"
                raise ValueError(f"detector {spec.name!r} has the branch {branch.name!r}: give {needed} (and branch_mask False where it is absent)")
            embedded = self.embeddings.image(values) if name == "image" else self.embeddings.tracks(values, track_mask.bool())
            present = torch.ones(batch_size, dtype=torch.bool, device=embedded.device)
            if branch_mask is not None:
                present = branch_mask[:, spec.branches.index(branch)].bool()
            if name == "tracks" and branch.max_count == 1:  # features of the event: without them there is nothing to say
                present = present & track_mask.bool().any(dim=1)
            event = present.nonzero().squeeze(1)
            tokens[name] = (embedded[event], event)
        return tokens

    def embed(self, patches: list[Patches], visible: list[Tensor] | None, batch_size: int) -> list[Tokens]:
        """Tokens of every voxel branch; `visible`, bool (P,) for each branch, hides patches before they are embedded."""
        tokens = []
        for i, (embed, table) in enumerate(zip(self.embeddings.voxels, patches)):
            windows = self.encoder.branches[i].num_windows
            occupied = torch.bincount(table.event * windows + table.window, minlength=batch_size * windows)
            tokens.append(embed(table if visible is None else table.select(visible[i]), occupied))
        return tokens

    def encode(
        self,
        voxel_coordinates: Tensor,
        voxel_features: Tensor,
        voxel_branch: Tensor,
        image_features: Tensor | None,
        track_features: Tensor | None,
        track_mask: Tensor | None,
        branch_mask: Tensor | None,
        output_hidden_states: bool | None,
        output_attentions: bool | None,
    ) -> NuFMModelOutput:
        """Encode a batch; see `NuFMModel.forward`."""
        states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        attentions = self.config.output_attentions if output_attentions is None else output_attentions
        batch_size = voxel_branch.shape[0]
        patches = self.patches(voxel_coordinates, voxel_features, voxel_branch, branch_mask)
        others = self.other_tokens(batch_size, image_features, track_features, track_mask, branch_mask)
        latents, sequences, history, weights = self.encoder(
            self.embed(patches, None, batch_size), list(others.values()), batch_size, keep_history=bool(states or attentions)
        )
        return NuFMModelOutput(
            last_hidden_state=sequences.pad(latents),
            latent_mask=sequences.mask,
            pooler_output=mean_of_rows(latents, sequences),
            hidden_states=tuple(sequences.pad(rows) for rows in history) if states else None,
            attentions=tuple(weights) if attentions else None,
        )


def mean_of_rows(rows: Tensor, sequences: Sequences) -> Tensor:
    """Mean of the rows (T, d) of each sequence: (G, d)."""
    return sequences.pad(rows).sum(dim=1) / sequences.mask.sum(dim=1, keepdim=True).to(rows.dtype)


class NuFMModel(NuFMPreTrainedModel):
    """The encoder without a task."""

    def __init__(self, config: NuFMConfig):
        super().__init__(config)
        self.post_init()

    def forward(
        self,
        voxel_coordinates: Tensor,
        voxel_features: Tensor,
        voxel_branch: Tensor,
        image_features: Tensor | None = None,
        track_features: Tensor | None = None,
        track_mask: Tensor | None = None,
        branch_mask: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> NuFMModelOutput | tuple:
        """Encode a batch of B events.

        Args:
            voxel_coordinates: int64 (B, N, 3), voxel indices in the grid of the voxel's branch.
            voxel_features: float (B, N, C), as the processor standardises them.
            voxel_branch: int64 (B, N), index among the detector's voxel branches; -1 is padding. Two voxels at the same place count
                with the sum of their features.
            image_features: float (B, D), flattened image; needed when the detector has an image branch.
            track_features: float (B, T, F), and `track_mask`, bool (B, T), True at real tracks; needed when it has a track branch.
            track_mask: see `track_features`.
            branch_mask: bool (B, number of branches), False where a sub-detector is absent. Absent is not empty: an empty image or
                track branch makes a token that says so, an absent one makes none. None: all present.
            output_hidden_states, output_attentions, return_dict: as in the library; attentions need `attn_implementation="eager"`.

        Raises:
            ValueError: inputs that do not fit the detector.
        """
        output = self.encode(
            voxel_coordinates, voxel_features, voxel_branch, image_features, track_features, track_mask, branch_mask,
            output_hidden_states, output_attentions,
        )  # fmt: skip
        return self._returned(output, return_dict)


class _NuFMTaskModel(NuFMPreTrainedModel):
    """Encoder, mean of the latents, one head."""

    def __init__(self, config: NuFMConfig, outputs: int):
        super().__init__(config)
        self.head = self._make_head(config, outputs)
        self.post_init()

    def _make_head(self, config: NuFMConfig, outputs: int) -> nn.Module:
        return NuFMHead(config, outputs)

    def task_loss(self, logits: Tensor, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        raise NotImplementedError

    def forward(
        self,
        voxel_coordinates: Tensor,
        voxel_features: Tensor,
        voxel_branch: Tensor,
        image_features: Tensor | None = None,
        track_features: Tensor | None = None,
        track_mask: Tensor | None = None,
        branch_mask: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> NuFMHeadOutput | tuple:
        """Predict; `labels` as the class says, `num_items_in_batch` as in `task_loss`, all else as in `NuFMModel.forward`."""
        encoded = self.encode(
            voxel_coordinates, voxel_features, voxel_branch, image_features, track_features, track_mask, branch_mask,
            output_hidden_states, output_attentions,
        )  # fmt: skip
        logits = self.head(encoded.pooler_output)
        loss = None if labels is None else self.task_loss(logits, labels, num_items_in_batch)
        output = NuFMHeadOutput(loss=loss, logits=logits, hidden_states=encoded.hidden_states, attentions=encoded.attentions)
        return self._returned(output, return_dict)


class _NuFMClassifier(_NuFMTaskModel):
    """A head of classes: those of an event label of the detector, or as many as `config.num_labels` says."""

    event_label = ""
    accepts_loss_kwargs = True  # num_items_in_batch, which `Trainer` counts

    def __init__(self, config: NuFMConfig):
        config = copy.deepcopy(config)
        classes = config.spec.event_labels.get(self.event_label)
        unnamed = all(name == f"LABEL_{i}" for i, name in config.id2label.items())
        if classes and unnamed and config.num_labels in (2, len(classes)):  # 2 is the library's "not said"
            config.id2label = dict(enumerate(classes))
            config.label2id = {name: i for i, name in enumerate(classes)}
        config.problem_type = "single_label_classification"
        super().__init__(config, config.num_labels)

    def task_loss(self, logits: Tensor, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """Mean cross-entropy over the labels that are not -100.

        Args:
            num_items_in_batch: how many those are in the whole of a batch of which this is a part. None: in this batch.

        Raises:
            ValueError: labels that are no classes (checked on the CPU only: the check would stall a GPU).
        """
        if labels.shape != logits.shape[:1] or labels.is_floating_point():
            raise ValueError(f"labels must be class indices of shape ({logits.shape[0]},); got {labels.dtype} {tuple(labels.shape)}")
        if labels.device.type == "cpu":
            wrong = labels[((labels < 0) | (labels >= logits.shape[1])) & (labels != -100)]
            if wrong.numel():
                raise ValueError(f"label {int(wrong[0])} is none of the {logits.shape[1]} classes {list(self.config.id2label.values())}")
        total = F.cross_entropy(logits, labels, reduction="sum", ignore_index=-100, label_smoothing=self.config.label_smoothing)
        items = (labels != -100).sum() if num_items_in_batch is None else torch.as_tensor(num_items_in_batch, device=total.device)
        return total / items.clamp(min=1)


class NuFMForFlavourClassification(_NuFMClassifier):
    """Neutrino flavour and interaction. `labels`: int64 (B,), index in the detector's `flavour` classes, -100 where unknown."""

    event_label = "flavour"


class NuFMForParticleID(_NuFMClassifier):
    """Kind of a single particle. `labels`: int64 (B,), index in the detector's `particle` classes (else `num_labels`), -100: unknown."""

    event_label = "particle"


class NuFMForVertexRegression(_NuFMTaskModel):
    """Primary vertex. `labels`: float (B, 3), normalised as the processor does, NaN where unknown; the loss is the mean distance."""

    def __init__(self, config: NuFMConfig):
        config = copy.deepcopy(config)
        config.id2label = {0: "x", 1: "y", 2: "z"}
        config.label2id = {"x": 0, "y": 1, "z": 2}
        config.problem_type = "regression"
        super().__init__(config, 3)

    def task_loss(self, logits: Tensor, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """Distance (see `vertex_loss`), summed over the events whose vertex is known, over the number of all events."""
        if labels.shape != logits.shape:
            raise ValueError(f"labels must be vertices of shape {tuple(logits.shape)}; got {tuple(labels.shape)}")
        return event_mean(*vertex_loss(logits, labels))
