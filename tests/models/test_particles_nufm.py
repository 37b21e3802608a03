"""The particles of whole events."""

import pytest
import torch

from nufm_hub.detectors import load_detector
from nufm_hub.events.crops import crop_detector, particle_crops
from nufm_hub.events.parquet import read_events
from nufm_hub.events.samples import sample_path
from nufm_hub.models import NuFMConfig, NuFMForEventParticleID, NuFMForParticleID, NuFMForPreTraining, NuFMProcessor
from nufm_hub.training.particles import ParticleCollator
from nufm_hub.transfer import transfer_encoder

SPEC = load_detector("pilarnet")
CROPS = crop_detector(SPEC, (168, 168, 180), (12, 12, 10), (2, 2, 3), "scale")
SMALL = {"hidden_size": 24, "num_attention_heads": 2, "window_depths": [1], "fusion_depth": 1}


@pytest.fixture(scope="module")
def images():
    crops = (list(particle_crops(event, SPEC, CROPS)) for event in read_events(sample_path("pilarnet")))
    return [next(c for c in crops if len(c) > 1) for _ in range(3)]


@pytest.fixture(scope="module")
def collate(images):
    return ParticleCollator(NuFMProcessor.fit([c for crops in images for c in crops], CROPS))


def model(**overrides):
    torch.manual_seed(0)
    return NuFMForEventParticleID(NuFMConfig(detector=CROPS, head_init_std=1.0, **(SMALL | overrides))).eval()


@torch.no_grad()
def test_particles_see_their_event_and_no_other(images, collate):
    net = model()
    batch = collate(images)
    assert torch.equal(batch["particle_event"].bincount(), torch.tensor([len(c) for c in images]))
    together = net(**batch).logits
    alone = torch.cat([net(**collate([crops])).logits for crops in images])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    first = collate([images[0][:1]])
    assert not torch.allclose(net(**first).logits, together[:1], atol=1e-4)  # the others of its event are gone
    single = model(context_depth=0)
    torch.testing.assert_close(single(**first).logits, single(**batch).logits[:1], atol=1e-5, rtol=1e-5)


def test_order_of_particles_does_not_matter(images, collate):
    net, batch = model(), collate(images)
    shuffled = torch.randperm(len(batch["labels"]), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(net(**{k: v[shuffled] for k, v in batch.items()}).logits, net(**batch).logits[shuffled], atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("normed", [True, False])
def test_features_count_however_large_the_vectors_of_particles_are(images, collate, normed):
    """A pre-trained encoder may give vectors whose common part is many times larger than what tells particles apart."""
    net, batch = model(context_pooled_norm=normed), collate(images)
    other = batch | {"track_features": batch["track_features"].flip(0)}

    def change() -> float:
        return (net(**batch).logits - net(**other).logits).abs().mean().item()

    small = change()
    for name, parameter in net.named_parameters():
        if name.endswith("self_layers.0.mlp.2.bias"):
            parameter.fill_(100.0)
            parameter[::2] = -100.0
    assert (change() > 0.3 * small) == normed


def test_every_weight_learns_and_survives_saving(images, collate, tmp_path):
    net, batch = model().train(), collate(images)
    net(**batch).loss.backward()
    assert not [n for n, p in net.named_parameters() if p.grad is None]
    net.eval().save_pretrained(tmp_path)
    again = NuFMForEventParticleID.from_pretrained(tmp_path)
    assert again.config.num_labels == 5
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, net(**batch).logits)


def test_transfer(images, collate):
    torch.manual_seed(0)
    sizes = SMALL | {"window_depths": [1, 1], "decoder_hidden_size": 12, "decoder_num_attention_heads": 2}
    source = NuFMForPreTraining(NuFMConfig(detector="fasercal", **sizes))
    net, report = transfer_encoder(source, NuFMForEventParticleID, CROPS)
    assert report.fraction == 1
    assert torch.isfinite(net(**collate(images)).loss)
    assert not any(n.startswith("embeddings.tracks") for n, _ in net.named_parameters())


def test_bad_input(images, collate):
    net, batch = model(), collate(images)
    with pytest.raises(ValueError, match="give particle_event"):
        net(**{k: v for k, v in batch.items() if k != "particle_event"})
    with pytest.raises(ValueError, match="give track_features"):
        net(**{k: v for k, v in batch.items() if k != "track_features"})
    with pytest.raises(ValueError, match="no features of single particles"):
        NuFMForEventParticleID(NuFMConfig(detector="pilarnet", **SMALL))
    with pytest.raises(ValueError, match="none of the events of the batch"):
        collate([[], []])
    assert NuFMForParticleID(NuFMConfig(detector=CROPS, **SMALL)).embeddings.tracks is not None
