"""What new NuFM models keep of an event that the published layout loses: energies, moments, positions in mm; queries and pointing."""

import copy

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from nufm_hub import transfer_encoder
from nufm_hub.detectors import DetectorSpec, VoxelBranch
from nufm_hub.models import (
    NuFMForEventReconstruction,
    NuFMForFlavourClassification,
    NuFMForPreTraining,
    NuFMForVertexRegression,
    NuFMModel,
)
from nufm_hub.models.common.kinematics import fit_momentum_scales
from nufm_hub.models.nufm.modeling_nufm import NuFMInputs
from nufm_hub.models.nufm.moments_nufm import MOMENTS, cell_moments, cell_positions, inside

ENCODER = {"presence_channel": True, "patch_moments": True, "continuous_position": True, "stem_depth": 2}
ALL = {**ENCODER, "readout_depth": 2, "vertex_pointing": True}
SCALE = {"mean": [5.0, 12.0, 60.0], "std": [10.0, 10.0, 10.0]}
SCALES = fit_momentum_scales({name: np.random.default_rng(0).normal(3, 4, (50, 3)) for name in ("visible", "jet", "lepton")})


def config(toy, bars_first=True, **options):
    """Patches of the first branch are put together from pieces with `bars_first`."""
    branches = toy.spec.to_dict()["branches"]
    detector = toy.spec.to_dict() | {"branches": [branches[1], branches[0], *branches[2:]] if bars_first else branches}
    return toy.config(**({"detector": detector, "vertex_scale": SCALE, "momentum_scales": SCALES} | ALL | options))


def batch_of(toy, events, bars_first=True):
    batch = toy.collate(events)
    if bars_first:
        branch = batch["voxel_branch"]
        batch["voxel_branch"] = torch.where(branch >= 0, 1 - branch, branch)
    return batch | {"voxel_energy": batch["voxel_features"][..., 0].exp()}


