"""The published forward pass, written a second time: slow, one event at a time, on dense grids with explicit masks, and on a plain dictionary
of weights with faserDL's names and layouts. And random checkpoints with those names.

Double precision throughout, so that differences are the other side's.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F


def norm(x, w, name, eps=1e-6):
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps)


def linear(x, w, name):
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def attend(q, k, v, mask, heads):
    """q (n, d), k and v (m, d), mask (m,) True at keys that count."""
    out = []
    for qh, kh, vh in zip(q.chunk(heads, 1), k.chunk(heads, 1), v.chunk(heads, 1)):
        scores = qh @ kh.T / math.sqrt(qh.shape[1])
        out.append(scores.masked_fill(~mask, -torch.inf).softmax(-1) @ vh)
    return torch.cat(out, 1)


def mlp(x, w, name):
    return linear(F.gelu(linear(x, w, f"{name}.fc1")), w, f"{name}.fc2")


def block(x, w, name, mask, heads):
    x = x * mask[:, None]
    q, k, v = linear(norm(x, w, f"{name}.norm1"), w, f"{name}.attn.qkv").chunk(3, 1)
    x = x + linear(attend(q, k, v, mask, heads), w, f"{name}.attn.proj")
    x = x + mlp(norm(x, w, f"{name}.norm2"), w, f"{name}.mlp")
    return x * mask[:, None]


def cross_block(x, context, w, name, context_mask, heads):
    q = linear(norm(x, w, f"{name}.norm_q"), w, f"{name}.attn.q")
    k, v = linear(norm(context, w, f"{name}.norm_kv"), w, f"{name}.attn.kv").chunk(2, 1)
    x = x + linear(attend(q, k, v, context_mask, heads), w, f"{name}.attn.proj")
    return x + mlp(norm(x, w, f"{name}.norm2"), w, f"{name}.mlp")


def count(w, stack):
    return 1 + max(int(name.split(".")[1]) for name in w if name.startswith(f"{stack}."))


def sincos(size, grid):
    """(positions with the last axis fastest, size): a third of the vector for each axis, sines before cosines."""
    thirds = [2 * (size // 6)] * 3
    for i in range(size % 6 // 2):
        thirds[i] += 2
    rows = []
    for index in np.ndindex(*grid):
        row = []
        for x, third in zip(index, thirds):
            angles = [x / 10000 ** (2 * i / third) for i in range(third // 2)]
            row += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
        rows.append(row)
    return torch.tensor(rows, dtype=torch.float64)


def dense(voxels, shape):
    """Values (C, x, y, z) and occupancy (1, x, y, z) of (coordinates, values)."""
    coordinates, values = voxels
    grid, filled = torch.zeros(values.shape[1], *shape, dtype=torch.float64), torch.zeros(1, *shape, dtype=torch.float64)
    for c, value in zip(coordinates.tolist(), values.double()):
        grid[:, c[0], c[1], c[2]] = value
        filled[0, c[0], c[1], c[2]] = 1
    return grid, filled


def patch_embed(voxels, shape, w, name):
    """Patch vectors (x, y, z, d) of the dense grid, and which patches are occupied (x, y, z)."""
    grid, filled = dense(voxels, shape)
    if f"{name}.weight" in w:
        kernel = w[f"{name}.weight"].permute(0, 4, 1, 2, 3)
        size = kernel.shape[2:]
        out = F.conv3d(grid[None], kernel, w[f"{name}.bias"], stride=size)[0]
        return out.movedim(0, -1), F.max_pool3d(filled, size)[0] > 0
    first, second = (w[f"{name}.{i}.weight"].permute(0, 4, 1, 2, 3) for i in (0, 3))
    hidden = F.conv3d(grid[None], first, stride=first.shape[2:])[0]
    filled = F.max_pool3d(filled, first.shape[2:])
    hidden = F.gelu(norm(hidden.movedim(0, -1), w, f"{name}.1")).movedim(-1, 0) * filled  # occupied sub-patches only
    out = F.conv3d(hidden[None], second, w[f"{name}.3.bias"], stride=second.shape[2:])[0]
    return out.movedim(0, -1), F.max_pool3d(filled, second.shape[2:])[0] > 0


def cls_mask(occupied, num_cls):
    """Active CLS tokens of a window with a bool for each of its positions."""
    per_cls, number = max(1, len(occupied) // num_cls), int(occupied.sum())
    active = min(math.ceil(number / per_cls), number, num_cls)
    return torch.arange(num_cls) < active


def sequence(cls, patches, occupied, w, stack, norm_name, heads):
    """CLS tokens and all positions of one window through its blocks; an empty window keeps a dummy CLS."""
    keep = cls_mask(occupied, len(cls))
    if not occupied.any():
        keep = torch.arange(len(cls)) < 1
    x, mask = torch.cat([cls, patches]), torch.cat([keep, occupied])
    for i in range(count(w, stack)):
        x = block(x, w, f"{stack}.{i}", mask, heads)
    x = norm(x, w, norm_name)
    return x[: len(cls)], x[len(cls) :]


def fuse(latents, active, tokens, present, w, heads):
    """Active latents after all rounds, and the tokens that they saw."""
    tokens = norm(tokens, w, "tokens_norm")
    for i in range(count(w, "lat_xattn_blocks")):
        latents = cross_block(latents, tokens, w, f"lat_xattn_blocks.{i}", present, heads) * active[:, None]
        latents = block(latents, w, f"latent_self_blocks.{i}", active, heads)
    return {"latents": latents[active], "tokens": tokens[present], "pooled": latents[active].mean(0)}


def fasercal(event, w, heads, shapes):
    """One event: `fcal`, `ahcal` (coordinates, values), `ecal` (25,) or voxels again, `tracks` (T, F)."""
    num_cls, modules = w["module_cls_token"].shape[1], len(w["module_embed_enc.weight"])
    embedded, occupied = patch_embed(event["fcal"], shapes["fcal"], w, "fcal_patch_embed")
    if len(event["fcal"][0]) < 2:
        occupied = torch.zeros_like(occupied)
    depth = embedded.shape[2] // modules
    tokens, present, latents, active = [], [], [], []
    for m in range(modules):
        layers = slice(m * depth, (m + 1) * depth)
        patches = embedded[:, :, layers].flatten(0, 2) + w["intra_pos_embed.weight"]
        filled = occupied[:, :, layers].flatten()
        cls, patches = sequence(w["module_cls_token"][0], patches, filled, w, "blocks", "norm", heads)
        tokens.append(patches + w["module_embed_enc.weight"][m])
        latents.append(cls + w["module_embed_enc.weight"][m])
        present.append(filled)
        active.append(cls_mask(filled, num_cls))
    for row, name in enumerate(["ahcal", "ecal"] if "ecal_cls_token" in w else ["ahcal"]):
        source = w["kv_src_embed.weight"][row]
        embedded, occupied = patch_embed(event[name], shapes[name], w, f"{name}_patch_embed")
        filled = occupied.flatten() & (len(event[name][0]) >= 2)
        patches = embedded.flatten(0, 2) + w[f"{name}_pos_embed.weight"] + source
        cls, patches = sequence(w[f"{name}_cls_token"][0], patches, filled, w, f"{name}_blocks", f"{name}_norm", heads)
        tokens.append(patches)
        latents.append(cls + source)
        present.append(filled)
        active.append(cls_mask(filled, len(cls)))
    if "ecal_cls_token" not in w:
        tokens.append((linear(event["ecal"].double(), w, "ecal_embed") + w["kv_src_embed.weight"][1])[None])
    tracks = event["tracks"].double()
    token = linear(torch.tensor([[float(len(tracks))]], dtype=torch.float64), w, "muon_spec_count_encoder")
    if len(tracks):
        token = cross_block(token, linear(tracks, w, "muon_spec_embed"), w, "muon_spec_xattn", torch.ones(len(tracks)).bool(), heads)
    tokens.append(token + w["muon_state_embed.weight"][int(len(tracks) > 0)] + w["kv_src_embed.weight"][2])
    present.append(torch.ones(sum(len(t) for t in tokens) - sum(len(p) for p in present)).bool())
    active = torch.cat(active)
    if not active.any():
        active[0] = True
    out = fuse(torch.cat(latents), active, torch.cat(tokens), torch.cat(present), w, heads)
    for name in ("flavour", "charm", "vertex"):
        if f"heads.{name}.2.weight" in w:
            out[name] = linear(norm(out["pooled"], w, f"heads.{name}.0"), w, f"heads.{name}.2")
    return out


def crop(event, w, heads, shape, window):
    """One particle of the transfer models: `voxels` (coordinates, values), and 31 `features` for the scintillator."""
    num_cls = w["cls_token"].shape[1]
    embedded, occupied = patch_embed(event["voxels"], shape, w, "patch_embed")
    grid = tuple(-(-n // m) for n, m in zip(embedded.shape[:3], window))
    tokens, present, latents, active = [], [], [], []
    for number, place in enumerate(np.ndindex(*grid)):
        patches, filled = torch.zeros(math.prod(window), embedded.shape[3], dtype=torch.float64), torch.zeros(math.prod(window)).bool()
        for position, inside in enumerate(np.ndindex(*window)):
            at = tuple(p * m + i for p, m, i in zip(place, window, inside))
            if all(a < n for a, n in zip(at, embedded.shape[:3])):
                patches[position], filled[position] = embedded[at], occupied[at]
        if not filled.any():
            continue
        cls, patches = sequence(w["cls_token"][0], patches + w["local_pos_embed.weight"], filled, w, "blocks", "norm", heads)
        tokens.append(patches + w["window_pos_embed.weight"][number])
        latents.append(cls + w["window_pos_embed.weight"][number])
        present.append(filled)
        active.append(cls_mask(filled, num_cls))
    if "context_type_embed" in w:
        context = linear(norm(event["features"].double(), w, "context_proj.0", eps=1e-5), w, "context_proj.1")
        tokens.append((norm(F.gelu(context), w, "context_proj.3") + w["context_type_embed"][0, 0])[None])
        present.append(torch.ones(1).bool())
    out = fuse(torch.cat(latents), torch.cat(active), torch.cat(tokens), torch.cat(present), w, heads)
    vector = out["pooled"] + features_vector(event, w) if "meta_proj.1.weight" in w else out["pooled"]
    out["particle"] = linear(norm(vector, w, "head_pid.0"), w, "head_pid.2")
    return out


def features_vector(event, w):
    hidden = linear(norm(event["features"].double(), w, "meta_proj.0", eps=1e-5), w, "meta_proj.1")
    return linear(F.gelu(hidden), w, "meta_proj.3")


def particles(crops, w, heads, shape, window):
    """Class scores of all the particles of one event; torch's own layers stand between them."""
    encoder = {name.removeprefix("encoder."): tensor for name, tensor in w.items() if name.startswith("encoder.")}
    x = torch.stack([crop(c, encoder, heads, shape, window)["pooled"] + features_vector(c, w) for c in crops])
    x = norm(x, w, "input_norm", eps=1e-5)
    size = x.shape[1]
    layer = torch.nn.TransformerEncoderLayer(size, heads, 4 * size, activation="gelu", batch_first=True, norm_first=True)
    blocks = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).double().eval()
    blocks.load_state_dict({name.removeprefix("context_blocks."): tensor for name, tensor in w.items() if name.startswith("context_blocks.")})
    x = norm(blocks(x[None])[0], w, "context_norm", eps=1e-5)
    return linear(norm(x, w, "head_pid.0", eps=1e-5), w, "head_pid.2")


