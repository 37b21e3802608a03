"""Models that read the summary numbers of an event: what the processor makes of them, where they go, and what pre-training does with them."""

import dataclasses

import numpy as np
import pytest
import torch
from toy_detector import SPEC, toy_event

from nufm_hub import (
    NuFMConfig,
    NuFMForFlavourClassification,
    NuFMForPreTraining,
    NuFMForVertexRegression,
    NuFMProcessor,
    read_events,
    sample_path,
    write_events,
)
from nufm_hub.detectors import load_detector
from nufm_hub.events import Event, geometric_vertex, summary_features, summary_sources
from nufm_hub.training import train

FASERCAL = load_detector("fasercal")
READS = {"readout_depth": 1, "event_summary": True}
SMALL = {
    "hidden_size": 24, "num_attention_heads": 2, "fusion_depth": 1, "decoder_hidden_size": 12, "decoder_num_attention_heads": 2,
    "decoder_depth": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def events():
    return [event for _, event in zip(range(12), read_events(sample_path("fasercal")))]


@pytest.fixture(scope="module")
def processor(events):
    return NuFMProcessor.fit(events, FASERCAL).with_summary(events)


def model(kind=NuFMForFlavourClassification, **options):
    torch.manual_seed(0)
    net = kind(NuFMConfig.preset("nano", **(SMALL | READS | options)))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return net.eval()


def without(event, branch):
    kinds = ("voxels", "images", "tracks")
    return dataclasses.replace(event, **{kind: {n: v for n, v in getattr(event, kind).items() if n != branch} for kind in kinds})


def test_numbers_are_standardised_finite_and_bounded(events, processor, tmp_path):
    rows = np.array([list(summary_features(event, FASERCAL).values()) for event in events])
    given = processor(events)["summary_features"]
    assert given.dtype == torch.float32
    assert given.shape == rows.shape == (12, len(summary_sources(FASERCAL)))
    assert given.isfinite().all()
    assert given.abs().max() <= 5
    assert (given[torch.from_numpy(np.isnan(rows))] == 0).all()
    whole = ~np.isnan(rows).any(axis=0) & (rows.std(axis=0) > 1e-3)
    assert whole.sum() > 150
    inside = whole & (given.abs().max(dim=0).values < 5).numpy()
    np.testing.assert_allclose(given[:, inside].mean(dim=0), 0, atol=1e-3)
    np.testing.assert_allclose(given[:, inside].std(dim=0, correction=0), 1, atol=1e-3)
    processor.save_pretrained(tmp_path)
    assert torch.equal(NuFMProcessor.from_pretrained(tmp_path)(events)["summary_features"], given)


def test_nothing_to_measure_is_no_number_out_of_place(processor):
    empty = processor([Event("fasercal")])["summary_features"]
    assert empty.isfinite().all()
    with pytest.raises(ValueError, match="no events were given"):
        processor.with_summary([])


def test_scales_of_other_numbers_are_refused(processor):
    held = {key: numbers[:-1] for key, numbers in processor.statistics["summary"]["event"].items()}
    with pytest.raises(ValueError, match="no valid k for branch 'event'"):
        NuFMProcessor(FASERCAL, processor.statistics | {"summary": {"event": held}})


def test_every_number_is_of_a_branch():
    sources = summary_sources(FASERCAL)
    assert set(sources) == {"3dcal", "ahcal", "ecal", "muon"}
    names = list(summary_features(Event("fasercal"), FASERCAL))
    assert all(name.startswith(f"{source}.") for name, source in zip(names, sources, strict=True))


def test_heads_read_the_numbers(events, processor):
    net, batch = model(), processor(events)
    with torch.no_grad():
        said = net(**batch).logits
        other = net(**batch | {"summary_features": batch["summary_features"].flip(0)}).logits
        vector = net.encode(**batch).pooler_output
        same = net.encode(**batch | {"summary_features": batch["summary_features"].flip(0)}).pooler_output
    assert (said - other).abs().amax(dim=1).min() > 1e-4
    assert torch.equal(vector, same)  # the encoder itself sees the event alone


def test_an_absent_branch_says_nothing_in_either_way(events, processor):
    net, batch = model(), processor(events)
    for column, branch in enumerate(FASERCAL.branches):
        gone = [without(event, branch.name) for event in events]
        mask = batch["branch_mask"].clone()
        mask[:, column] = False
        with torch.no_grad():
            torch.testing.assert_close(net(**processor(gone)).logits, net(**batch | {"branch_mask": mask}).logits, atol=1e-4, rtol=1e-4)


def test_pointing_knows_where_geometry_finds_the_vertex(events, processor):
    net, batch = model(NuFMForVertexRegression, vertex_pointing=True, vertex_scale=processor.vertex_scale), processor(events)
    found = np.stack([geometric_vertex(event, FASERCAL) for event in events])
    np.testing.assert_allclose(batch["start_position"], found, rtol=1e-6)
    none = batch | {"start_position": torch.full((12, 3), torch.nan)}
    mask = batch["branch_mask"].clone()
    mask[:, 0] = False
    with torch.no_grad():
        said, without = (net(**given).logits for given in (batch, none))
        assert without.isfinite().all()
        assert (said - without).abs().amax(dim=1).min() > 1e-4
        assert torch.equal(net(**none | {"branch_mask": mask}).logits, net(**batch | {"branch_mask": mask}).logits)
    with pytest.raises(ValueError, match=r"reads start_position \(B, 3\), got none"):
        net(**{name: value for name, value in batch.items() if name != "start_position"})


def test_the_way_to_the_start():
    head = model(NuFMForVertexRegression, vertex_pointing=True, vertex_scale={"mean": [0.0] * 3, "std": [100.0] * 3}).head
    nan = float("nan")
    starts = torch.tensor([[120.0, 0.0, 0.0], [0.0, 0.0, 1000.0], [nan, 0.0, 0.0]])  # patches are 120 x 120 x 100 mm, voxels 10
    way = head._to_start(torch.zeros(3, 3), starts)
    assert way[0].tolist() == pytest.approx([1, 0, 0, *(np.exp(-(120**2) / 2 / (10 * n) ** 2) for n in (1, 2, 4, 8)), 1], abs=1e-6)
    assert way[1].tolist() == pytest.approx([0, 0, 3, 0, 0, 0, 0, 1], abs=1e-6)
    assert way[2].tolist() == [0] * 8


def test_a_vertex_model_learns_from_events_without_a_start(processor):
    net = model(NuFMForVertexRegression, vertex_pointing=True, vertex_scale=processor.vertex_scale).train()
    batch = processor([Event("fasercal"), Event("fasercal")])
    assert batch["start_position"].isnan().all()
    net(**batch, labels=torch.zeros(2, 3)).loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())


