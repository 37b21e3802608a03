"""Pre-training: what is hidden stays hidden, heads equal their definition, and it learns."""

import math

import pytest
import torch

from nufm_hub.models import NuFMForFlavourClassification, NuFMForPreTraining, NuFMModel
from nufm_hub.models.common.objectives import huber_loss, label_loss, near_hits, occupancy_loss
from nufm_hub.models.nufm import NuFMInputs, pretraining_nufm
from nufm_hub.models.nufm.decoder_nufm import NuFMVoxelHead, cosine_basis
from nufm_hub.models.nufm.layers_nufm import Sequences

LOSSES = {"occupancy_cubes", "charge_cubes", "occupancy_bars", "charge_bars", "towers", "muon"}


def model(toy, **overrides):
    torch.manual_seed(0)
    return NuFMForPreTraining(toy.config(**overrides)).eval()


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def inputs_of(batch):
    return NuFMInputs(**{name: value for name, value in batch.items() if name != "voxel_labels"})


def randomise(net):
    """Give weights that start at zero or one something to say."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return net


def dense_definition(head: NuFMVoxelHead, vectors: torch.Tensor, name: str) -> torch.Tensor:
    """Features of every voxel from every mode first, then the linear map: (P, z, x, y, n)."""
    basis = head.basis
    shape = (len(vectors), head.modes, basis.z.shape[1], basis.x.shape[1], basis.y.shape[1])
    coefficients = head.coefficients(head.norm(vectors)).view(shape)
    features = torch.einsum("pmkij,xi,yj,zk->pzxym", coefficients, basis.x, basis.y, basis.z)
    return head.outputs[name](features)


@pytest.mark.parametrize("name", ["occupancy", "charge", "labels"])
def test_voxel_head_equals_its_definition(toy, name):
    net = randomise(model(toy))
    for i, branch in enumerate(net.decoder.branches):
        head = branch.voxel_head
        if name == "labels" and i:
            assert "labels" not in head.outputs
            continue
        vectors = torch.randn(5, 16, requires_grad=True)
        cell = torch.randperm(5 * math.prod(head.patch), generator=seeded())[:60]
        got, want = head(vectors, name, cell), dense_definition(head, vectors, name).flatten(0, 3)[cell]
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
        parameters = [vectors, head.basis.x, head.basis.z, head.coefficients.weight, head.outputs[name].weight]
        for a, b in zip(torch.autograd.grad(got.square().sum(), parameters), torch.autograd.grad(want.square().sum(), parameters)):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_cells_of_voxels(toy):
    net, batch = model(toy), toy.collate([toy.event(40, 0, 0, seed=0)])
    table = net.patches(inputs_of(batch))[0]
    x, y, z = (batch["voxel_coordinates"][0][table.voxel] % torch.tensor([6, 6, 5])).unbind(1)
    assert torch.equal(net.decoder.branches[0].voxel_head.cells(table), ((table.row * 5 + z) * 6 + x) * 6 + y)


def test_basis_starts_orthonormal(toy):
    basis = cosine_basis(12, 5)
    torch.testing.assert_close(basis.t() @ basis, torch.eye(5), atol=1e-6, rtol=0)
    assert torch.equal(model(toy).decoder.branches[0].voxel_head.basis.x, cosine_basis(6, 3))


def test_losses_by_name_and_their_sum(toy):
    net = model(toy)
    with torch.no_grad():
        net.decoder.log_sigma.copy_(torch.linspace(-1, 5, 8))
    out = net(**toy.collate_with_labels(toy.mixed_events()), generator=seeded())
    assert set(out.losses) == LOSSES | {"ghost", "kind"}
    total = 0.0
    for name, value in out.losses.items():
        s = 3 * math.tanh(net.decoder.log_sigma[net.decoder.loss_names.index(name)].item() / 3)
        total += math.exp(-2 * s) * float(value) + s
    assert out.loss.item() == pytest.approx(total, rel=1e-5)


def test_losses_of_one_event_by_hand(toy, monkeypatch):
    """The first patch of every window stays, the image token is dropped, the track token is kept."""
    net = randomise(model(toy))
    batch = toy.collate_with_labels([toy.event(150, 40, 2, seed=7)])

    def first_of_each(window, windows, ratio, generator):
        keep = torch.ones_like(window, dtype=torch.bool)
        keep[1:] = window[1:] != window[:-1]
        return keep

    draws = iter([0.0, 0.9] * 2)  # image dropped, tracks kept, in both passes
    monkeypatch.setattr(pretraining_nufm, "visible_patches", first_of_each)
    monkeypatch.setattr(pretraining_nufm, "uniform", lambda count, device, generator: torch.full((count,), next(draws)))
    got = net(**batch).losses

    table = net.patches(inputs_of(batch))
    visible = [first_of_each(t.window, 0, 0, None) for t in table]
    tracks = net.other_tokens(inputs_of(batch))["tracks"]
    latents = net.encoder(net.embed(table, visible, 1), [tracks], 1).latents
    context = net.decoder.projection(latents)

    def decode(queries):
        for layer in net.decoder.layers:  # one event: a single sequence
            rows, columns = (Sequences(torch.zeros(len(v), dtype=torch.long), 1) for v in (queries, context))
            queries, _ = layer(queries, rows, context, columns)
        return queries

    for i, name in enumerate(("cubes", "bars")):
        branch, hidden = net.decoder.branches[i], table[i].select(~visible[i])
        head = branch.voxel_head
        vectors = decode(branch(hidden))
        hit = torch.zeros(len(hidden), head.patch[2], head.patch[0], head.patch[1], dtype=torch.bool)
        hit.view(-1)[head.cells(hidden)] = True
        near = near_hits(hit, 2)
        occupancy = occupancy_loss(dense_definition(head, vectors, "occupancy")[near].squeeze(1), hit[near], 1.5, 0.02, 0.5)
        torch.testing.assert_close(got[f"occupancy_{name}"], occupancy, atol=1e-5, rtol=1e-5)
        charge = dense_definition(head, vectors, "charge").flatten(0, 3)[head.cells(hidden)]
        torch.testing.assert_close(got[f"charge_{name}"], huber_loss(charge, hidden.features), atol=1e-5, rtol=1e-5)

    image = net.decoder.image(decode(net.decoder.image.query[None]))
    torch.testing.assert_close(got["towers"], huber_loss(image, batch["image_features"]), atol=1e-5, rtol=1e-5)
    assert got["muon"] == 0

    seen, branch = table[0].select(visible[0]), net.decoder.branches[0]
    logits = dense_definition(branch.voxel_head, decode(branch(seen)), "labels").flatten(0, 3)[branch.voxel_head.cells(seen)]
    labels = batch["voxel_labels"][0][seen.voxel]

    def labelled_mean(logits, labels):
        loss, labelled = label_loss(logits, labels)
        return loss[labelled].mean()

    torch.testing.assert_close(got["ghost"], labelled_mean(logits[:, :1], labels[:, :1]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(got["kind"], labelled_mean(logits[:, 1:], labels[:, 1:]), atol=1e-5, rtol=1e-5)


def test_hidden_voxels_do_not_reach_the_latents(toy):
    net, batch = model(toy), toy.collate_with_labels([toy.event(400, 60, 2, seed=1)])
    seen = []
    net.encoder.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    clean = net(**batch, generator=seeded())
    shown = seen[0]
    patches = net.patches(inputs_of(batch))
    assert all(len(t.event) < len(p) for t, p in zip(shown, patches))
    # charge of voxels in patches that pass A did not show
    patch = patches[0]
    code = patch.window * 16 + patch.position
    position = net.embeddings.voxels[0]
    shown_values = position.patch_embedding(patch)[0] + position.position(patch.position)
    hidden = ~torch.isclose(shown_values[:, None], shown[0].values[None], atol=1e-5).all(-1).any(1)
    assert hidden.sum() == len(code) - len(shown[0].event)
    batch["voxel_features"][0, patch.voxel[hidden[patch.row]]] += 10
    changed = net(**batch, generator=seeded())
    assert torch.equal(changed.latents, clean.latents)
    assert changed.losses["charge_cubes"] > clean.losses["charge_cubes"] + 1


def test_same_generator_same_step(toy):
    net, batch = model(toy).train(), toy.collate_with_labels(toy.mixed_events())
    a, b, c = (net(**batch, generator=seeded(s)).loss for s in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_global_generator_is_left_alone(toy):
    net, batch = model(toy).train(), toy.collate_with_labels(toy.mixed_events())
    state = torch.get_rng_state()
    net(**batch, generator=seeded())
    assert torch.equal(torch.get_rng_state(), state)


def test_relational_pass_runs_as_often_as_said(toy):
    net, batch = model(toy, relational_probability=0.3).train(), toy.collate_with_labels([toy.event(60, 8, 1, seed=0)])
    generator = seeded()
    with torch.no_grad():
        share = sum("kind" in net(**batch, generator=generator).losses for _ in range(100)) / 100
    assert abs(share - 0.3) < 4 * math.sqrt(0.3 * 0.7 / 100)
    assert "kind" in net.eval()(**batch).losses


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_every_parameter_takes_part_in_every_step(toy, probability):
    net = model(toy, relational_probability=probability).train()
    net(**toy.collate_with_labels(toy.mixed_events()), generator=seeded()).loss.backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    labels_learn = bool(net.decoder.branches[0].voxel_head.outputs["labels"].weight.grad.any())
    assert labels_learn == (probability == 1.0)


@pytest.mark.parametrize("arguments", [(0, 0, 0), (1, 0, 1), (2, 2, 0)])
def test_tiny_events(toy, arguments):
    net = model(toy).train()
    loss = net(**toy.collate_with_labels([toy.event(*arguments, seed=0)]), generator=seeded()).loss
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_masked_pretraining_alone_needs_no_truth(toy):
    net = model(toy, relational=False)
    assert "labels" not in net.decoder.branches[0].voxel_head.outputs
    assert set(net(**toy.collate(toy.mixed_events()), generator=seeded()).losses) == LOSSES


def test_labels_are_asked_for(toy):
    with pytest.raises(ValueError, match=r"needs voxel_labels \(1, 59, 4\) for \{'ghost': 1, 'kind': 3\}, got None"):
        model(toy)(**toy.collate([toy.event(50, 9, 1, seed=1)]))


def test_absent_branches(toy):
    batch = toy.collate_with_labels(toy.mixed_events())
    mask = torch.tensor([[True, False, False, False]]).expand(6, -1)
    out = model(toy)(**batch, branch_mask=mask, generator=seeded())
    assert all(out.losses[name] == 0 for name in ("occupancy_bars", "charge_bars", "towers", "muon"))
    assert out.losses["occupancy_cubes"] > 0


def test_it_learns(toy):
    """Straight tracks along z whose charge grows with z: where the hidden hits are, and what they hold, follows from the visible ones."""
    net = model(toy, relational=False).train()
    events = []
    for seed, (x, y) in enumerate([(2, 2), (9, 4), (15, 8), (21, 9)]):
        event = toy.event(80, 0, 1, seed=seed)
        z = torch.arange(80) // 2
        event["voxel_coordinates"] = torch.stack([torch.full((80,), x) + torch.arange(80) % 2, torch.full((80,), y), z], dim=1)
        event["voxel_features"][:, 0] = z / 20 - 1
        events.append(event)
    batch = toy.collate(events)
    optimiser, generator, history = torch.optim.AdamW(net.parameters(), lr=3e-3), seeded(), []
    for _ in range(120):
        out = net(**batch, generator=generator)
        optimiser.zero_grad()
        out.loss.backward()
        optimiser.step()
        history.append([float(out.losses[name]) for name in ("occupancy_cubes", "charge_cubes")])
    first, last = torch.tensor(history[:10]).mean(0), torch.tensor(history[-10:]).mean(0)
    assert (last < 0.5 * first).all(), (first, last)


def test_names_of_weights_and_loading(toy, tmp_path):
    net = randomise(model(toy))
    assert {n.split(".")[0] for n in net.state_dict()} == {"embeddings", "encoder", "decoder"}
    net.save_pretrained(tmp_path / "pre")
    batch = toy.collate_with_labels(toy.mixed_events())
    again = NuFMForPreTraining.from_pretrained(tmp_path / "pre")
    assert torch.equal(again(**batch, generator=seeded()).loss, net(**batch, generator=seeded()).loss)

    head, report = NuFMForFlavourClassification.from_pretrained(tmp_path / "pre", output_loading_info=True)
    assert all(n.startswith("head.") for n in report["missing_keys"])
    assert all(n.startswith("decoder.") for n in report["unexpected_keys"])
    for name, value in head.state_dict().items():
        if not name.startswith("head."):
            assert torch.equal(value, net.state_dict()[name]), name

    NuFMModel.from_pretrained(tmp_path / "pre").save_pretrained(tmp_path / "base")
    fresh = NuFMForPreTraining.from_pretrained(tmp_path / "base")
    reference = model(toy)
    for (name, a), (_, b) in zip(fresh.named_parameters(), reference.named_parameters()):
        assert a.isfinite().all(), name
        if name.startswith("decoder."):
            assert a.abs().max() <= 2.5 * b.abs().max() + 1e-6, name
    assert torch.equal(fresh.decoder.branches[0].voxel_head.basis.y, cosine_basis(6, 3))
    assert fresh(**batch, generator=seeded()).loss.isfinite()
