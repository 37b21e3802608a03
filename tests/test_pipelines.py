"""Pipelines of particles: whole events in, each particle's class out, by either model."""

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch

from nufm_hub import AutoModelForParticleID, EventParticlePipeline, FlavourPipeline, ParticlePipeline, VertexPipeline
from nufm_hub.detectors import load_detector
from nufm_hub.events.crop_files import CropSettings
from nufm_hub.events.parquet import read_events
from nufm_hub.events.samples import sample_path
from nufm_hub.models import NuFMConfig, NuFMForEventParticleID, NuFMForFlavourClassification, NuFMForParticleID, NuFMProcessor
from nufm_hub.training.particles import ParticleCollator

SMALL = {"hidden_size": 24, "num_attention_heads": 2, "window_depths": [1], "fusion_depth": 1, "head_init_std": 1.0}


class Crops:
    """Some events of a packaged detector, their crops, and small random models of the crops, saved."""

    def __init__(self, name, models, place, **settings):
        self.spec, self.settings = load_detector(name), CropSettings.load(name, **settings)
        self.crop_spec = self.settings.detector(self.spec)
        self.events = list(islice(read_events(sample_path(name)), 5))
        self.crops = [list(self.settings.crops(event, self.spec, self.crop_spec)) for event in self.events]
        self.processor = NuFMProcessor.fit([crop for crops in self.crops for crop in crops], self.crop_spec)
        self.folders = {cls: str(place / f"{name}-{cls.__name__}") for cls in models}
        for cls, folder in self.folders.items():
            torch.manual_seed(0)
            cls(NuFMConfig(detector=self.crop_spec, **SMALL)).save_pretrained(folder)
            self.processor.save_pretrained(folder)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return Crops("pilarnet", (NuFMForParticleID, NuFMForEventParticleID), tmp_path_factory.mktemp("pilarnet"))


@pytest.fixture(scope="module")
def cubes(tmp_path_factory):
    return Crops("superfgd", (NuFMForParticleID,), tmp_path_factory.mktemp("superfgd"), shape=(60, 60, 60))


@pytest.mark.parametrize("cls", [NuFMForParticleID, NuFMForEventParticleID])
def test_particles_of_images(images, cls):
    """As the model says of crops made by hand, whatever the batches; the auto class knows which model it was."""
    model = AutoModelForParticleID.from_pretrained(images.folders[cls]).eval()
    assert type(model) is cls
    predict = EventParticlePipeline.from_pretrained(images.folders[cls], batch_size=2)
    nothing = replace(images.events[0], voxels={"lar": images.events[0].voxels["lar"].select([])})
    predicted = predict([*images.events, nothing])
    assert predicted.pop() == []
    assert max(len(particles) for particles in predicted) > 1
    classes = images.spec.event_labels["particle"]
    for crops, particles in zip(images.crops, predicted):
        assert [p["id"] for p in particles] == [int(c.particles["id"][0]) for c in crops]
        if not crops:
            continue
        batch = ParticleCollator(images.processor, labels=False)([crops])
        if cls is NuFMForParticleID:
            del batch["particle_event"]
        with torch.no_grad():
            shares = model(**batch).logits.softmax(-1)
        for share, particle in zip(shares, particles):
            assert list(particle["probabilities"].values()) == pytest.approx(share.tolist(), abs=1e-5)
            assert particle["label"] == classes[int(share.argmax())]
    assert [p["label"] for p in predict(images.events[1])] == [p["label"] for p in predicted[1]]


def test_images_without_truth(images):
    """Data have instances, but no table of particles: every instance is one."""
    predict = EventParticlePipeline.from_pretrained(images.folders[NuFMForParticleID])
    for event, known in zip(images.events, predict(images.events)):
        blind = predict(replace(event, particles={}, truth={}))
        ids, counts = np.unique(event.voxels["lar"].instances["particle"], return_counts=True)
        assert [p["id"] for p in blind] == [int(i) for i, n in zip(ids, counts) if i >= 0 and n >= images.settings.min_voxels]
        assert {p["id"] for p in known} <= {p["id"] for p in blind}


def test_single_particles(cubes, images):
    predict = ParticlePipeline.from_pretrained(cubes.folders[NuFMForParticleID], batch_size=3)
    whole = predict(cubes.events)  # crops of another size than the published one
    assert whole == predict([crop for (crop,) in cubes.crops])
    assert set(whole[0]) == {"label", "score", "probabilities"}
    assert [[p] for p in whole] == EventParticlePipeline.from_pretrained(cubes.folders[NuFMForParticleID], batch_size=3)(cubes.events)
    many = next(event for event, crops in zip(images.events, images.crops) if len(crops) > 1)
    with pytest.raises(ValueError, match=r"pilarnet event .* particles large enough to tell, not one: use EventParticlePipeline"):
        ParticlePipeline.from_pretrained(images.folders[NuFMForEventParticleID])(many)


def test_crops_that_are_not_the_models(cubes, images):
    folder = cubes.folders[NuFMForParticleID]
    with pytest.raises(ValueError, match="are not the crops the model reads"):
        EventParticlePipeline.from_pretrained(folder, crops=CropSettings.load("superfgd"))(cubes.events)
    with pytest.raises(ValueError, match="belongs to detector 'pilarnet'"):
        EventParticlePipeline.from_pretrained(folder)(images.events)
    own = replace(load_detector("superfgd"), name="mine")
    crop_spec = cubes.settings.detector(own)
    model = NuFMForParticleID(NuFMConfig(detector=crop_spec, **SMALL))
    events = [replace(event, detector="mine") for event in cubes.events]
    processor = NuFMProcessor(crop_spec, cubes.processor.statistics)
    with pytest.raises(ValueError, match="unknown detector 'mine'"):
        EventParticlePipeline(model, processor)(events)
    assert len(EventParticlePipeline(model, processor, detector=own, crops=cubes.settings)(events)) == len(events)


def test_other_heads_are_not_particles(images, tmp_path):
    NuFMForFlavourClassification(NuFMConfig(detector="fasercal", **SMALL | {"window_depths": [1, 1]})).save_pretrained(tmp_path)
    assert type(AutoModelForParticleID.from_pretrained(tmp_path)) is NuFMForParticleID  # a new head on that encoder
    assert type(AutoModelForParticleID.from_config(NuFMConfig(detector=images.crop_spec, **SMALL))) is NuFMForParticleID


@pytest.mark.parametrize(
    ("pipeline", "checkpoint", "bundled"),
    [
        (VertexPipeline, "nufm/fasercal-mae-rel", "nufm/fasercal-mae-rel-vertex"),
        (FlavourPipeline, "nufm/fasercal-mae-rel-vertex", "nufm/fasercal-mae-rel-flavour"),
        (EventParticlePipeline, "nufm/fasercal-mae-rel-flavour", "nufm/superfgd-pid"),
    ],
)
def test_nothing_is_predicted_from_a_random_head(pipeline, checkpoint, bundled):
    with pytest.raises(ValueError, match=f"{checkpoint} holds no trained head of a NuFMFor.*nufm finetune, or take {bundled},"):
        pipeline.from_pretrained(checkpoint)
