"""Names and layouts of faserDL weights, and what they are called here."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from torch import Tensor

from nufm_hub.detectors import DetectorSpec, VoxelBranch
from nufm_hub.models.nufm.patch_embedding import patch_kernels

# Layers of a transformer block. The fused `attn.qkv` is split: queries, then keys and values together.
_LAYER = {
    "norm1": "attention_norm", "norm_q": "attention_norm", "norm_kv": "context_norm", "norm2": "mlp_norm", "attn.q": "attention.query",
    "attn.kv": "attention.key_value", "attn.proj": "attention.output", "mlp.fc1": "mlp.0", "mlp.fc2": "mlp.2",
    "self_attn.out_proj": "attention.output", "linear1": "mlp.0", "linear2": "mlp.2",
}  # fmt: skip
_QKV = ("attn.qkv", "self_attn.in_proj")
# Three convolution modules at most: theirs at place 0, 1 and 3 of a sequence, or one alone.
_PATCH = {"0": "sub_projection", "1": "sub_norm", "3": "projection", "": "projection"}


@dataclass
class Layout:
    """How the weights of one kind of checkpoint are called here.

    Attributes:
        name: of the kind.
        stacks: their prefix of a block -> ours; `{i}` stands for the number of the block.
        modules: their module -> ours, for linear layers, norms and embeddings (`.weight`, `.bias` follow).
        patches: their patch embedding -> ours.
        tokens: their CLS tokens [1, n, d] and type vectors [1, 1, d] -> ours.
        sources: rows of `kv_src_embed.weight` -> ours.
        positions: their frozen sine-cosine tables -> the grid of ours, which must be equal.
        kernels: our convolutions -> their size (x, y, z), which MinkowskiEngine's kernels do not tell.
    """

    name: str
    stacks: dict[str, str]
    modules: dict[str, str]
    patches: dict[str, str]
    tokens: dict[str, str]
    sources: list[str] = field(default_factory=list)
    positions: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    kernels: dict[str, tuple[int, int, int]] = field(default_factory=dict)

    def convert(self, name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Our names and tensors for one of theirs; nothing when the name is none of this layout."""
        module, _, leaf = name.replace("in_proj_", "in_proj.").rpartition(".")
        if name in self.tokens:
            ours = self.tokens[name]
            yield ours, tensor[0, 0] if ours.endswith(".source") else tensor[0]
        elif name == "kv_src_embed.weight" and self.sources:
            yield from zip(self.sources, tensor, strict=True)
        elif module in self.modules and leaf in ("weight", "bias"):
            yield f"{self.modules[module]}.{leaf}", tensor
        elif block := self._block(module):
            ours, part = block
            if part in _QKV:
                size = tensor.shape[0] // 3
                yield f"{ours}.attention.query.{leaf}", tensor[:size]
                yield f"{ours}.attention.key_value.{leaf}", tensor[size:]
            elif part in _LAYER:
                yield f"{ours}.{_LAYER[part]}.{leaf}", tensor
        elif patch := self._patch(module):
            yield self._convolution(patch, leaf, tensor)

    def _block(self, module: str) -> tuple[str, str] | None:
        for theirs, ours in self.stacks.items():
            if match := re.fullmatch(re.escape(theirs).replace(r"\{i\}", r"(\d+)") + r"\.(.+)", module):
                number = match[1] if "{i}" in theirs else ""
                return ours.replace("{i}", number), match[match.lastindex]
        return None

    def _patch(self, module: str) -> str | None:
        for theirs, ours in self.patches.items():
            if module == theirs or module.startswith(theirs + "."):
                part = module.removeprefix(theirs).removeprefix(".")
                return f"{ours}.{_PATCH[part]}" if part in _PATCH else None
        return None

    def _convolution(self, ours: str, leaf: str, tensor: Tensor) -> tuple[str, Tensor]:
        if leaf == "kernel":
            return f"{ours}.weight", minkowski_kernel(tensor, self.kernels[ours])
        if leaf == "weight" and tensor.ndim == 5:
            return f"{ours}.weight", spconv_kernel(tensor)
        return f"{ours}.{leaf}", tensor.reshape(-1)


def spconv_kernel(kernel: Tensor) -> Tensor:
    """spconv's [Cout, kx, ky, kz, Cin] as a `Conv3d` weight [Cout, Cin, kx, ky, kz]."""
    return kernel.permute(0, 4, 1, 2, 3)


def minkowski_kernel(kernel: Tensor, size: tuple[int, int, int]) -> Tensor:
    """MinkowskiEngine's [K, Cin, Cout], x fastest among the K places, as a `Conv3d` weight [Cout, Cin, kx, ky, kz].

    Raises:
        ValueError: the kernel has not the K of the size.
    """
    x, y, z = size
    if kernel.ndim == 2:  # MinkowskiEngine drops the first axis of a kernel of one place
        kernel = kernel[None]
    if kernel.ndim != 3 or kernel.shape[0] != x * y * z:
        raise ValueError(
            f"a MinkowskiEngine kernel of shape {tuple(kernel.shape)} is no kernel of {x} x {y} x {z} places: check the detector's patch"
        )
    return kernel.unflatten(0, (z, y, x)).permute(4, 3, 2, 1, 0)


