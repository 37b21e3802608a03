"""Configuration: presets, what it refuses, and its round trip."""

import json

import pytest

from nufm_hub.detectors import load_detector
from nufm_hub.models import NuFMConfig


@pytest.mark.parametrize(
    ("name", "hidden", "heads", "depths", "fusion", "decoder"),
    [("nano", 96, 6, [2, 1], 2, (72, 6, 1)), ("micro", 192, 6, [2, 2], 4, (128, 4, 2)),
     ("tiny", 384, 12, [2, 2], 6, (256, 8, 2)), ("base", 384, 12, [4, 4], 4, (256, 8, 2))],
)  # fmt: skip
def test_presets(name, hidden, heads, depths, fusion, decoder):
    config = NuFMConfig.preset(name, "fasercal", drop_path_rate=0.2)
    assert (config.hidden_size, config.num_attention_heads, config.window_depths, config.fusion_depth) == (hidden, heads, depths, fusion)
    assert (config.decoder_hidden_size, config.decoder_num_attention_heads, config.decoder_depth) == decoder
    assert config.drop_path_rate == 0.2
    assert config.relational
    assert config.spec == load_detector("fasercal")


def test_presets_refuse_what_is_no_field():
    with pytest.raises(ValueError, match=r"unknown configuration fields \['hiden_size'\]: known are .*'hidden_size'"):
        NuFMConfig.preset("nano", hiden_size=48)
    assert NuFMConfig.preset("nano", num_labels=4).num_labels == 4


def test_replaced_values_are_checked(toy, tmp_path):
    toy.config().save_pretrained(tmp_path)
    assert NuFMConfig.from_pretrained(tmp_path, drop_path_rate=0.5).drop_path_rate == 0.5
    with pytest.raises(ValueError, match=r"drop_path_rate=1\.5"):
        NuFMConfig.from_pretrained(tmp_path, drop_path_rate=1.5)


def test_round_trip_through_a_file(toy, tmp_path):
    config = toy.config(window_depths=[3, 0], mask_ratio=0.5, relational=False)
    config.save_pretrained(tmp_path)
    again = NuFMConfig.from_pretrained(tmp_path)
    assert again.to_dict() | {"_name_or_path": ""} == config.to_dict() | {"_name_or_path": ""}
    assert again.spec == toy.spec
    assert json.loads((tmp_path / "config.json").read_text())["detector"]["name"] == "toy"


def test_no_argument_makes_a_configuration():
    assert NuFMConfig().spec.name == "fasercal"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"hidden_size": 50, "num_attention_heads": 4}, "hidden_size=50"),
        ({"hidden_size": 26, "num_attention_heads": 2}, "divisible by 4"),
        ({"decoder_hidden_size": 17}, "decoder_hidden_size=17"),
        ({"window_depths": [2]}, r"window_depths=\[2\] needs one number"),
        ({"voxel_head_modes": [8, -1]}, "voxel_head_modes"),
        ({"fusion_depth": 0}, "fusion_depth=0 must be at least 1"),
        ({"num_window_cls": 0}, "num_window_cls=0"),
        ({"mask_ratio": 1.0}, "mask_ratio=1.0"),
        ({"drop_path_rate": -0.1}, "drop_path_rate=-0.1"),
        ({"window_position": "rotary"}, "'rotary' is neither"),
        ({"detector": "nowhere"}, "unknown detector 'nowhere'"),
        ({"mlp_ratio": 0}, "must be positive"),
    ],
)
def test_refuses(toy, wrong, message):
    with pytest.raises(ValueError, match=message):
        toy.config(**wrong)


def test_relational_needs_labels(toy):
    detector = toy.spec.to_dict()
    detector["branches"][0]["labels"] = []
    assert not NuFMConfig.preset("nano", detector).relational
    with pytest.raises(ValueError, match="'cubes' of detector 'toy' declares none"):
        NuFMConfig.preset("nano", detector, relational=True)


def test_unknown_preset():
    with pytest.raises(ValueError, match="give one of"):
        NuFMConfig.preset("giant")
