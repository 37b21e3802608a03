"""What every family must do alike. A family that is registered gets all of these tests; `docs/families.md` says so in words."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import toy_family
import transformers
from toy_detector import SPEC, toy_event

from nufm_hub import AutoConfig, AutoModel, AutoProcessor, Event, Voxels, list_checkpoints, list_families, train, transfer_encoder
from nufm_hub.cards import make_card
from nufm_hub.checkpoints import checkpoint_path
from nufm_hub.detectors import DetectorSpec
from nufm_hub.evaluation import evaluate
from nufm_hub.events import write_events
from nufm_hub.models.families import get_family
from nufm_hub.tasks import TASKS
from nufm_hub.training import run
from nufm_hub.training.optimiser import encoder_depths, parameter_groups
from nufm_hub.transfer import freeze_carried, unfreeze

FAMILIES = list_families()
assert toy_family.ToyConfig.model_type in FAMILIES
HEADS = [(name, task) for name in FAMILIES for task in TASKS.values() if not task.grouped and task.auto.heads[0] in get_family(name).names()]
HEADS_IDS = [f"{family}-{task.name}" for family, task in HEADS]
PARTICLES = DetectorSpec.from_dict(SPEC.to_dict() | {"event_labels": {name: ["low", "high"] for name in ("flavour", "charm", "particle")}})
OTHER = DetectorSpec.from_dict(
    {
        "name": "other",
        "event_labels": {"flavour": ["a", "b", "c"], "particle": ["e", "mu"]},
        "branches": [
            {
                "kind": "voxels", "name": "cubes", "shape": [8, 8, 16], "voxel_size": [1, 1, 1], "origin": [-4, -4, 0],
                "patch": [4, 4, 4], "window": [2, 2, 2], "labels": [{"name": "ghost", "classes": ["ghost"]}],
            },
        ],
    }
)  # fmt: skip


def events(count=6):
    """Events of different sizes, one of them empty."""
    rng = np.random.default_rng(0)
    made = [dataclasses.replace(toy_event(rng, i), truth=toy_event(rng, i).truth | {"charm": i % 2, "particle": i % 2}) for i in range(count - 1)]
    nothing = Voxels(np.zeros((0, 3), dtype=np.int64), np.zeros((0, 1)), {"ghost": np.zeros(0, dtype=np.float32)})
    return [*made, dataclasses.replace(made[0], voxels={"cubes": nothing})]


def shuffled(event: Event) -> Event:
    """The same event with its voxels in another order."""
    voxels = event.voxels["cubes"]
    order = np.random.default_rng(1).permutation(len(voxels))
    mixed = Voxels(voxels.coordinates[order], voxels.values[order], {name: label[order] for name, label in voxels.labels.items()})
    return dataclasses.replace(event, voxels={"cubes": mixed})


def make(family, task=None, **overrides):
    """A small model (the plain encoder without a task), whose weights all say something, and its processor."""
    torch.manual_seed(0)
    made = get_family(family)
    processor = made.get("Processor").fit(events(), PARTICLES)
    if task is not None:
        overrides |= task.scales_of(processor)
    config = made.config.preset("nano", PARTICLES, **overrides)
    model = (made.get("Model") if task is None else task.model_class(made.config))(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model.eval(), processor


def close(one, other):
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5, equal_nan=True)


def values(output):
    return [value for name, value in output.items() if isinstance(value, torch.Tensor) and name != "loss"]


def run_of(task, model, inputs):
    """The output for a batch; of pre-training with the same masks each time."""
    generator = {"generator": torch.Generator().manual_seed(0)} if task is not None and task.judged == "losses" else {}
    with torch.no_grad():
        return model(**inputs, **generator)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_event_is_the_same_alone_in_a_batch_and_in_any_order(family):
    model, processor = make(family)
    held = events()
    together = run_of(None, model, processor(held)).pooler_output
    assert torch.isfinite(together).all()
    assert together.shape == (len(held), model.config.hidden_size)
    alone = torch.cat([run_of(None, model, processor(event)).pooler_output for event in held])
    close(together, alone)
    close(together, run_of(None, model, processor([shuffled(event) for event in held])).pooler_output)
    close(together.flip(0), run_of(None, model, processor(held[::-1])).pooler_output)
    assert (together[0] - together[1]).abs().max() > 1e-3  # it looks at the events


@pytest.mark.parametrize(("family", "task"), HEADS, ids=HEADS_IDS)
def test_gradients_are_finite_and_losses_fall(family, task):
    model, processor = make(family, task)
    inputs = processor(events(), labels=task.labels)
    model.train()
    optimiser, losses = torch.optim.Adam(model.parameters(), lr=3e-3), []
    for _ in range(20):
        torch.manual_seed(0)  # of masks
        loss = model(**inputs).loss
        optimiser.zero_grad()
        loss.backward()
        assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())
        optimiser.step()
        losses.append(loss.item())
    assert all(np.isfinite(losses))
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(("family", "task"), HEADS, ids=HEADS_IDS)
def test_what_was_saved_is_what_is_loaded(family, task, tmp_path):
    model, processor = make(family, task)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded, info = task.auto.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is type(model)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    inputs = AutoProcessor.from_pretrained(tmp_path)(events())
    wanted = processor(events())
    assert all(torch.equal(inputs[name], value) for name, value in wanted.items())
    labels = {"voxel_labels": processor(events(), labels="voxels")["voxel_labels"]} if task.judged == "losses" else {}
    for one, other in zip(values(run_of(task, model, {**wanted, **labels})), values(run_of(task, loaded, {**inputs, **labels})), strict=True):
        torch.testing.assert_close(one, other, atol=0, rtol=0, equal_nan=True)
    half = task.auto.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert all(torch.isfinite(each).all() or task.judged == "voxels" for each in values(run_of(task, half, {**wanted, **labels})))
    assert {t.dtype for t in [*half.parameters(), *half.buffers()] if t.is_floating_point()} == {torch.bfloat16}
    # another class of the family takes all but the head, and the library's own Auto classes know it
    for encoder in (AutoModel.from_pretrained(tmp_path), transformers.AutoModel.from_pretrained(tmp_path)):
        assert type(encoder) is get_family(family).get("Model")
        assert all(torch.equal(value, model.state_dict()[name]) for name, value in encoder.state_dict().items())
    assert type(transformers.AutoConfig.from_pretrained(tmp_path)) is get_family(family).config
    assert type(transformers.AutoFeatureExtractor.from_pretrained(tmp_path)) is type(processor)


@pytest.mark.parametrize(("family", "task"), HEADS, ids=HEADS_IDS)
def test_weights_that_a_checkpoint_lacks_are_drawn_anew(family, task):
    model, _ = make(family, task)

    def drawn():
        torch.manual_seed(3)
        return type(model).from_pretrained(None, config=model.config, state_dict={}).state_dict()

    once, again = drawn(), drawn()
    assert all(torch.equal(value, again[name]) for name, value in once.items())
    assert all(torch.isfinite(value).all() and value.abs().max() < 10 for value in once.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_that_are_damaged_are_refused(family, tmp_path):
    model, _ = make(family)
    with torch.no_grad():
        next(p for name, p in model.named_parameters() if name.startswith("encoder.")).view(-1)[0] = float("nan")
    model.save_pretrained(tmp_path / "nan")
    with pytest.raises(ValueError, match=r"1 tensors hold NaN or infinity, the first is 'encoder\."):
        AutoModel.from_pretrained(tmp_path / "nan")
    file = tmp_path / "nan" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match="truncated or damaged"):
        AutoModel.from_pretrained(tmp_path / "nan")


@pytest.mark.parametrize(("family", "task"), HEADS, ids=HEADS_IDS)
def test_names_of_weights_keep_the_contract(family, task):
    model, _ = make(family, task)
    names = {name for name, _ in model.named_parameters()}
    assert {name.split(".")[0] for name in names} <= {"embeddings", "encoder", "head", "decoder"}
    depths = encoder_depths(model)
    assert depths.keys() == {name for name in names if name.split(".")[0] in ("embeddings", "encoder")}
    assert {depth for name, depth in depths.items() if name.startswith("embeddings.")} == {0}
    assert sorted({depth for name, depth in depths.items() if name.startswith("encoder.")}) == list(range(1, max(depths.values()) + 1))
    grouped = [p for group in parameter_groups(model, 1e-3, 0.05, 0.9) for p in group["params"]]
    assert len(grouped) == len(names) == len(set(map(id, grouped)))


@pytest.mark.parametrize("family", FAMILIES)
def test_configurations(family, tmp_path):
    config_class = get_family(family).config
    config = config_class.preset("nano", PARTICLES)
    config.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).to_dict() == config_class.from_pretrained(tmp_path).to_dict()
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == family
    assert config.for_detector(OTHER).spec.hash == OTHER.hash
    for wrong, message in (
        ({"hiden_size": 3}, "hiden_size"),
        ({"layer_norm_eps": 0.0}, "layer_norm_eps"),
        ({"head_dropout": 1.5}, "head_dropout"),
        ({"label_smoothing": -0.1}, "label_smoothing"),
    ):
        with pytest.raises(ValueError, match=message):
            config_class.preset("nano", PARTICLES, **wrong)
    with pytest.raises(ValueError, match="unknown preset 'huge'"):
        config_class.preset("huge", PARTICLES)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_encoder_moves_to_another_detector(family, tmp_path):
    source, _ = make(family, TASKS["pretraining"])
    for head in (TASKS["flavour"].auto, TASKS["flavour"].model_class(type(source.config))):
        model, report = transfer_encoder(source, head, OTHER)
        assert model.config.num_labels == 3
        rows = {row.name: row for row in report.rows if row.status != "skipped"}
        assert rows.keys() == model.state_dict().keys()
        for name, value in model.state_dict().items():
            if rows[name].status == "loaded":
                assert name.startswith("encoder.")
                assert torch.equal(value, source.state_dict()[name])
        assert report.fraction == 1
        assert {rows[name].reason for name in rows if name.startswith("embeddings.")} == {"belongs to the detector"}
        assert {rows[name].reason for name in rows if name.startswith("head.")} == {"belongs to the task"}
    parameters = dict(model.named_parameters())
    assert set(freeze_carried(model, report)) == {name for name in parameters if name.startswith("encoder.")}
    assert {name for name, p in parameters.items() if not p.requires_grad} == {name for name in parameters if name.startswith("encoder.")}
    top = max(encoder_depths(model).values())
    assert unfreeze(model, depth=top) == [name for name, depth in encoder_depths(model).items() if depth == top]
    model.save_pretrained(tmp_path)
    assert f"{report.fraction:.1%} of the encoder" in (tmp_path / "README.md").read_text()


class StopAfter(transformers.TrainerCallback):
    def __init__(self, steps):
        self.steps = steps

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.steps


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_trainings_resume_and_get_a_card(family, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    for name, count in (("train", 16), ("test", 12)):
        write_events((toy_event(rng, i) for i in range(count)), tmp_path / f"{name}.parquet", SPEC)
    recipe = {
        "family": family, "preset": "nano", "epochs": 3, "batch_size": 4, "micro_batch_size": 4, "base_learning_rate": 0.1, "ema_decay": 0.5,
    }  # fmt: skip

    def go(folder):
        return train("pretraining", recipe, tmp_path / "train.parquet", tmp_path / folder, use_cpu=True, save_every=1, seed=2)

    whole = go("whole")
    trainer, finished = run.EventTrainer, run.save_checkpoint

    def interrupted(*args, **kwargs):
        made = trainer(*args, **kwargs)
        made.add_callback(StopAfter(6))
        return made

    with monkeypatch.context() as patch:
        patch.setattr(run, "EventTrainer", interrupted)
        patch.setattr(run, "save_checkpoint", lambda *args: None)
        go("halves")
    assert run.save_checkpoint is finished
    halves = go("halves")
    assert json.loads((halves / "training.json").read_text())["resumed"]
    one, other = (AutoModel.from_pretrained(folder).state_dict() for folder in (whole, halves))
    assert all(torch.equal(one[name], other[name]) for name in one)

    flavour = train("flavour", recipe, tmp_path / "train.parquet", tmp_path / "flavour", whole, use_cpu=True)
    for folder in (whole, flavour):
        result = evaluate(folder, tmp_path / "test.parquet", num_resamples=10, use_cpu=True)
        (tmp_path / f"{folder.name}.json").write_text(json.dumps(result))
        card = make_card(folder, tmp_path)
        assert card.data.tags[0] == family
        assert str(result["num_events"]) in card.text


@pytest.mark.parametrize("checkpoint", list_checkpoints())
def test_bundled_ids_load_without_a_network(checkpoint, monkeypatch):
    monkeypatch.setattr("socket.socket.connect", None)
    config = AutoConfig.from_pretrained(checkpoint)
    assert config.name_or_path == checkpoint
    assert AutoProcessor.from_pretrained(checkpoint).spec.hash == config.spec.hash
    assert type(AutoModel.from_pretrained(checkpoint)) is get_family(config.model_type).get("Model")


@pytest.mark.slow
@pytest.mark.parametrize(
    "before",
    [
        "import nufm_hub; import transformers",
        "import transformers; import nufm_hub",
        "from transformers import AutoModel, AutoConfig, AutoFeatureExtractor; import nufm_hub",
        "import nufm_hub; from transformers import BertModel, Trainer, pipeline",
        "import nufm_hub; from transformers.modeling_layers import GradientCheckpointingLayer",
        "import nufm_hub; from transformers.modeling_utils import PreTrainedModel",
        "from nufm_hub import NuFMModel",
        "import nufm_hub.models.nufm",
    ],
)
def test_the_library_knows_every_family_in_any_order_of_imports(before, tmp_path):
    folder = checkpoint_path("fasercal-mae")
    code = (
        f"{before}\nimport sys, transformers\n"
        f"assert {before == 'from nufm_hub import NuFMModel'} or 'nufm_hub.models.nufm.modeling_nufm' not in sys.modules\n"
        f"found = [getattr(transformers, name).from_pretrained({str(folder)!r}) for name in "
        "('AutoConfig', 'AutoFeatureExtractor', 'AutoModel', 'AutoModelForPreTraining')]\n"
        "print([type(each).__name__ for each in found])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "['NuFMConfig', 'NuFMProcessor', 'NuFMModel', 'NuFMForPreTraining']"