def fasercal_layout(spec: DetectorSpec) -> Layout:
    """Pre-training and fine-tuning: FASERCal, AHCAL, then the ECAL as an image or as a third voxel branch, and the muon tracks."""
    names = ["", "ahcal_", "ecal_"][: len(spec.voxel_branches)]
    calorimeters = dict(zip(["fcal", "ahcal", "ecal"], spec.voxel_branches))
    sources = [f"embeddings.voxels.{i}.source" for i in range(1, len(names))]
    layout = Layout(
        name="fasercal",
        stacks={f"{p}blocks.{{i}}": f"encoder.branches.{n}.layers.{{i}}" for n, p in enumerate(names)}
        | _FUSION
        | {"muon_spec_xattn": "embeddings.tracks.layer"},
        modules={f"{p}norm": f"encoder.branches.{n}.norm" for n, p in enumerate(names)}
        | {
            "tokens_norm": "encoder.tokens_norm",
            "module_embed_enc": "embeddings.voxels.0.window",
            "muon_spec_count_encoder": "embeddings.tracks.count",
            "muon_spec_embed": "embeddings.tracks.projection",
            "muon_state_embed": "embeddings.tracks.state",
        },
        patches={f"{p}_patch_embed": f"embeddings.voxels.{n}.patch_embedding" for n, p in enumerate(calorimeters)},
        tokens={f"{p or 'module_'}cls_token": f"encoder.branches.{n}.cls_token" for n, p in enumerate(names)},
        sources=[*sources, *(["embeddings.image.source"] if spec.image_branch else []), "embeddings.tracks.source"],
        positions={f"{p or 'intra_'}pos_embed.weight": b.window for p, b in zip(names, spec.voxel_branches)},
        kernels=_kernels(spec),
    )
    if spec.image_branch is not None:
        layout.modules["ecal_embed"] = "embeddings.image.projection"
    return layout


def crop_layout(name: str, branch: VoxelBranch, spec: DetectorSpec) -> Layout:
    """The transfer models: one crop in windows, and with a track branch its features as one more token."""
    layout = Layout(
        name=name,
        stacks={"blocks.{i}": "encoder.branches.0.layers.{i}"} | _FUSION,
        modules={"norm": "encoder.branches.0.norm", "tokens_norm": "encoder.tokens_norm"},
        patches={"patch_embed": "embeddings.voxels.0.patch_embedding"},
        tokens={"cls_token": "encoder.branches.0.cls_token"},
        positions={"local_pos_embed.weight": branch.window, "window_pos_embed.weight": branch.window_grid},
        kernels=_kernels(spec),
    )
    if name == "scintillator":
        layout.tokens["context_type_embed"] = "embeddings.tracks.source"
        for theirs, ours in (("0", "feature_norm"), ("1", "projection"), ("3", "norm")):
            layout.modules[f"context_proj.{theirs}"] = f"embeddings.tracks.{ours}"
    if name == "pilarnet-features":
        layout.modules |= _FEATURES
    return layout


def event_layout(branch: VoxelBranch, spec: DetectorSpec) -> Layout:
    """The multi-particle model: the crop's encoder under `encoder.`, and torch's `TransformerEncoder` between the particles."""
    crop = crop_layout("pilarnet", branch, spec)
    return replace(
        crop,
        name="pilarnet-event",
        stacks={f"encoder.{k}": v for k, v in crop.stacks.items()} | {"context_blocks.layers.{i}": "head.layers.{i}"},
        modules={f"encoder.{k}": v for k, v in crop.modules.items()}
        | _FEATURES
        | {"input_norm": "head.input_norm", "context_norm": "head.context_norm"},
        patches={f"encoder.{k}": v for k, v in crop.patches.items()},
        tokens={f"encoder.{k}": v for k, v in crop.tokens.items()},
        positions={f"encoder.{k}": v for k, v in crop.positions.items()},
    )


_FEATURES = {"meta_proj.0": "head.feature_norm", "meta_proj.1": "head.feature_mlp.0", "meta_proj.3": "head.feature_mlp.2"}


_FUSION = {"lat_xattn_blocks.{i}": "encoder.cross_layers.{i}", "latent_self_blocks.{i}": "encoder.self_layers.{i}"}


def _kernels(spec: DetectorSpec) -> dict[str, tuple[int, int, int]]:
    sizes = {}
    for i, branch in enumerate(spec.voxel_branches):
        first, second = patch_kernels(branch.patch)
        prefix = f"embeddings.voxels.{i}.patch_embedding"
        if second == (1, 1, 1):
            sizes[f"{prefix}.projection"] = first
        else:
            sizes |= {f"{prefix}.sub_projection": first, f"{prefix}.projection": second}
    return sizes