class Weights(dict):
    """A state dictionary to fill with random numbers."""

    def __init__(self, size, seed):
        super().__init__()
        self.size, self.generator = size, torch.Generator().manual_seed(seed)

    def random(self, name, *shape, scale=1.0):
        self[name] = scale * torch.randn(*shape, generator=self.generator)

    def linear(self, name, inputs, outputs):
        self.random(f"{name}.weight", outputs, inputs, scale=1.5 / math.sqrt(inputs))
        self.random(f"{name}.bias", outputs, scale=0.3)

    def norm(self, name, size=None):
        self[f"{name}.weight"] = 1 + 0.3 * torch.randn(size or self.size, generator=self.generator)
        self.random(f"{name}.bias", size or self.size, scale=0.3)

    def block(self, name, cross=False):
        d = self.size
        for n in ("norm_q", "norm_kv", "norm2") if cross else ("norm1", "norm2"):
            self.norm(f"{name}.{n}")
        if cross:
            self.linear(f"{name}.attn.q", d, d)
            self.linear(f"{name}.attn.kv", d, 2 * d)
        else:
            self.linear(f"{name}.attn.qkv", d, 3 * d)
        self.linear(f"{name}.attn.proj", d, d)
        self.linear(f"{name}.mlp.fc1", d, 4 * d)
        self.linear(f"{name}.mlp.fc2", 4 * d, d)

    def patches(self, name, *kernels):
        """One spconv convolution, or two with a LayerNorm between."""
        if len(kernels) == 1:
            self.random(f"{name}.weight", self.size, *kernels[0], 1)
            self.random(f"{name}.bias", self.size, scale=0.3)
            return
        middle = self.size // 4
        self.random(f"{name}.0.weight", middle, *kernels[0], 1)
        self.norm(f"{name}.1", middle)
        self.random(f"{name}.3.weight", self.size, *kernels[1], middle, scale=0.2)
        self.random(f"{name}.3.bias", self.size, scale=0.3)

    def features(self):
        self.norm("meta_proj.0", 31)
        self.linear("meta_proj.1", 31, self.size)
        self.linear("meta_proj.3", self.size, self.size)

    def position(self, name, grid):
        self[f"{name}.weight"] = sincos(self.size, grid).float()

    def fusion(self, depth):
        self.norm("tokens_norm")
        for i in range(depth):
            self.block(f"lat_xattn_blocks.{i}", cross=True)
            self.block(f"latent_self_blocks.{i}")

    def doubles(self):
        return {name: tensor.double() for name, tensor in self.items()}