def test_what_is_lacking_is_named(events, processor):
    net, batch = model(), processor(events[:2])
    with pytest.raises(ValueError, match="got none: make its inputs with the processor saved with it"):
        net(**{name: value for name, value in batch.items() if name != "summary_features"})
    with pytest.raises(ValueError, match=r"reads summary_features \(B, \d+\), got \(2, 3\)"):
        net(**batch | {"summary_features": torch.zeros(2, 3)})
    with pytest.raises(ValueError, match="event_summary=True needs a readout_depth"):
        NuFMConfig.preset("nano", event_summary=True)


def test_pre_training_tells_the_numbers_and_does_not_read_them(events, processor):
    net, batch = model(NuFMForPreTraining, relational=False), processor(events)

    def step(**changed):
        net.zero_grad()
        output = net(**batch | changed, generator=torch.Generator().manual_seed(0))
        output.loss.backward()
        return output

    first, second = step(), step(summary_features=batch["summary_features"] + 1)
    assert second.losses["summary"] != first.losses["summary"]
    assert {name: value for name, value in first.losses.items() if name != "summary"} == {
        name: value for name, value in second.losses.items() if name != "summary"
    }
    assert torch.equal(first.latents, second.latents)
    assert net.decoder.summary[1].weight.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="reads summary_features"):
        step(summary_features=None)


@pytest.mark.parametrize("task", ["flavour", "pretraining"])
def test_a_training_fits_and_saves_the_numbers(task, tmp_path):
    rng = np.random.default_rng(0)
    write_events((toy_event(rng, i) for i in range(24)), tmp_path / "toy.parquet", SPEC)
    recipe = {"preset": "nano", "model": SMALL | READS, "steps": 2, "batch_size": 8, "micro_batch_size": 8, "base_learning_rate": 0.1}
    folder = train(task, recipe, tmp_path / "toy.parquet", tmp_path / "run", None, use_cpu=True)
    saved = NuFMProcessor.from_pretrained(folder)
    assert saved.statistics["summary"]["event"]["k"]
    if task == "pretraining":  # and a head that continues from it takes them over
        folder = train("flavour", recipe, tmp_path / "toy.parquet", tmp_path / "next", str(folder), use_cpu=True)
        assert NuFMProcessor.from_pretrained(folder).statistics["summary"] == saved.statistics["summary"]
