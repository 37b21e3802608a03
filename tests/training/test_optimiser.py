"""Which weights decay, and how fast each depth learns."""

import pytest

from nufm_hub.models import NuFMConfig, NuFMForEventReconstruction, NuFMForFlavourClassification, NuFMForPreTraining
from nufm_hub.training.optimiser import encoder_depths, parameter_groups


@pytest.fixture(scope="module")
def model():
    return NuFMForFlavourClassification(NuFMConfig.preset("nano", window_depths=[3, 1], fusion_depth=2))


def settings_by_name(model, groups):
    by_id = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    return {name: by_id[id(p)] for name, p in model.named_parameters()}


def test_every_parameter_is_in_one_group(model):
    groups = parameter_groups(model, 1e-3, 0.05, 0.7)
    members = [id(p) for g in groups for p in g["params"]]
    assert sorted(members) == sorted(id(p) for p in model.parameters())


def test_only_matrices_of_linear_maps_decay(model):
    settings = settings_by_name(model, parameter_groups(model, 1e-3, 0.05))
    undecayed = {name for name, (_, decay) in settings.items() if decay == 0}
    assert {name for name in settings if name.endswith("bias") or "norm." in name} <= undecayed
    named = {
        "encoder.branches.0.cls_token",
        "embeddings.voxels.0.window.weight",
        "embeddings.voxels.1.source",
        "embeddings.image.source",
        "embeddings.tracks.source",
        "embeddings.tracks.state.weight",
    }
    assert {n for n in undecayed if not n.endswith("bias") and "norm." not in n} - {"encoder.branches.1.cls_token"} == named


def test_bases_and_embeddings_of_the_decoder_do_not_decay():
    net = NuFMForPreTraining(NuFMConfig.preset("nano"))
    decay = {name: decay for name, (_, decay) in settings_by_name(net, parameter_groups(net, 1e-3, 0.05)).items()}
    vectors = {f"decoder.branches.{i}.voxel_head.basis.{axis}" for i in (0, 1) for axis in "xyz"} | {"decoder.branches.0.window.weight"}
    matrices = {n for n, p in net.named_parameters() if n.startswith("decoder.") and p.ndim > 1}
    assert {n for n in matrices if decay[n] == 0} == vectors
    assert "decoder.layers.0.attention.query.weight" in matrices


def test_rates_fall_with_depth_and_shallow_branches_end_with_the_deepest(model):
    depths = encoder_depths(model)
    at = {d: {n for n, x in depths.items() if x == d} for d in set(depths.values())}
    assert sorted(at) == [0, 1, 2, 3, 4, 5]  # embeddings, three window layers, two fusion rounds
    assert all(n.startswith("embeddings.") for n in at[0])
    assert "encoder.branches.0.layers.0.mlp.0.weight" in at[1]
    assert {"encoder.branches.0.layers.2.mlp.0.weight", "encoder.branches.1.layers.0.mlp.0.weight", "encoder.tokens_norm.weight"} <= at[3]
    assert "encoder.self_layers.1.mlp.0.weight" in at[5]
    settings = settings_by_name(model, parameter_groups(model, 1e-3, 0.05, 0.5))
    assert settings["head.output.weight"][0] == pytest.approx(1e-3)
    assert settings["encoder.cross_layers.1.mlp.0.weight"][0] == pytest.approx(1e-3 * 0.5)
    assert settings["embeddings.image.projection.weight"][0] == pytest.approx(1e-3 * 0.5**6)
    flat = settings_by_name(model, parameter_groups(model, 1e-3, 0.05))
    assert {rate for rate, _ in flat.values()} == {1e-3}


def test_weights_of_losses_learn_slowly_and_do_not_decay():
    unit = {"transverse": 1.0, "longitudinal": 1.0, "k": 1.0, "mean": 0.0, "std": 1.0}
    scales = {"visible": unit, "jet": unit, "lepton": unit}
    for net, name in (
        (NuFMForEventReconstruction(NuFMConfig.preset("nano", momentum_scales=scales)), "head.task_weight.vertex"),
        (NuFMForPreTraining(NuFMConfig.preset("nano")), "decoder.log_sigma"),
    ):
        settings = settings_by_name(net, parameter_groups(net, 1e-3, 0.05, 0.7))
        assert settings[name] == (pytest.approx(1e-4), 0)
        assert {n for n, (rate, _) in settings.items() if rate == pytest.approx(1e-4)} <= {n for n in settings if name.rsplit(".", 1)[0] in n}


def test_carried_weights_learn_at_their_own_rate(model):
    carried = {name for name, _ in model.named_parameters() if name.startswith("encoder.")}
    plain = settings_by_name(model, parameter_groups(model, 1e-3, 0.05, 0.7))
    slow = settings_by_name(model, parameter_groups(model, 1e-3, 0.05, 0.7, carried, 0.2))
    for name, (rate, decay) in slow.items():
        assert (rate, decay) == (pytest.approx(plain[name][0] * (0.2 if name in carried else 1)), plain[name][1]), name


def test_frozen_parameters_are_left_out(model):
    model.requires_grad_(False)
    model.head.requires_grad_(True)
    try:
        assert sum(len(g["params"]) for g in parameter_groups(model, 1e-3, 0.05)) == len(list(model.head.parameters()))
    finally:
        model.requires_grad_(True)