def fasercal_weights(size, depth, fusion_depth, kind="finetune", sparse_ecal=False, features=6, seed=0):
    w = Weights(size, seed)
    w["fcal_patch_size"], w["ahcal_patch_size"] = torch.tensor([12, 12, 10]), torch.tensor([6, 6, 5])
    for name in ("idx_template", "intra_idx_template"):
        w[name] = torch.arange(320)
    w["module_token_indices"] = torch.arange(320).view(10, 32)
    w.patches("fcal_patch_embed", (4, 4, 2), (3, 3, 5))
    w.random("module_cls_token", 1, 2, size)
    w.position("intra_pos_embed", (4, 4, 2))
    w.random("module_embed_enc.weight", 10, size)
    for i in range(depth):
        w.block(f"blocks.{i}")
    w.norm("norm")
    for name in ["ahcal", "ecal"] if sparse_ecal else ["ahcal"]:
        w.patches(f"{name}_patch_embed", (6, 6, 5))
        w.random(f"{name}_cls_token", 1, 2, size)
        w.position(f"{name}_pos_embed", (3, 3, 8))
        for i in range(depth):
            w.block(f"{name}_blocks.{i}")
        w.norm(f"{name}_norm")
    if not sparse_ecal:
        w.linear("ecal_embed", 25, size)
    w.random("kv_src_embed.weight", 3, size)
    w.linear("muon_spec_count_encoder", 1, size)
    w.linear("muon_spec_embed", features, size)
    w.block("muon_spec_xattn", cross=True)
    w.random("muon_state_embed.weight", 2, size)
    w.fusion(fusion_depth)
    if kind == "finetune":
        for name, outputs in {"flavour": 6, "charm": 4, "vertex": 3}.items():
            w.norm(f"heads.{name}.0")
            w.linear(f"heads.{name}.2", size, outputs)
        for name in ("vis", "jet"):
            w.norm(f"heads.{name}.0")
            w.linear(f"heads.{name}.2.mlp", size, 4)
    else:
        tokens = ["query_tokens", "ahcal_query_tokens", "global_query", "module_embed_dec.weight"]
        tables = ["decoder_intra_pos_embed.weight", "decoder_ahcal_pos_embed.weight", "fasercal_sep_basis.Bx", "ahcal_sep_basis.Bz"]
        for name in tokens + tables:
            w.random(name, 2, 8)
        layers = ["enc_to_dec", "decode_lat_xattn_blocks.0.attn.q", "fasercal_shared_voxel_head.proj", "ahcal_voxel_head.norm"]
        for name in [*layers, "heads.occ", "heads.gho"]:
            w.linear(name, 8, 8)
        w.linear("ecal_recon_head", 8, 25)
        w.linear("muon_recon_head", 8, 5)
    return w


