"""What the models of all families do alike: loading, saving, and the rules by which trainings and transfers read names of weights.

The contract of names: `embeddings.*` belongs to one detector, `encoder.*` moves to another one, `head.*` belongs to a task, `decoder.*` to
pre-training and to the labels of voxels. `embeddings.voxels.<i>.*` and `encoder.branches.<i>.*`, where a family has them, are those of voxel
branch i. Names are the same in all classes of a family, so that checkpoints of any of them load into any other; only a head, with the classes
it names, stays with its task.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from nufm_hub.models.families import family_of
from nufm_hub.sparse import EventGRN, EventLayerNorm, SparseConvolution

from .configuration import DetectorConfig, explicit_revision
from .kinematics import TaskWeights
from .loading import check_finite, hub_options, saved_config, with_own_classes
from .outputs import EncoderOutput
from .pooling import HeadLinear, PooledHead


class DetectorModel(PreTrainedModel):
    """Base of all models. A family's own base makes `embeddings` and `encoder`, and gives `encode`."""

    accepts_loss_kwargs = False  # losses are means over the events of the batch
    # Names (a regular expression) of learned vectors that happen to be stored as matrices: like biases, they do not decay.
    vectors: ClassVar[str] = r"(?!)"
    transfer_report: Any = None  # of `nufm_hub.transfer_encoder`, which made the model; saved with it

    def encode(
        self, *args: Tensor, output_hidden_states: bool | None = None, output_attentions: bool | None = None, **inputs: Tensor
    ) -> EncoderOutput:
        """Encode a batch of B events, given as the family's processor makes them; at least `pooler_output` (B, hidden_size) comes out."""
        raise NotImplementedError(f"{type(self).__name__} belongs to a family whose base class has no encode")

    def encode_for_heads(self, *args: Tensor, **inputs: Any) -> EncoderOutput:
        """`encode`, with what the heads of the family need besides."""
        return self.encode(*args, **inputs)

    def _make_readout(self, config: DetectorConfig, quantities: int) -> nn.Module | None:
        """What gives heads vectors of their own, (B, quantities, hidden_size), of an `EncoderOutput`; None: they share the event vector."""
        return None

    def _make_head(self, config: DetectorConfig, quantity: str, outputs: int, readout: nn.Module | None = None) -> nn.Module:
        """The head of a quantity (an event label, `vertex`, a momentum); called as `PooledHead` is."""
        return PooledHead(config, outputs, readout)

    @classmethod
    def encoder_depths(cls, names: Iterable[str]) -> dict[str, int]:
        """How deep weights of the encoder lie, by name, from 0, the embeddings, upwards; heads and decoder, on top of all, are left out.

        Here by the order of the numbered modules that hold the weights; a family with layers side by side says so itself.
        """
        depths, modules = {}, {}
        for name in names:
            if name.startswith("embeddings."):
                depths[name] = 0
            elif name.startswith("encoder."):
                if module := re.match(r"encoder\.(?:.*?\.)?\d+\.", name):
                    modules.setdefault(module[0], 1 + len(modules))
                depths[name] = max(1, len(modules)) if module is None else modules[module[0]]
        return depths

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # one rule per weight: while a checkpoint loads, what has been set once is left alone
        if isinstance(module, HeadLinear):
            init.trunc_normal_(module.weight, std=self.config.head_init_std)
            init.zeros_(module.bias)
        elif isinstance(module, (SparseConvolution, EventGRN, EventLayerNorm)):
            module.reset_parameters()
        elif isinstance(module, TaskWeights):
            for name, u in module.named_parameters():
                init.constant_(u, module.start_logit(name))
        else:
            super()._init_weights(module)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As in the library; an id of a checkpoint that comes with the package is read from there.

        Of a checkpoint that was saved as another class the head is not taken, nor its classes: they belong to another task.

        Raises:
            ValueError: the weights file is truncated or damaged, or holds values that are not finite; the checkpoint is of another family;
                values of the configuration that do not fit together, or change what the weights mean.
        """
        from nufm_hub.checkpoints import resolve

        if pretrained_model_name_or_path is None:
            return super().from_pretrained(None, *args, **kwargs)
        folder = resolve(pretrained_model_name_or_path, revision=explicit_revision(kwargs))
        saved = saved_config(folder, kwargs)
        family, own = saved.get("model_type"), cls.config_class.model_type
        if family != own:
            raise ValueError(f"{pretrained_model_name_or_path} is of the family {family!r}, not {own!r}: {cls.__name__} cannot read it")
        cls._check_meanings(saved, kwargs)
        name = (saved.get("architectures") or [None])[0]
        try:
            if name in (None, cls.__name__):
                loaded = super().from_pretrained(folder, *args, **kwargs)
            else:
                loaded = cls._from_another_task(folder, name, *args, **kwargs)
        except SafetensorError as error:
            raise ValueError(f"the weights in {pretrained_model_name_or_path} are truncated or damaged ({error}): fetch them again") from error
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        check_finite(model.state_dict(), str(pretrained_model_name_or_path))
        model.config.name_or_path = model.name_or_path = str(pretrained_model_name_or_path)
        return loaded

    @classmethod
    def _check_meanings(cls, saved: dict[str, Any], options: dict[str, Any]) -> None:
        wanted = vars(options["config"]) if isinstance(options.get("config"), DetectorConfig) else options
        for name in cls.config_class.meanings.keys() & saved.keys():
            if wanted.get(name, saved[name]) != saved[name]:
                change = f"{name}={wanted[name]} cannot change what was trained with {saved[name]}"
                raise ValueError(f"{change}: the same matrices would mean another thing")

    @classmethod
    def _from_another_task(cls, folder: str, saved: str, *args: Any, **kwargs: Any) -> Any:
        """All but the head, whose weights bear the same names in every class, of what was saved as another one."""
        hub = hub_options(kwargs)
        kwargs = {name: value for name, value in kwargs.items() if name not in hub}
        reader = saved_class(cls.config_class, saved)
        source, info = super(DetectorModel, reader).from_pretrained(folder, output_loading_info=True, **hub)
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


def saved_class(config_class: type[DetectorConfig], name: str) -> type[DetectorModel]:
    """The class of a family that knows all weights of a checkpoint saved as `name`; the plain encoder where the family has none of that name."""
    family = family_of(config_class)
    head = name.removeprefix(family.prefix)
    return family.get(head if name.startswith(family.prefix) and head in family.names() else "Model")
