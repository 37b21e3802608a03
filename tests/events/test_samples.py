"""The packaged samples: small, valid, balanced, and what the JSON file beside them says."""

import hashlib
import json

import numpy as np
import pytest

from nufm_hub.detectors import load_detector
from nufm_hub.events import read_events
from nufm_hub.events.samples import list_samples, sample_path


@pytest.mark.parametrize("detector", ["superfgd", "pilarnet"])
def test_sample_is_what_its_provenance_says(detector):
    path = sample_path(detector)
    assert path.stat().st_size <= 5e6
    provenance = json.loads(path.with_suffix(".json").read_text())
    shard = provenance["shards"][f"{detector}-00000.parquet"]
    assert shard["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    spec = load_detector(detector)
    assert provenance["detector_hash"] == spec.hash
    events = list(read_events(path))
    for event in events:
        event.validate(spec)
    assert [e.provenance["index"] for e in events] == list(range(provenance["events"]))
    assert {e.provenance["seed"] for e in events} == {provenance["seed"]}


def test_single_particles_are_balanced():
    events = list(read_events(sample_path("superfgd")))
    assert np.bincount([e.truth["particle"] for e in events]).tolist() == [100] * 4


def test_images_hold_every_class():
    """All five motifs and all five particles, with the energy of 3 mm of argon along a minimum-ionising track (0.6 MeV) in a track voxel."""
    events = [e.voxels["lar"] for e in read_events(sample_path("pilarnet"))]
    for label in ("motif", "particle"):
        assert (np.concatenate([v.labels[label] for v in events]).sum(axis=0) > 1000).all()
    on_track = np.concatenate([v.energy[v.labels["motif"][:, 1] > 0.5] for v in events])
    assert 0.4 < np.median(on_track) < 0.7


def test_every_detector_has_one():
    assert {"fasercal", "pilarnet", "superfgd"} <= set(list_samples())
