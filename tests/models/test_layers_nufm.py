"""Dropped paths."""

import pytest
import torch

from nufm_hub.models import NuFMConfig
from nufm_hub.models.nufm.layers_nufm import NuFMLayer, Sequences


@pytest.fixture
def sequences():
    return Sequences(torch.arange(4000) % 2000, 2000)


def layer(rate: float) -> NuFMLayer:
    torch.manual_seed(0)
    return NuFMLayer(NuFMConfig.preset("nano"), 12, 2, drop_path=rate)


def test_a_path_is_dropped_for_whole_sequences_and_scaled_up_for_the_others(sequences):
    rows = torch.ones(4000, 3)
    kept = layer(0.4).train()._drop_path(rows, sequences)
    assert kept.unique().tolist() == [0.0, pytest.approx(1 / 0.6)]
    assert (kept[:2000] == kept[2000:]).all()  # the two rows of a sequence share its fate
    assert kept.mean().item() == pytest.approx(1, abs=4 * (0.4 / 0.6 / 2000) ** 0.5)  # four standard deviations


def test_attention_and_mlp_are_dropped_independently_and_never_in_evaluation(sequences):
    net, rows = layer(0.5), torch.randn(4000, 12)
    with torch.no_grad():
        out = net.train()(rows, sequences)[0]
        untouched = (out == rows).all(dim=1)[:2000]
        assert untouched.float().mean().item() == pytest.approx(0.25, abs=0.04)  # both dropped
        assert torch.equal(net.eval()(rows, sequences)[0], layer(0.0).eval()(rows, sequences)[0])