def crop_weights(size, depth, fusion_depth, window, grid, classes, context=False, features=False, seed=0):
    w = Weights(size, seed)
    w.patches("patch_embed", (4, 4, 2), (3, 3, 5))
    w.position("local_pos_embed", window)
    w.position("window_pos_embed", grid)
    w.random("cls_token", 1, 2, size)
    for i in range(depth):
        w.block(f"blocks.{i}")
    w.norm("norm")
    w.fusion(fusion_depth)
    w.norm("head_pid.0")
    w.linear("head_pid.2", size, classes)
    if context:
        w.norm("context_proj.0", 31)
        w.linear("context_proj.1", 31, size)
        w.norm("context_proj.3")
        w.random("context_type_embed", 1, 1, size)
    elif features:
        w.features()
    else:
        w["window_token_indices"], w["window_ids"] = torch.arange(10).view(2, 5), torch.arange(2)
    return w


def event_weights(size, depth, fusion_depth, window, grid, classes, seed=0):
    w = Weights(size, seed)
    w.update({f"encoder.{name}": tensor for name, tensor in crop_weights(size, depth, fusion_depth, window, grid, classes, seed=seed).items()})
    w.features()
    w.norm("input_norm")
    for i in range(2):
        name = f"context_blocks.layers.{i}"
        w.linear(f"{name}.in", size, 3 * size)
        for leaf in ("weight", "bias"):
            w[f"{name}.self_attn.in_proj_{leaf}"] = w.pop(f"{name}.in.{leaf}")
        w.linear(f"{name}.self_attn.out_proj", size, size)
        w.linear(f"{name}.linear1", size, 4 * size)
        w.linear(f"{name}.linear2", 4 * size, size)
        w.norm(f"{name}.norm1")
        w.norm(f"{name}.norm2")
    w.norm("context_norm")
    w.norm("head_pid.0")
    w.linear("head_pid.2", size, classes)
    return w
