"""`evaluate` on toy checkpoints, against scikit-learn and hand-written formulas event by event."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, recall_score, roc_auc_score
from typer.testing import CliRunner

from nufm_hub import (
    DetectorSpec,
    Event,
    NuFMConfig,
    NuFMForEventParticleID,
    NuFMForEventReconstruction,
    NuFMForParticleID,
    NuFMForPreTraining,
    NuFMForVertexRegression,
    NuFMForVoxelClassification,
    NuFMModel,
    NuFMProcessor,
    Voxels,
    checkpoint_path,
    load_detector,
    read_events,
    sample_path,
    write_events,
)
from nufm_hub.cli import app
from nufm_hub.evaluation import evaluate, weights_sha256
from nufm_hub.evaluation.source import is_held_out, packaged_sample
from nufm_hub.events.crop_files import CropSettings
from nufm_hub.events.splits import group_key
from nufm_hub.metrics import BalancedAccuracy
from nufm_hub.training.particles import ParticleCollator

SPEC = DetectorSpec.from_dict(
    {
        "name": "toy",
        "event_labels": {"flavour": ["low", "middle", "high"], "charm": ["none", "some"]},
        "branches": [
            {
                "kind": "voxels", "name": "cubes", "shape": [8, 8, 16], "voxel_size": [1, 1, 1], "origin": [-4, -4, 0], "patch": [4, 4, 4],
                "window": [2, 2, 2], "labels": [{"name": "ghost", "classes": ["ghost"]}, {"name": "kind", "classes": ["a", "b", "c"]}],
            },
            {"kind": "image", "name": "towers", "shape": [2, 2]},
        ],
    }
)  # fmt: skip
SIZES = {
    "hidden_size": 24, "num_attention_heads": 2, "window_depths": [1], "fusion_depth": 1, "head_init_std": 0.5,
    "decoder_hidden_size": 12, "decoder_num_attention_heads": 2, "decoder_depth": 1,
}  # fmt: skip


def toy_event(rng: np.random.Generator, index: int) -> Event:
    hits = np.unique(rng.integers(0, (8, 8, 16), (rng.integers(5, 40), 3)), axis=0)
    kind = rng.dirichlet((1, 1, 1), len(hits))
    kind[::4] = 0  # unlabelled
    ghost = rng.uniform(size=len(hits))
    ghost[::3] = np.nan
    visible = rng.normal((0, 0, 300), (3, 3, 100))
    truth = {"flavour": index % 3, "charm": index % 2, "vertex": rng.normal(size=3), "is_cc": index % 4 > 0}
    truth |= {"visible_momentum": visible, "jet_momentum": visible * rng.uniform(0.2, 0.8)}
    if index % 5 == 0:
        del truth["charm"]
    return Event(
        "toy",
        {"cubes": Voxels(hits, rng.lognormal(0, 1, len(hits)), {"ghost": ghost, "kind": kind})},
        {"towers": rng.lognormal(0, 1, (2, 2)).astype(np.float32)},
        truth=truth,
        provenance={"generator": "toy", "seed": 5, "file": "toy", "index": index},
    )


@pytest.fixture
def events():
    rng = np.random.default_rng(0)
    return [toy_event(rng, i) for i in range(46)]


@pytest.fixture
def processor(events):
    return NuFMProcessor.fit(events[:30], SPEC)


@pytest.fixture
def files(events, tmp_path):
    write_events(events[:20], tmp_path / "data-0.parquet", SPEC)
    write_events(events[20:], tmp_path / "data-1.parquet", SPEC)
    return [tmp_path / "data-0.parquet", tmp_path / "data-1.parquet"]


def saved(cls, folder, processor, **options):
    torch.manual_seed(3)
    model = cls(NuFMConfig.preset("nano", detector=processor.spec, momentum_scales=processor.momentum_scales, **SIZES, **options)).eval()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model


def outputs_one_by_one(model, processor, events):
    with torch.inference_mode():
        return [model(**processor(event)) for event in events]


def softmax(logits):
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def check_classes(result, probabilities, labels, classes):
    predicted = probabilities.argmax(1)
    scores = probabilities if probabilities.shape[1] > 2 else probabilities[:, 1]
    assert result["macro_auroc"] == pytest.approx(roc_auc_score(labels, scores, multi_class="ovr"), abs=1e-6)
    assert result["accuracy"] == pytest.approx(accuracy_score(labels, predicted))
    assert result["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, predicted))
    assert [result["efficiency"][c] for c in classes] == pytest.approx(recall_score(labels, predicted, average=None))
    entropy = -(probabilities * np.log(probabilities)).sum(1)
    assert result["error_detection_auroc"] == pytest.approx(roc_auc_score(predicted == labels, -entropy), abs=1e-6)
    assert result["macro_auroc_low"] < result["macro_auroc"] < result["macro_auroc_high"]
    assert 0 < result["expected_calibration_error"] < 1
    assert result["num_events"] == len(labels)


def test_every_quantity_of_a_reconstruction(events, processor, files, tmp_path):
    model = saved(NuFMForEventReconstruction, tmp_path / "model", processor)
    result = evaluate(tmp_path / "model", files, batch_size=7, num_resamples=200)
    metrics, outputs = result["metrics"], outputs_one_by_one(model, processor, events)

    flavour = softmax(np.concatenate([o.flavour_logits.double().numpy() for o in outputs]))
    check_classes(metrics["flavour"], flavour, np.array([e.truth["flavour"] for e in events]), SPEC.classes("flavour"))
    known = [i for i, e in enumerate(events) if "charm" in e.truth]
    charm = softmax(np.concatenate([outputs[i].charm_logits.double().numpy() for i in known]))
    check_classes(metrics["charm"], charm, np.array([events[i].truth["charm"] for i in known]), SPEC.classes("charm"))

    mean, std = (np.array(processor.statistics["vertex"][k]) for k in ("mean", "std"))
    true = np.stack([e.truth["vertex"] for e in events])
    distance = np.linalg.norm(np.concatenate([o.vertex.double().numpy() for o in outputs]) * std + mean - true, axis=1)
    assert metrics["vertex"]["vertex_error_mean"] == pytest.approx(distance.mean(), rel=1e-5)
    assert metrics["vertex_baseline"]["vertex_error_mean"] == pytest.approx(np.linalg.norm(true - mean, axis=1).mean())

    visible, jet = (np.stack([e.truth[f"{name}_momentum"] for e in events]) for name in ("visible", "jet"))
    cc = np.array([e.truth["is_cc"] for e in events])
    pt = np.linalg.norm(visible[:, :2], axis=1)
    for name, truth, kept in (
        ("visible_momentum", visible, cc | True), ("jet_momentum", jet, cc | True), ("lepton_momentum", visible - jet, cc),
    ):  # fmt: skip
        predicted = np.concatenate([o[name].double().numpy() for o in outputs])
        residual = (np.linalg.norm(predicted, axis=1) / np.linalg.norm(truth, axis=1) - 1)[kept]
        assert metrics[name]["bias"] == pytest.approx(np.median(residual), rel=1e-4)
        assert metrics[name]["num_events"] == kept.sum()
    residual = (np.concatenate([o.missing_pt.double().numpy() for o in outputs]) / pt - 1)[pt > 1]
    low, high = np.quantile(residual, (0.16, 0.84))
    assert metrics["missing_pt"]["sigma68"] == pytest.approx((high - low) / 2, rel=1e-4)
    told = roc_auc_score(pt > 1, np.concatenate([o.missing_pt.double().numpy() for o in outputs]))
    assert metrics["missing_pt_above_1gev"]["detection_auroc"] == pytest.approx(told, rel=1e-4)
    assert set(metrics) == {
        "flavour", "charm", "vertex", "vertex_baseline", "visible_momentum", "jet_momentum", "lepton_momentum", "missing_pt",
        "missing_pt_above_1gev",
    }  # fmt: skip


def test_the_answer_says_what_was_measured(events, processor, files, tmp_path):
    saved(NuFMForVertexRegression, tmp_path / "mine", processor)
    result = evaluate(tmp_path / "mine", files, num_resamples=20, seed=4)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["checkpoint"] == "mine"
    assert str(tmp_path) not in json.dumps(result)
    assert result["architecture"] == "NuFMForVertexRegression"
    assert len(result["weights_sha256"]) == len(result["data"]["events_sha256"]) == 64
    assert (result["num_events"], result["data"]["files"]) == (46, ["data-0.parquet", "data-1.parquet"])
    assert (result["seed"], result["num_resamples"], result["held_out"]) == (4, 20, None)
    assert result["events_per_second"] > 0
    assert result["device"] in ("cpu", "cuda")
    assert result["peak_memory_mb"] > 50
    again = evaluate(tmp_path / "mine", events, batch_size=5, num_resamples=20, seed=4)
    assert again["data"]["events_sha256"] is None
    assert again["metrics"]["vertex"] == pytest.approx(result["metrics"]["vertex"], rel=1e-5)
    other = evaluate(tmp_path / "mine", files[:1], num_resamples=20)
    assert other["data"]["events_sha256"] != result["data"]["events_sha256"]
    assert other["weights_sha256"] == result["weights_sha256"]


def test_voxels_count_where_they_carry_the_label(events, processor, files, tmp_path):
    model = saved(NuFMForVoxelClassification, tmp_path / "model", processor)
    metrics = evaluate(tmp_path / "model", files, batch_size=9, num_resamples=300)["metrics"]
    logits = np.concatenate([o.logits[0].double().numpy() for o in outputs_one_by_one(model, processor, events)])
    ghost, kind = (np.concatenate([e.voxels["cubes"].labels[name] for e in events]) for name in ("ghost", "kind"))
    kept = ~np.isnan(ghost[:, 0])
    assert metrics["ghost"]["num_voxels"] == kept.sum()
    expected = roc_auc_score(ghost[kept, 0] >= 0.5, logits[kept, 0])
    assert metrics["ghost"]["macro_auroc"] == pytest.approx(expected, abs=1e-4)
    assert metrics["ghost"]["auroc"] == pytest.approx({"no ghost": expected, "ghost": expected}, abs=1e-4)
    kept = kind.sum(1) > 0
    truth, probabilities = kind[kept].argmax(1), softmax(logits[kept, 1:])
    assert metrics["kind"]["macro_auroc"] == pytest.approx(roc_auc_score(truth, probabilities, multi_class="ovr"), abs=1e-4)
    assert metrics["kind"]["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(truth, probabilities.argmax(1)))
    assert metrics["kind"]["efficiency"] == pytest.approx(dict(zip("abc", recall_score(truth, probabilities.argmax(1), average=None))))
    assert metrics["kind"]["num_true"] == dict(zip("abc", np.bincount(truth).tolist()))
    assert metrics["kind"]["num_events"] == len(events)
    assert metrics["kind"]["accuracy_low"] < metrics["kind"]["accuracy"] < metrics["kind"]["accuracy_high"]


def test_pre_training_losses_repeat_with_the_seed(processor, files, tmp_path):
    saved(NuFMForPreTraining, tmp_path / "model", processor)
    one, same, other = (evaluate(tmp_path / "model", files, seed=s)["metrics"]["pretraining"] for s in (1, 1, 2))
    assert {"loss", "occupancy_cubes", "charge_cubes", "towers", "ghost", "kind", "num_events"} == set(one)
    assert one == same
    assert one != other


def test_a_branch_can_be_made_absent(events, processor, files, tmp_path):
    model = saved(NuFMForVertexRegression, tmp_path / "model", processor)
    with_all, without = (evaluate(tmp_path / "model", files, absent=a, num_resamples=0)["metrics"] for a in ((), ("towers",)))
    for event in events:
        event.images.pop("towers")
    predicted = [processor.post_process_vertex(o)[0] for o in outputs_one_by_one(model, processor, events)]
    error = np.linalg.norm(np.stack(predicted) - [e.truth["vertex"] for e in events], axis=1).mean()
    assert without["vertex"]["vertex_error_mean"] == pytest.approx(error, rel=1e-5)
    assert with_all["vertex"]["vertex_error_mean"] != pytest.approx(error, rel=1e-4)


@pytest.mark.parametrize(("detector", "shape", "cls"), [("superfgd", 72, NuFMForParticleID), ("pilarnet", 48, NuFMForEventParticleID)])
def test_models_of_crops_take_whole_events(detector, shape, cls, tmp_path):
    source = load_detector(detector)
    settings = CropSettings.load(detector, shape=(shape,) * 3, patch=(12, 12, 12), window=(2, 2, 2))
    spec = settings.detector(source)
    assert packaged_sample(spec) == sample_path(detector)
    whole = [event for event, _ in zip(read_events(sample_path(detector)), range(12))]
    crops = [list(settings.crops(event, source, spec)) for event in whole]
    flat = [crop for of_event in crops for crop in of_event]
    processor = NuFMProcessor.fit(flat, spec)
    sizes = SIZES | {"window_depths": [1] * len(spec.voxel_branches), "context_dropout": 0.0}
    torch.manual_seed(3)
    model = cls(NuFMConfig.preset("nano", detector=spec, **sizes)).eval()
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    write_events(whole, tmp_path / "whole.parquet", source)
    write_events(flat, tmp_path / "crops.parquet", spec)

    probabilities = []
    with torch.inference_mode():
        for of_event in filter(None, crops):
            extra = {} if cls is NuFMForParticleID else {"particle_event": torch.zeros(len(of_event), dtype=torch.int64)}
            probabilities.append(model(**processor(of_event), **extra).logits.softmax(-1))
    accuracy = np.mean(torch.cat(probabilities).argmax(-1).numpy() == [c.truth["particle"] for c in flat])
    for name in ("whole", "crops"):
        result = evaluate(tmp_path / "model", tmp_path / f"{name}.parquet", batch_size=5, num_resamples=0)
        assert result["metrics"]["particle"]["accuracy"] == pytest.approx(accuracy)
        assert result["num_events"] == len(flat)
    # Particles are as large as those of the training, where that is recorded.
    sizes_of = [len(next(iter(crop.voxels.values()))) for crop in flat]
    least = int(np.median(sizes_of)) + 1
    simulation = {"crops": {"min_voxels": least}, "source": []}
    (tmp_path / "model" / "training.json").write_text(json.dumps({"data": {"train": {"simulations": [simulation]}}}))
    large = sum(len(list(replace(settings, min_voxels=least).crops(event, source, spec))) for event in whole)
    assert 0 < evaluate(tmp_path / "model", tmp_path / "whole.parquet", num_resamples=0)["num_events"] == large < len(flat)


def test_particles_of_an_image_are_resampled_together(tmp_path):
    """Intervals of crops are those of a bootstrap over images."""
    source = load_detector("pilarnet")
    settings = CropSettings.load("pilarnet", shape=(48,) * 3, patch=(12, 12, 12), window=(2, 2, 2))
    spec = settings.detector(source)
    crops = [c for e, _ in zip(read_events(sample_path("pilarnet")), range(12)) for c in settings.crops(e, source, spec)]
    images = np.unique([group_key(c, "event") for c in crops], return_inverse=True)[1]
    processor = NuFMProcessor.fit(crops, spec)
    model = saved(NuFMForEventParticleID, tmp_path / "model", processor)
    write_events(crops, tmp_path / "crops.parquet", spec)
    batch = ParticleCollator(processor)([[c for c, i in zip(crops, images) if i == image] for image in dict.fromkeys(images.tolist())])
    labels = batch.pop("labels").numpy()
    with torch.inference_mode():
        probabilities = model(**batch).logits.double().softmax(-1).numpy()
    expected = BalancedAccuracy().compute(predictions=probabilities, references=labels, num_resamples=50, groups=images)
    result = evaluate(tmp_path / "model", tmp_path / "crops.parquet", num_resamples=50)["metrics"]["particle"]
    assert (result["accuracy_low"], result["accuracy_high"]) == pytest.approx((expected["accuracy_low"], expected["accuracy_high"]))


def test_bundled_checkpoints_were_not_trained_on_the_packaged_events(tmp_path):
    name = "nufm/fasercal-mae-rel-vertex"
    few = tmp_path / "fasercal.parquet"
    write_events([e for e, _ in zip(read_events(sample_path("fasercal")), range(2))], few, load_detector("fasercal"))
    shutil.copy(sample_path("fasercal").with_suffix(".json"), tmp_path)
    result = evaluate(name, few, num_resamples=0)
    assert (result["checkpoint"], result["held_out"]) == (name, True)
    record = json.loads((tmp_path / "fasercal.json").read_text())
    training = json.loads((checkpoint_path(name) / "training.json").read_text())
    (tmp_path / "fasercal.json").write_text(json.dumps(record | {"seed": training["data"]["validation"]["simulations"][0]["seed"]}))
    assert evaluate(name, few, num_resamples=0)["held_out"] is False


def test_what_cannot_be_evaluated_is_named(events, processor, files, tmp_path):
    saved(NuFMModel, tmp_path / "bare", processor)
    with pytest.raises(ValueError, match=r"bare holds a NuFMModel, which predicts nothing"):
        evaluate(tmp_path / "bare", files)
    saved(NuFMForVertexRegression, tmp_path / "model", processor)
    with pytest.raises(ValueError, match=r"reads detector 'toy'.*'fasercal'"):
        evaluate(tmp_path / "model", sample_path("fasercal"))
    with pytest.raises(ValueError, match=r"absent=\['tower'\].*'towers'"):
        evaluate(tmp_path / "model", files, absent=("tower",))
    with pytest.raises(ValueError, match="no branch"):
        evaluate(tmp_path / "model", files, absent=("towers", "cubes"))
    with pytest.raises(ValueError, match="no events of detector 'toy' come with the package"):
        evaluate(tmp_path / "model")
    for event in events:
        event.truth.pop("vertex")
    with pytest.raises(ValueError, match="none of the 46 events has a truth"):
        evaluate(tmp_path / "model", events)


def test_command(processor, files, tmp_path):
    saved(NuFMForVertexRegression, tmp_path / "model", processor)
    arguments = ["evaluate", str(tmp_path / "model"), "--events", str(files[0]), "--events", str(files[1]), "--num-resamples", "10"]
    out = tmp_path / "results" / "model.json"
    result = CliRunner().invoke(app, [*arguments, "--out", str(out), "--absent", "towers"])
    assert result.exit_code == 0, result.output
    written = json.loads(out.read_text())
    assert (written["num_events"], written["absent"]) == (46, ["towers"])
    assert written["metrics"] == evaluate(tmp_path / "model", files, num_resamples=10, absent=["towers"])["metrics"]
    assert json.loads(CliRunner().invoke(app, arguments).stdout)["absent"] == []
    result = CliRunner().invoke(app, ["evaluate", "nufm/unknown"])
    assert result.exit_code == 2
    assert "nufm/unknown" in result.output


def test_who_has_seen_which_part(tmp_path):
    """Parts of one split are apart; the same part, or all of the simulation, is not; what is not recorded cannot be told."""
    simulation = {"simulation": "superfgd", "seed": 3}
    split = {"split": {"fractions": [0.8, 0.1, 0.1], "seed": 7}, "source": [simulation]}
    record: dict = {"source": None, "data": {"train": {"simulations": [split | {"part": "train"}]}, "validation": None}}

    def held_out(*simulations: dict, **changes) -> bool | None:
        (tmp_path / "training.json").write_text(json.dumps(record | changes))
        return is_held_out(tmp_path, list(simulations))

    assert held_out(split | {"part": "test"}) is True
    assert held_out(split | {"part": "train"}) is False
    assert held_out(simulation) is False
    assert held_out(split | {"part": "test", "split": {"fractions": [0.5, 0.1, 0.4], "seed": 7}}) is False
    assert held_out(split) is None
    assert held_out(simulation | {"seed": 4}) is True
    assert held_out(simulation | {"seed": 4}, {}) is None
    assert held_out() is None
    assert held_out(simulation | {"seed": 4}, source="somebody/elses") is None
    assert held_out(simulation, source="somebody/elses") is False
    encoder = "nufm/fasercal-mae-rel"
    assert held_out(simulation | {"seed": 4}, source=encoder, source_sha256="0" * 64) is None  # other weights than those that come with the package
    right = {"source": encoder, "source_sha256": weights_sha256(checkpoint_path(encoder))}
    assert held_out(simulation | {"seed": 4}, **right) is True
    assert held_out({"simulation": "fasercal", "seed": 1}, **right) is False  # seen in pre-training
