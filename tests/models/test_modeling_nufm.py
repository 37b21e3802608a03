"""The encoder: what it computes, and that an event's result depends on that event alone."""

import math

import pytest
import torch

from nufm_hub.models import NuFMConfig, NuFMModel
from nufm_hub.models.nufm.layers_nufm import Sequences, sincos_position

TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}


def model(toy, **overrides):
    torch.manual_seed(0)
    return NuFMModel(toy.config(**overrides)).eval()


def latents_of(output, event):
    return output.last_hidden_state[event][output.latent_mask[event]]


@pytest.mark.parametrize("padding", [0, 7])
def test_an_event_does_not_see_its_batch(toy, padding):
    net, events = model(toy), toy.mixed_events()
    together = net(**toy.collate(events, padding))
    for i, event in enumerate(events):
        alone = net(**toy.collate([event]))
        torch.testing.assert_close(alone.pooler_output[0], together.pooler_output[i], **TOLERANCE)
        torch.testing.assert_close(latents_of(alone, 0), latents_of(together, i), **TOLERANCE)


def test_extreme_events_together():
    """No voxel, one voxel, 60,000 voxels: finite, gradients too."""
    torch.manual_seed(0)
    net = NuFMModel(NuFMConfig.preset("nano", "fasercal"))
    cells = torch.randperm(48 * 48 * 200)[:60_000]
    coordinates = torch.zeros(3, 60_000, 3, dtype=torch.long)
    coordinates[2] = torch.stack([cells // 9600, cells // 200 % 48, cells % 200], 1)
    branch = torch.full((3, 60_000), -1)
    branch[1, 0] = 0
    branch[2] = 0
    inputs = {
        "voxel_coordinates": coordinates,
        "voxel_features": torch.randn(3, 60_000, 1),
        "voxel_branch": branch,
        "image_features": torch.randn(3, 25),
        "track_features": torch.randn(3, 10, 6),
        "track_mask": torch.zeros(3, 10, dtype=torch.bool),
    }
    out = net(**inputs)
    assert out.latent_mask.sum(1).tolist() == [1, 1, 20]
    assert out.pooler_output.isfinite().all()
    out.pooler_output.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    with torch.no_grad():
        single = net(**{k: v[1:2] for k, v in inputs.items()}).pooler_output
    torch.testing.assert_close(single[0], out.pooler_output[1], **TOLERANCE)


def test_order_of_voxels_does_not_matter(toy):
    net, event = model(toy), toy.event(150, 25, 2, seed=3)
    order = torch.randperm(175, generator=torch.Generator().manual_seed(0))
    shuffled = event | {k: event[k][order] for k in ("voxel_coordinates", "voxel_features", "voxel_branch", "voxel_labels")}
    assert torch.equal(net(**toy.collate([event])).pooler_output, net(**toy.collate([shuffled])).pooler_output)


def test_padding_may_hold_anything(toy):
    net = model(toy)
    batch = toy.collate([toy.event(50, 9, 1, seed=1)], extra=20)
    clean = net(**batch).pooler_output
    padding = batch["voxel_branch"] < 0
    batch["voxel_coordinates"][padding] = 999
    batch["voxel_features"][padding] = float("nan")
    batch["track_features"][~batch["track_mask"]] = float("nan")
    assert torch.equal(net(**batch).pooler_output, clean)


def test_absent_is_not_empty(toy):
    net, event = model(toy), toy.event(80, 0, 0, seed=5)
    batch = toy.collate([event])
    everything = torch.ones(1, 4, dtype=torch.bool)
    present = net(**batch, branch_mask=everything).pooler_output
    assert torch.equal(present, net(**batch).pooler_output)
    for column in (2, 3):  # image, tracks
        mask = everything.clone()
        mask[0, column] = False
        assert (net(**batch, branch_mask=mask).pooler_output - present).abs().max() > 1e-3


def test_absent_branch_is_not_read(toy):
    net = model(toy)
    with_bars, without = toy.event(80, 40, 2, seed=5), toy.event(80, 40, 2, seed=5)
    keep = without["voxel_branch"] == 0
    for key in ("voxel_coordinates", "voxel_features", "voxel_branch", "voxel_labels"):
        without[key] = without[key][keep]
    mask = torch.tensor([[True, False, True, True]])
    a = net(**toy.collate([with_bars]), branch_mask=mask).pooler_output
    b = net(**toy.collate([without]), branch_mask=mask).pooler_output
    torch.testing.assert_close(a, b, **TOLERANCE)


def test_minimum_of_voxels(toy):
    event = toy.event(1, 30, 1, seed=2)
    nothing = event | {k: event[k][1:] for k in ("voxel_coordinates", "voxel_features", "voxel_branch", "voxel_labels")}
    net = model(toy, min_voxels_per_branch=2)
    assert torch.equal(net(**toy.collate([event])).pooler_output, net(**toy.collate([nothing])).pooler_output)
    net.config.min_voxels_per_branch = 1
    assert not torch.equal(net(**toy.collate([event])).pooler_output, net(**toy.collate([nothing])).pooler_output)


@pytest.mark.parametrize(("patches", "latents"), [(1, 1), (8, 1), (9, 2), (16, 2)])
def test_number_of_latents_follows_occupancy(toy, patches, latents):
    """A window of 16 positions and 2 CLS tokens: one CLS token for every 8 occupied patches."""
    net = model(toy)
    place = torch.arange(patches)
    event = toy.event(patches, 0, 0, seed=0)
    event["voxel_coordinates"] = torch.stack([place // 4 * 6, place // 2 % 2 * 6, place % 2 * 5], dim=1)
    assert net(**toy.collate([event])).latent_mask.sum() == latents


def test_latents_of_all_windows(toy):
    """8 windows along z (4 of 10 layers), all 16 patches occupied: 2 each; the single bars window of 2 positions and 2 CLS: 2."""
    out = model(toy)(**toy.collate([toy.event(24 * 12 * 40, 12 * 24 * 20, 0, seed=0)]))
    assert out.latent_mask.sum() == 4 * 2 + 2 * 2
    torch.testing.assert_close(out.pooler_output, out.last_hidden_state.mean(1), **TOLERANCE)


def test_pooling_is_the_mean_of_active_latents(toy):
    out = model(toy)(**toy.collate(toy.mixed_events()))
    assert out.latent_mask.sum(1)[1] == 1  # the event with nothing
    for i in range(len(out.latent_mask)):
        torch.testing.assert_close(out.pooler_output[i], latents_of(out, i).mean(0), **TOLERANCE)


def test_event_without_any_token():
    """No voxel, image or track at all: the result does not depend on the batch either."""
    spec = {"name": "bare", "branches": [{"kind": "voxels", "name": "v", "shape": [8, 8, 8], "voxel_size": [1, 1, 1], "origin": [0, 0, 0],
            "patch": [4, 4, 4], "window": [2, 2, 1]}]}  # fmt: skip
    torch.manual_seed(0)
    net = NuFMModel(NuFMConfig(detector=spec, hidden_size=12, num_attention_heads=2, fusion_depth=2)).eval()
    coordinates, features, branch = torch.randint(0, 8, (2, 30, 3)), torch.randn(2, 30, 1), torch.zeros(2, 30, dtype=torch.long)
    branch[0] = -1
    together = net(coordinates, features, branch)
    alone = net(coordinates[:1], features[:1], branch[:1])
    nothing = net(coordinates[:1, :0], features[:1, :0], branch[:1, :0])
    assert together.pooler_output.isfinite().all()
    torch.testing.assert_close(alone.pooler_output[0], together.pooler_output[0], **TOLERANCE)
    torch.testing.assert_close(nothing.pooler_output[0], together.pooler_output[0], **TOLERANCE)


def test_eager_equals_sdpa(toy):
    batch = toy.collate(toy.mixed_events())
    net = model(toy)
    fast = net(**batch).pooler_output
    net.set_attn_implementation("eager")
    out = net(**batch, output_attentions=True, output_hidden_states=True)
    torch.testing.assert_close(out.pooler_output, fast, **TOLERANCE)
    events, length = out.latent_mask.shape
    assert len(out.attentions) == 2
    assert len(out.hidden_states) == 3
    assert out.attentions[0].shape[:3] == (events, 2, length)
    torch.testing.assert_close(out.attentions[0].sum(-1), torch.ones(events, 2, length), **TOLERANCE)
    assert torch.equal(out.hidden_states[-1], out.last_hidden_state)


def test_unsupported_attention_is_refused(toy):
    with pytest.raises(ValueError, match="flex"):
        NuFMModel._from_config(toy.config(), attn_implementation="flex_attention")


def test_gradient_checkpointing_gives_the_same_gradients(toy):
    batch, gradients = toy.collate(toy.mixed_events()), []
    for checkpointing in (False, True):
        net = model(toy).train()
        if checkpointing:
            net.gradient_checkpointing_enable()
        net(**batch).pooler_output.square().sum().backward()
        gradients.append([p.grad for p in net.parameters()])
    for a, b in zip(*gradients):
        torch.testing.assert_close(a, b, **TOLERANCE)


def test_every_parameter_learns_or_gets_zero(toy):
    net = model(toy).train()
    net(**toy.collate([toy.event(0, 0, 0, seed=0)])).pooler_output.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    net.zero_grad()
    net(**toy.collate(toy.mixed_events())).pooler_output.square().sum().backward()
    silent = [n for n, p in net.named_parameters() if not p.grad.any()]
    assert silent == []


def test_drop_path_rates(toy):
    net = model(toy, window_depths=[2, 2], fusion_depth=3, drop_path_rate=0.7)
    assert [layer.drop_path for layer in net.encoder.branches[0].layers] == pytest.approx([0.0, 0.1])
    assert [layer.drop_path for layer in net.encoder.self_layers] == pytest.approx([0.3, 0.5, 0.7])
    assert [layer.drop_path for layer in net.encoder.cross_layers] == pytest.approx([0.0, 0.2, 0.3])
    batch = toy.collate(toy.mixed_events())
    assert torch.equal(net(**batch).pooler_output, net(**batch).pooler_output)
    net.train()
    assert not torch.equal(net(**batch).pooler_output, net(**batch).pooler_output)


def test_frozen_window_positions(toy):
    net = model(toy, window_position="sincos")
    assert not any("window" in name for name, _ in net.named_parameters())
    assert torch.equal(net.embeddings.voxels[0].window.weight, sincos_position(24, (1, 1, 4)))


def test_names_of_weights(toy):
    names = list(model(toy).state_dict())
    assert {n.split(".")[0] for n in names} == {"embeddings", "encoder"}
    assert not any("position" in n for n in names)
    assert {"encoder.branches.0.cls_token", "encoder.tokens_norm.weight", "embeddings.voxels.1.source"} <= set(names)


def test_sincos_position_by_hand():
    table = sincos_position(16, (2, 3, 4))  # parts of 6, 6 and 4: 16 = 3 * 4 + 4, the first two axes 2 larger
    assert table.shape == (24, 16)
    row = table[1 * 12 + 2 * 4 + 3]  # position (1, 2, 3), last axis fastest
    want = []
    for index, half in ((1, 3), (2, 3), (3, 2)):
        angles = [index * 10000 ** (-i / half) for i in range(half)]
        want += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
    torch.testing.assert_close(row, torch.tensor(want))


def test_sequences_and_their_inverse():
    rows, group = torch.arange(10.0).view(5, 2), torch.tensor([2, 0, 2, 2, 0])
    sequences = Sequences(group, 4)
    padded = sequences.pad(rows)
    assert sequences.mask.tolist() == [[True, True, False], [True, False, False], [True] * 3, [True, False, False]]
    assert padded[2].tolist() == [[0, 1], [4, 5], [6, 7]]
    assert padded[0].tolist() == [[2, 3], [8, 9], [0, 0]]
    assert not padded[1].any()
    assert torch.equal(sequences.unpad(padded), rows)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_features": None}, "give image_features"),
        ({"track_mask": None}, "give track_features and track_mask"),
        ({"voxel_features": torch.zeros(1, 59, 1)}, r"voxel_features \(B, N, 2\)"),
        ({"voxel_branch": torch.full((1, 59), 2)}, "voxel_branch 2 is no voxel branch of 'toy'"),
        ({"branch_mask": torch.ones(1, 2)}, r"branch_mask must be \(B, 4\)"),
        ({"voxel_coordinates": torch.full((1, 59, 3), 30)}, "leave the grid"),
    ],
)
def test_refuses_inputs_of_another_detector(toy, change, message):
    batch = toy.collate([toy.event(50, 9, 1, seed=1)]) | change
    with pytest.raises(ValueError, match=message):
        model(toy)(**batch)
