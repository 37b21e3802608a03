"""Voxel classification: rows belong to their voxels, losses by hand, the decoder of pre-training, and it learns."""

import pytest
import torch
import torch.nn.functional as F

from nufm_hub.models import AutoModelForVoxelClassification, NuFMForPreTraining, NuFMForVoxelClassification, NuFMModel


def model(toy, **overrides):
    torch.manual_seed(0)
    net = NuFMForVoxelClassification(toy.config(**overrides)).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return net


def test_logits_stand_at_their_voxels_and_nowhere_else(toy):
    net, events = model(toy), toy.mixed_events()
    batch = toy.collate(events, extra=3)
    logits = net(**batch).logits
    assert logits.shape == (*batch["voxel_branch"].shape, 4)
    assert torch.equal(logits.isfinite().all(-1), batch["voxel_branch"] == 0)
    assert torch.equal(logits.isnan().all(-1), batch["voxel_branch"] != 0)
    for row, event in zip(logits, events):
        alone = net(**toy.collate([event])).logits[0]
        torch.testing.assert_close(row[: len(alone)], alone, atol=1e-5, rtol=1e-5, equal_nan=True)


def test_rows_follow_the_voxels(toy):
    net, event = model(toy), toy.event(150, 40, 2, seed=3)
    order = torch.randperm(190, generator=torch.Generator().manual_seed(1))
    shuffled = {k: v[order] if k.startswith("voxel") else v for k, v in event.items()}
    want, got = net(**toy.collate([event])).logits[0][order], net(**toy.collate([shuffled])).logits[0]
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5, equal_nan=True)


def test_losses_by_hand(toy):
    net, batch = model(toy), toy.collate_with_labels(toy.mixed_events())
    out = net(**batch)
    labels, rows = batch["voxel_labels"], batch["voxel_branch"] == 0
    kind_rows = rows & (labels[..., 1] >= 0)
    assert kind_rows.sum() < rows.sum()
    ghost = kind = 0
    for event in range(len(rows)):  # mean over the voxels of an event, then over events
        logits, truth = out.logits[event], labels[event]
        if (some := rows[event]).any():
            ghost += F.binary_cross_entropy_with_logits(logits[some, 0], truth[some, 0]) / len(rows)
        if (some := kind_rows[event]).any():
            kind -= (truth[some, 1:] * logits[some, 1:].log_softmax(-1)).sum(-1).mean() / len(rows)
    torch.testing.assert_close(out.losses["ghost"], ghost)
    torch.testing.assert_close(out.losses["kind"], kind)
    torch.testing.assert_close(out.loss, ghost + kind)
    assert net(**toy.collate(toy.mixed_events())).loss is None


def test_parts_of_a_batch_average_to_the_whole(toy):
    """The parts have different numbers of voxels, of voxels without a kind, and one event without any voxel of the branch."""
    events = toy.mixed_events()
    whole, *parts = (toy.collate_with_labels(events[rows]) for rows in (slice(0, 6), slice(0, 2), slice(2, 4), slice(4, 6)))
    toy.check_parts_average_to_whole(model(toy).train(), whole, parts)


def test_same_predictions_as_the_relational_pass(toy, tmp_path):
    """With nothing hidden, pre-training with relations and this model are the same function of the same weights."""
    torch.manual_seed(1)
    pretraining = NuFMForPreTraining(toy.config(relational_mask_ratio=0.0)).eval()
    pretraining.save_pretrained(tmp_path)
    net, report = NuFMForVoxelClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    batch = toy.collate_with_labels([toy.event(120, 30, 1, seed=2)])
    want, got = pretraining(**batch).losses, net(**batch).losses
    for name in ("ghost", "kind"):
        torch.testing.assert_close(got[name], want[name])


def test_starts_from_an_encoder_that_never_saw_truth(toy, tmp_path):
    torch.manual_seed(0)
    NuFMForPreTraining(toy.config(relational=False)).save_pretrained(tmp_path)
    net, report = NuFMForVoxelClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert {name.split("outputs.")[-1] for name in report["missing_keys"]} == {"labels.weight", "labels.bias"}
    assert net.config.relational
    base = NuFMModel.from_pretrained(tmp_path)
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in base.state_dict().items())


def test_absent_and_empty_branch(toy):
    net, batch = model(toy), toy.collate_with_labels(toy.mixed_events())
    batch["branch_mask"] = torch.ones(6, 4, dtype=torch.bool)
    batch["branch_mask"][0, 0] = False
    out = net(**batch)
    assert out.logits[0].isnan().all()
    assert out.logits[3][batch["voxel_branch"][3] == 0].isfinite().all()
    none = net(**toy.collate_with_labels([toy.event(0, 5, 1, seed=0)]))
    assert none.loss == 0
    assert none.logits.isnan().all()
    none.loss.backward()  # with gradients of zero, so that processes that see no voxel take part
    assert all(p.grad is None or not p.grad.any() for p in net.parameters())


def test_every_weight_takes_part(toy):
    net = model(toy).train()
    net(**toy.collate_with_labels(toy.mixed_events())).loss.backward()
    assert [name for name, p in net.named_parameters() if p.grad is None] == []


def test_save_load_and_auto(toy, tmp_path):
    net, batch = model(toy), toy.collate(toy.mixed_events())
    net.save_pretrained(tmp_path)
    for loader in (NuFMForVoxelClassification, AutoModelForVoxelClassification):
        again = loader.from_pretrained(tmp_path)
        assert type(again) is NuFMForVoxelClassification
        torch.testing.assert_close(again(**batch).logits, net(**batch).logits, atol=0, rtol=0, equal_nan=True)
    logits = net(**batch, return_dict=False)[0]
    torch.testing.assert_close(logits, net(**batch).logits, atol=0, rtol=0, equal_nan=True)


def test_wrong_input_is_named(toy):
    batch = toy.collate_with_labels(toy.mixed_events())
    with pytest.raises(ValueError, match=r"must have the shape .* got \(6, 3500, 3\)"):
        model(toy)(**batch | {"voxel_labels": batch["voxel_labels"][..., :3]})
    bare = toy.spec.to_dict()
    bare["branches"][0]["labels"] = []
    with pytest.raises(ValueError, match="declares no labels"):
        NuFMForVoxelClassification(toy.config(detector=bare))


def test_learns_a_rule_of_the_place(toy):
    """A voxel is a ghost in the lower layers of its patch, which the basis of the voxel head must tell apart; its kind says where in z it is."""
    torch.manual_seed(0)
    net = NuFMForVoxelClassification(toy.config())
    batch = toy.collate_with_labels([toy.event(200, 0, 0, seed=s) for s in range(4)])
    ghost = (batch["voxel_coordinates"][..., 2] % 5 < 2).float()
    batch["voxel_labels"] = torch.cat([ghost[..., None], F.one_hot(batch["voxel_coordinates"][..., 2] // 14, 3).float()], dim=-1)
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-2)
    for _ in range(60):
        optimiser.zero_grad()
        net(**batch).loss.backward()
        optimiser.step()
    logits = net.eval()(**batch).logits
    assert ((logits[..., 0] > 0) == (ghost > 0.5)).float().mean() > 0.95
    assert (logits[..., 1:].argmax(-1) == batch["voxel_coordinates"][..., 2] // 14).float().mean() > 0.9
