"""The encoder against a second implementation: one event, one window, one head at a time, from the description of the published model."""

import math

import pytest
import torch
import torch.nn.functional as F

from nufm_hub.models import NuFMModel


def norm(x, layer):
    return F.layer_norm(x, x.shape[-1:], layer.weight, layer.bias, 1e-6)


def block(x, layer, context=None):
    """Pre-norm attention and MLP of rows (n, d); keys and values from `context`, or from x itself."""
    attention, n = layer.attention, norm(x, layer.attention_norm)
    keys_from = n if context is None else norm(context, layer.context_norm)
    q = n @ attention.query.weight.t() + attention.query.bias
    k, v = (keys_from @ attention.key_value.weight.t() + attention.key_value.bias).chunk(2, dim=1)
    heads = []
    for qh, kh, vh in zip(q.chunk(attention.heads, 1), k.chunk(attention.heads, 1), v.chunk(attention.heads, 1)):
        heads.append((qh @ kh.t() / math.sqrt(qh.shape[1])).softmax(-1) @ vh)
    x = x + torch.cat(heads, 1) @ attention.output.weight.t() + attention.output.bias
    inner = F.gelu(norm(x, layer.mlp_norm) @ layer.mlp[0].weight.t() + layer.mlp[0].bias)
    return x + inner @ layer.mlp[2].weight.t() + layer.mlp[2].bias


def patch_vector(embed, dense):
    """Embedding of one dense patch (C, x, y, z)."""
    if embed.sub_patches == 1:
        return F.conv3d(dense[None], embed.projection.weight, embed.projection.bias).flatten()
    kernel = embed.sub_projection.kernel_size
    hidden = F.conv3d(dense[None], embed.sub_projection.weight, stride=kernel)
    hidden = F.gelu(norm(hidden.movedim(1, -1), embed.sub_norm)).movedim(-1, 1)
    hidden = hidden * F.max_pool3d((dense != 0).any(0).float()[None, None], kernel)
    return F.conv3d(hidden, embed.projection.weight, embed.projection.bias).flatten()


def reference(net, spec, event):
    tokens, latents = [], []
    for i, branch in enumerate(spec.voxel_branches):
        embeddings, encoder = net.embeddings.voxels[i], net.encoder.branches[i]
        grid = torch.zeros(len(branch.channels), *branch.shape)
        rows = event["voxel_branch"] == i
        x, y, z = event["voxel_coordinates"][rows].t()
        grid[:, x, y, z] = event["voxel_features"][rows][:, : len(branch.channels)].t()
        for window in range(branch.num_windows):
            start = torch.tensor(torch.unravel_index(torch.tensor(window), branch.window_grid)) * torch.tensor(branch.window)
            sequence = []
            for position in range(branch.positions_per_window):
                at = (start + torch.tensor(torch.unravel_index(torch.tensor(position), branch.window))) * torch.tensor(branch.patch)
                dense = grid[:, at[0] : at[0] + branch.patch[0], at[1] : at[1] + branch.patch[1], at[2] : at[2] + branch.patch[2]]
                if dense.any():
                    token = patch_vector(embeddings.patch_embedding, dense) + embeddings.position.weight[position]
                    sequence.append(token if i == 0 else token + embeddings.source)
            if not sequence:
                continue
            number = math.ceil(len(sequence) / (branch.positions_per_window // encoder.num_cls))
            hidden = torch.cat([encoder.cls_token[:number], torch.stack(sequence)])
            for layer in encoder.layers:
                hidden = block(hidden, layer)
            hidden = norm(hidden, encoder.norm)
            if branch.num_windows > 1:
                hidden = hidden + embeddings.window.weight[window]
            tokens.append(hidden[number:])
            latents.append(hidden[:number] if i == 0 else hidden[:number] + embeddings.source)
    image, tracks = net.embeddings.image, net.embeddings.tracks
    tokens.append((image.projection.weight @ event["image_features"] + image.projection.bias + image.source)[None])
    real = event["track_features"][event["track_mask"]]
    token = (float(len(real)) * tracks.count.weight[:, 0] + tracks.count.bias)[None]
    if len(real):
        token = block(token, tracks.layer, real @ tracks.projection.weight.t() + tracks.projection.bias)
    tokens.append(token + tracks.state.weight[int(len(real) > 0)] + tracks.source)

    context, hidden = norm(torch.cat(tokens), net.encoder.tokens_norm), torch.cat(latents)
    for cross, own in zip(net.encoder.cross_layers, net.encoder.self_layers):
        hidden = block(block(hidden, cross, context), own)
    return hidden.mean(0)


@pytest.mark.parametrize("window_position", ["learned", "sincos"])
def test_equals_the_reference(toy, window_position):
    torch.manual_seed(0)
    net = NuFMModel(toy.config(window_position=window_position)).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        events = [e for e in toy.mixed_events() if len(e["voxel_branch"])]
        got = net(**toy.collate(events)).pooler_output
        for row, event in zip(got, events):
            torch.testing.assert_close(row, reference(net, toy.spec, event), atol=1e-5, rtol=1e-5)