def speaking(net):
    """The model with weights that all say something."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return net.eval()


def values(output):
    return {name: value for name, value in output.items() if isinstance(value, torch.Tensor) and name != "loss"}


@pytest.mark.parametrize("bars_first", [True, False], ids=["pieces", "whole patches"])
def test_an_event_is_the_same_alone_in_a_batch_and_in_any_order(toy, bars_first):
    net = speaking(NuFMForEventReconstruction(config(toy, bars_first)))
    events = toy.mixed_events()
    with torch.no_grad():
        together = values(net(**batch_of(toy, events, bars_first)))
        alone = [values(net(**batch_of(toy, [event], bars_first))) for event in events]
        mixed = copy.deepcopy(events)
        for event in mixed:
            order = torch.randperm(len(event["voxel_branch"]), generator=torch.Generator().manual_seed(1))
            for name in ("voxel_coordinates", "voxel_features", "voxel_branch"):
                event[name] = event[name][order]
        shuffled = values(net(**batch_of(toy, mixed, bars_first)))
    for name, value in together.items():
        assert value.isfinite().all()
        torch.testing.assert_close(value, torch.cat([each[name] for each in alone]), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(value, shuffled[name], atol=1e-4, rtol=1e-4)
    assert (together["vertex"][0] - together["vertex"][3]).abs().max() > 1e-3


def test_all_weights_get_a_gradient(toy):
    net = speaking(NuFMForEventReconstruction(config(toy))).train()
    events = toy.mixed_events()
    labels = {
        "flavour": torch.arange(6) % 3, "visible_momentum": torch.randn(6, 3), "jet_momentum": torch.randn(6, 3),
        "is_cc": torch.ones(6, dtype=torch.bool), "vertex": torch.randn(6, 3),
    }  # fmt: skip
    net(**batch_of(toy, events), labels=labels).loss.backward()
    still = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.isfinite().all() or not p.grad.any()]
    # keys of an attention share a bias without effect
    assert not [name for name in still if "key_value.bias" not in name]


def test_a_faint_and_a_bright_voxel_differ(toy):
    """Published: a lone voxel is the same token whatever its energy, but for the sign. The mean of z, where most hits are, even looks empty."""

    def tokens(**options):
        torch.manual_seed(0)
        net = NuFMModel(config(toy, **({name: False for name in ENCODER} | {"stem_depth": 0, "vertex_pointing": False} | options))).eval()
        event = toy.event(0, 1, 0, 0)
        seen = []
        for z in (0.5, 3.0):
            event["voxel_features"] = torch.tensor([[z, 0.0]])
            patches = net.patches(NuFMInputs(**batch_of(toy, [event])))
            seen.append(net.embeddings.voxels[0].patch_embedding(patches[0])[0][0])
        return torch.nn.functional.cosine_similarity(*seen, dim=0).item()

    assert tokens() > 0.9999
    assert tokens(presence_channel=True) < 0.99
    assert tokens(patch_moments=True) < 0.99


def test_moments_against_numpy():
    rng = np.random.default_rng(0)
    sizes, count = (4, 3, 5), 17
    offset = rng.permutation(60)[:count]
    row = np.sort(rng.integers(0, 3, count))
    assert set(row) == {0, 1, 2}
    energy = rng.exponential(2.0, count)
    place = np.stack(np.unravel_index(offset, sizes), axis=1) / (np.array(sizes) - 1) * 2 - 1
    torch.testing.assert_close(inside(torch.tensor(offset), sizes), torch.tensor(place, dtype=torch.float32))
    got = cell_moments(torch.tensor(row), 3, torch.tensor(place, dtype=torch.float32), torch.tensor(energy))
    assert got.shape == (3, MOMENTS)
    for cell in range(3):
        p, e = place[row == cell], energy[row == cell]
        middle = np.average(p, axis=0, weights=e)
        covariance = np.cov(p.T, aweights=e, ddof=0)
        spread = np.sqrt(np.diag(covariance))
        correlation = [covariance[i, j] / max(spread[i] * spread[j], 1e-2) for i, j in ((0, 1), (0, 2), (1, 2))]
        logs = np.array([np.log1p(e.sum()), np.log(len(e)), np.log1p(e.max())]) / 3 - 1
        wanted = np.concatenate([logs, middle, spread, correlation, p.mean(axis=0), p.min(axis=0), p.max(axis=0)])
        np.testing.assert_allclose(got[cell].numpy(), wanted, atol=2e-5)


def test_moments_of_nothing_noise_and_one_voxel():
    assert cell_moments(torch.zeros(0, dtype=torch.long), 0, torch.zeros(0, 3), torch.zeros(0)).shape == (0, MOMENTS)
    lone = cell_moments(torch.zeros(1, dtype=torch.long), 1, torch.full((1, 3), 0.5), torch.tensor([-3.0]))  # pedestal-subtracted noise
    assert lone.isfinite().all()
    assert lone[0, 3:6].tolist() == pytest.approx([0.5] * 3)


def test_positions_know_the_gaps_of_a_detector():
    branch = VoxelBranch("b", (4, 4, 6), (10, 10, 10), (0, 0, 0), (4, 4, 6), (1, 1, 1), blocks={"axis": 2, "length": 3, "starts": [0, 1000]})
    coordinates = torch.tensor([[0, 0, 2], [0, 0, 3], [3, 1, 5]])
    got = cell_positions(torch.tensor([0, 0, 1]), 2, coordinates, torch.tensor([3.0, 1.0, 2.0]), branch)
    places = branch.to_mm(coordinates.numpy())
    np.testing.assert_allclose(got[0], (3 * places[0] + places[1]) / 4, rtol=1e-6)
    np.testing.assert_allclose(got[1], places[2], rtol=1e-6)


def test_pointing_gives_the_place_it_points_to(toy):
    net = NuFMForVertexRegression(config(toy, head_init_std=1e-8)).eval()
    event = toy.event(0, 1, 0, 0)
    with torch.no_grad():
        net.head.nowhere.bias.fill_(-50.0)  # nothing but the voxel is left
        place = net(**batch_of(toy, [event])).logits[0].numpy() * SCALE["std"] + SCALE["mean"]
        branch = net.config.spec.voxel_branches[0]
        np.testing.assert_allclose(place, branch.to_mm(event["voxel_coordinates"].numpy())[0], atol=1e-3)
        net.head.nowhere.bias.fill_(50.0)  # and nothing but the mean vertex of the training
        assert net(**batch_of(toy, [event])).logits[0].abs().max() < 1e-3
        assert net(**batch_of(toy, [toy.event(0, 0, 0, 0)])).logits[0].abs().max() < 1e-3  # no voxel at all


def test_vertices_of_half_precision_are_not_rounded_to_centimetres(toy, tmp_path):
    net = speaking(NuFMForVertexRegression(config(toy)))
    net.save_pretrained(tmp_path)
    half = NuFMForVertexRegression.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    batch = batch_of(toy, toy.mixed_events())
    with torch.no_grad():
        wanted, got = net(**batch).logits, half(**batch).logits
        again = NuFMForVertexRegression.from_pretrained(tmp_path).eval()(**batch).logits
    assert torch.equal(wanted, again)
    assert got.dtype == torch.float32
    assert (got - wanted).abs().max() < 0.2  # weights have 8 bits
    assert len(got[:, 2].unique()) == len(got)


def test_hidden_patches_do_not_reach_moments_and_stem(toy):
    """In masked pre-training the pieces of visible patches see visible neighbours only."""
    net = speaking(NuFMForPreTraining(config(toy, relational=False)))
    event = toy.event(60, 900, 1, 0)
    given = NuFMInputs(**batch_of(toy, [event]))
    patches = net.patches(given)
    visible = [torch.arange(len(table)) % 2 == 0 for table in patches]
    with torch.no_grad():
        masked = net.embed(patches, visible, 1)
        hidden_voxels = torch.cat([table.voxel[~seen[table.row]] for table, seen in zip(patches, visible)])
        changed = batch_of(toy, [event])
        for name in ("voxel_features", "voxel_energy"):
            changed[name].flatten(0, 1)[hidden_voxels] += 7
        again = net.embed(net.patches(NuFMInputs(**changed)), visible, 1)
    for one, other in zip(masked, again):
        assert torch.equal(one.values, other.values)
        assert torch.equal(one.moments, other.moments)


def test_pretrained_layout_goes_on_into_heads(toy, tmp_path):
    torch.manual_seed(0)
    source = NuFMForPreTraining(config(toy, relational=False))
    source.save_pretrained(tmp_path)
    net, info = NuFMForFlavourClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert all(name.startswith("head.") for name in info["missing_keys"])
    assert any(name.startswith("head.readout.") for name in info["missing_keys"])
    assert isinstance(net, PreTrainedModel)
    for name, value in net.state_dict().items():
        if not name.startswith("head."):
            assert torch.equal(value, source.state_dict()[name]), name


def test_moments_move_to_another_detector_and_the_stem_does_not(toy):
    source = NuFMForPreTraining(config(toy, bars_first=False, relational=False))
    other = DetectorSpec.from_dict(toy.spec.to_dict() | {"name": "other", "branches": toy.spec.to_dict()["branches"][:1]})
    model, report = transfer_encoder(source, NuFMForFlavourClassification, other)
    status = {row.name: row.status for row in report.rows if row.status != "skipped"}
    assert status["encoder.branches.0.moments.0.weight"] == "loaded"
    assert status["embeddings.voxels.0.place.projection.weight"] == "re-initialised"
    torch.testing.assert_close(model.state_dict()["encoder.branches.0.moments.0.weight"], source.state_dict()["encoder.branches.0.moments.0.weight"])


def test_layer_decay_knows_all_weights_of_the_encoder(toy):
    names = [name for name, _ in NuFMModel(config(toy)).named_parameters()]
    depths = NuFMModel.encoder_depths(names)
    assert set(depths) == set(names)
    assert depths["encoder.branches.0.moments.0.weight"] == 1
    assert depths["embeddings.voxels.0.patch_embedding.stem.0.wide.weight"] == 0


@pytest.mark.parametrize(
    ("options", "batch", "message"),
    [
        ({}, {"voxel_energy": None}, "reads voxel_energy beside voxel_features"),
        ({}, {"voxel_energy": torch.zeros(6, 3)}, "voxel_energy must be"),
        ({"vertex_scale": None}, {}, "pointing to the vertex needs vertex_scale=processor.vertex_scale"),
        ({"vertex_scale": {"mean": [0, 0, 0], "std": [1, 0, 1]}}, {}, "vertex_scale"),
        ({"vertex_scale": {"mean": [0, 0]}}, {}, "vertex_scale"),
        ({"stem_depth": -1}, {}, "stem_depth=-1 must be at least 0"),
        ({"readout_depth": -1}, {}, "readout_depth=-1 must be at least 0"),
    ],
)
def test_refusals(toy, options, batch, message):
    with pytest.raises(ValueError, match=message):
        NuFMForVertexRegression(config(toy, **options))(**batch_of(toy, toy.mixed_events()) | batch)
