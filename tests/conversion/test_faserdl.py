"""Converted checkpoints against the published forward pass; refusals."""

import importlib.util
import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer import Typer
from typer.testing import CliRunner

from nufm_hub.conversion import convert_faserdl
from nufm_hub.conversion.command import convert
from nufm_hub.conversion.names import minkowski_kernel
from nufm_hub.detectors import TrackBranch, load_detector
from nufm_hub.events import read_events
from nufm_hub.events.samples import sample_path
from nufm_hub.models import (
    NuFMForCharmClassification,
    NuFMForEventParticleID,
    NuFMForFlavourClassification,
    NuFMForParticleID,
    NuFMForVertexRegression,
    NuFMModel,
    NuFMProcessor,
)

_spec = importlib.util.spec_from_file_location("faserdl_reference", Path(__file__).with_name("faserdl_reference.py"))
theirs = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(theirs)

STATISTICS = {"k": 0.7, "mu": 1.2, "sigma": 0.8}
SHAPES = {"fcal": (48, 48, 200), "ahcal": (18, 18, 40), "ecal": (18, 18, 40)}
# Voxels in FASERCal, AHCAL (and the sparse ECAL), tracks. A branch of one voxel counts as empty.
EVENTS = [(400, 60, 2), (0, 0, 0), (1, 0, 1), (1, 1, 0), (0, 40, 0), (70, 1, 3), (2, 2, 1)]
SMALL, HEADS = 48, 4


def save(weights, path, **more):
    """As Lightning writes it."""
    torch.save({"state_dict": {f"model.{k}": v for k, v in weights.items()}, "epoch": 3, **more}, path)
    return path


def voxels(count, shape, generator, spread=None):
    """Distinct voxels; within `spread` of a corner along each axis."""
    x, y, z = spread or shape
    cell = torch.randperm(x * y * z, generator=generator)[:count]
    coordinates = torch.stack([cell // (y * z), cell // z % y, cell % z], dim=1)
    return coordinates, torch.randn(count, 1, generator=generator)


def fasercal_event(seed, counts, sparse_ecal=False, features=6):
    g = torch.Generator().manual_seed(seed)
    fcal, ahcal, tracks = counts
    return {
        "fcal": voxels(fcal, SHAPES["fcal"], g, (48, 30, 75)),  # some modules stay empty
        "ahcal": voxels(ahcal, SHAPES["ahcal"], g),
        "ecal": voxels(ahcal, SHAPES["ecal"], g) if sparse_ecal else torch.randn(25, generator=g),
        "tracks": torch.randn(tracks, features, generator=g),
    }


def pad(rows, fill):
    length = max(len(r) for r in rows)
    return torch.stack([torch.cat([r, torch.full((length - len(r), *r.shape[1:]), fill, dtype=r.dtype)]) for r in rows])


def batch(events, names):
    """Our inputs for events of theirs."""
    inputs = {
        "voxel_coordinates": pad([torch.cat([e[n][0] for n in names]) for e in events], 0),
        "voxel_features": pad([torch.cat([e[n][1] for n in names]) for e in events], 0.0),
        "voxel_branch": pad([torch.cat([torch.full((len(e[n][0]),), i) for i, n in enumerate(names)]) for e in events], -1),
    }
    if "tracks" in events[0]:
        inputs["track_features"] = pad([e["tracks"] for e in events], 0.0)
        inputs["track_mask"] = pad([torch.ones(len(e["tracks"])).bool() for e in events], False)
    if "features" in events[0]:
        inputs["track_features"] = torch.stack([e["features"] for e in events])[:, None]
        inputs["track_mask"] = torch.ones(len(events), 1).bool()
    if "ecal" in events[0] and "ecal" not in names:
        inputs["image_features"] = torch.stack([e["ecal"] for e in events])
    return inputs


def close(got, wanted, what):
    """To 1e-5 of the largest value, in single precision; in double precision, only the rounding of the frozen positions is left."""
    atol = 1e-5 * max(1.0, wanted.abs().max().item()) if got.dtype == torch.float32 else 1e-6
    torch.testing.assert_close(got.double(), wanted, atol=atol, rtol=0, msg=lambda m: f"{what}: {m}")


@torch.no_grad()
def compare(folder, events, names, references, heads=()):
    """Latents, tokens and pooled vector event by event, in a batch; then the heads, as (class, folder, name of the reference)."""
    inputs = batch(events, names)
    for dtype in (torch.float32, torch.float64):
        model = NuFMModel.from_pretrained(folder, dtype=dtype).eval()
        out = model(**inputs)
        for i, reference in enumerate(references):
            close(out.last_hidden_state[i][out.latent_mask[i]], reference["latents"], f"latents of event {i}")
            close(out.pooler_output[i], reference["pooled"], f"pooled vector of event {i}")
            seen = []
            hook = model.encoder.tokens_norm.register_forward_hook(lambda module, inputs, output, seen=seen: seen.append(output))
            model(**batch(events[i : i + 1], names))
            hook.remove()
            close(seen[0], reference["tokens"], f"tokens of event {i}")
        for cls, head_folder, name in heads:
            logits = cls.from_pretrained(head_folder, dtype=dtype).eval()(**inputs).logits
            close(logits, torch.stack([r[name] for r in references]), name)


@pytest.mark.parametrize(
    ("size", "heads", "depth", "fusion_depth", "events"),
    [
        pytest.param(SMALL, HEADS, 2, 6, EVENTS, id="tiny"),
        pytest.param(SMALL, HEADS, 4, 4, EVENTS, id="base"),
        pytest.param(384, 12, 2, 6, EVENTS[1:4], id="tiny, published width", marks=pytest.mark.slow),
        pytest.param(384, 12, 4, 4, EVENTS[:3], id="base, published width", marks=pytest.mark.slow),
    ],
)
def test_fine_tuned_fasercal(tmp_path, size, heads, depth, fusion_depth, events):
    weights = theirs.fasercal_weights(size, depth, fusion_depth)
    checkpoint = save(weights, tmp_path / "a.ckpt")
    tasks = ("encoder", "flavour", "charm", "vertex")
    folders = {task: convert_faserdl(checkpoint, tmp_path / task, STATISTICS, task, heads=heads) for task in tasks}
    events = [fasercal_event(i, counts) for i, counts in enumerate(events)]
    references = [theirs.fasercal(e, weights.doubles(), heads, SHAPES) for e in events]
    classes = (NuFMForFlavourClassification, NuFMForCharmClassification, NuFMForVertexRegression)
    compare(folders["encoder"], events, ["fcal", "ahcal"], references, [(c, folders[n], n) for c, n in zip(classes, ("flavour", "charm", "vertex"))])
    config = NuFMForFlavourClassification.from_pretrained(folders["flavour"]).config
    assert config.spec == load_detector("fasercal")
    assert list(config.id2label.values()) == list(load_detector("fasercal").event_labels["flavour"])
    assert (config.window_depths, config.fusion_depth, config.mlp_ratio) == ([depth] * 2, fusion_depth, 4)
    record = json.loads((folders["flavour"] / "conversion.json").read_text())
    assert "heads.vis.2.mlp.weight" in record["left_out"]
    assert not any(name.startswith(("heads.flavour", "blocks")) for name in record["left_out"])
    z = NuFMProcessor.from_pretrained(folders["flavour"]).statistics["voxels"]["3dcal"]
    assert z == {"k": [0.7], "mean": [1.2], "std": [0.8]}


def test_pre_training_checkpoint(tmp_path):
    """The encoder moves, the decoder is left out; weights of losses live outside the network."""
    weights = theirs.fasercal_weights(SMALL, 2, 2, kind="pretrain", seed=1)
    path = tmp_path / "a.ckpt"
    state = {f"model.{k}": v for k, v in weights.items()} | {"uncertainty.occ": torch.zeros(1)}
    torch.save({"state_dict": state}, path)
    folder = convert_faserdl(path, tmp_path / "out", STATISTICS, heads=HEADS)
    events = [fasercal_event(i, counts) for i, counts in enumerate(EVENTS[:3])]
    compare(folder, events, ["fcal", "ahcal"], [theirs.fasercal(e, weights.doubles(), HEADS, SHAPES) for e in events])
    left_out = json.loads((folder / "conversion.json").read_text())["left_out"]
    assert "uncertainty.occ" in left_out
    assert "heads.gho.weight" in left_out
    assert not [n for n in left_out if n.startswith(("blocks", "kv_src", "intra_pos"))]


def test_task_tokens(tmp_path):
    """They pool instead of the mean: the encoder under them moves, heads on them do not."""
    weights = theirs.fasercal_weights(SMALL, 1, 1)
    weights.random("task_tokens", 1, 5, SMALL)
    weights.random("gamma", 1)
    weights.norm("latents_norm")
    weights.linear("task_cross_attn.q", SMALL, SMALL)
    checkpoint = save(weights, tmp_path / "a.ckpt")
    for task in (None, "vertex"):
        with pytest.raises(ValueError, match=r"task tokens.*'gamma', .*'task_tokens'\]; task='encoder' leaves them out"):
            convert_faserdl(checkpoint, tmp_path / "out", STATISTICS, task, heads=HEADS)
    folder = convert_faserdl(checkpoint, tmp_path / "out", STATISTICS, "encoder", heads=HEADS)
    assert {"task_tokens", "gamma", "latents_norm.bias"} < set(json.loads((folder / "conversion.json").read_text())["left_out"])
    events = [fasercal_event(i, counts) for i, counts in enumerate(EVENTS[:2])]
    compare(folder, events, ["fcal", "ahcal"], [theirs.fasercal(e, weights.doubles(), HEADS, SHAPES) for e in events])


def test_sparse_ecal_and_older_tracks(tmp_path):
    spec = load_detector("fasercal")
    tracks = TrackBranch("muon", spec.track_branch.features, 10, ("charge", "py", "pz", "chi2", "sigma_p"))
    detector = replace(spec, branches=(*spec.voxel_branches, replace(spec.voxel_branches[1], name="ecal"), tracks))
    weights = theirs.fasercal_weights(SMALL, 1, 2, sparse_ecal=True, features=5)
    checkpoint = save(weights, tmp_path / "a.ckpt")
    folder = convert_faserdl(checkpoint, tmp_path / "out", STATISTICS, "encoder", detector, HEADS)
    events = [fasercal_event(i, counts, sparse_ecal=True, features=5) for i, counts in enumerate(EVENTS)]
    compare(folder, events, ["fcal", "ahcal", "ecal"], [theirs.fasercal(e, weights.doubles(), HEADS, SHAPES) for e in events])
    with pytest.raises(ValueError, match="third one"):
        convert_faserdl(checkpoint, tmp_path / "b", STATISTICS, heads=HEADS)
    with pytest.raises(ValueError, match="5 features a track"):
        convert_faserdl(checkpoint, tmp_path / "b", STATISTICS, detector=replace(detector, branches=(*detector.voxel_branches, spec.track_branch)))


def test_patches_of_older_models(tmp_path):
    """16 x 16 x 4 patches: the packaged detector takes over the checkpoint's."""
    weights = theirs.fasercal_weights(SMALL, 1, 1)
    weights.patches("fcal_patch_embed", (4, 4, 2), (4, 4, 2))
    weights.position("intra_pos_embed", (3, 3, 5))
    checkpoint = save(weights, tmp_path / "a.ckpt")
    folder = convert_faserdl(checkpoint, tmp_path / "out", STATISTICS, heads=HEADS)
    events = [fasercal_event(i, counts) for i, counts in enumerate(EVENTS[:2])]
    compare(folder, events, ["fcal", "ahcal"], [theirs.fasercal(e, weights.doubles(), HEADS, SHAPES) for e in events])
    assert NuFMModel.from_pretrained(folder).config.spec.voxel_branches[0].window == (3, 3, 5)


@pytest.mark.parametrize(
    ("name", "shape", "window", "classes", "size", "heads", "depths"),
    [
        ("pilarnet", (168, 168, 180), (2, 2, 3), 5, SMALL, HEADS, (2, 3)),
        ("superfgd", (120, 120, 120), (2, 2, 2), 4, SMALL, HEADS, (2, 3)),
        pytest.param("superfgd", (120, 120, 120), (2, 2, 2), 4, 384, 12, (4, 4), marks=pytest.mark.slow),
        pytest.param("pilarnet", (168, 168, 180), (2, 2, 3), 5, 384, 12, (4, 4), marks=pytest.mark.slow),
    ],
)
def test_transferred_models(tmp_path, name, shape, window, classes, size, heads, depths):
    grid = tuple(-(-n // (p * m)) for n, p, m in zip(shape, (12, 12, 10), window))
    context = name == "superfgd"
    weights = theirs.crop_weights(size, *depths, window, grid, classes, context)
    checkpoint = save(weights, tmp_path / "a.ckpt")
    folder = convert_faserdl(checkpoint, tmp_path / "out", STATISTICS, heads=heads)
    encoder = convert_faserdl(checkpoint, tmp_path / "encoder", STATISTICS, "encoder", heads=heads)
    events = []
    for seed, (number, spread) in enumerate([(300, (60, 60, 90)), (1, (20, 20, 20)), (2, shape), (40, shape)][: 2 if size > SMALL else 4]):
        g = torch.Generator().manual_seed(seed)
        events.append({"voxels": voxels(number, shape, g, spread)} | ({"features": torch.randn(31, generator=g)} if context else {}))
    references = [theirs.crop(e, weights.doubles(), heads, shape, window) for e in events]
    compare(encoder, events, ["voxels"], references, [(NuFMForParticleID, folder, "particle")])
    model = NuFMForParticleID.from_pretrained(folder)
    assert list(model.config.id2label.values()) == list(load_detector(name).event_labels["particle"])


def test_particles_with_features(tmp_path):
    """PILArNet with 31 features a particle: one by one, and with all particles of an event."""
    shape, window, grid = (168, 168, 180), (2, 2, 3), (7, 7, 6)
    crops = []
    for seed, number in enumerate([30, 5, 8, 60, 7]):
        g = torch.Generator().manual_seed(seed)
        crops.append({"voxels": voxels(number, shape, g, (40, 40, 60)), "features": torch.randn(31, generator=g)})
    events = torch.tensor([0, 1, 0, 0, 1])  # need not be in order

    single = theirs.crop_weights(SMALL, 1, 1, window, grid, 5, features=True)
    folder = convert_faserdl(save(single, tmp_path / "a.ckpt"), tmp_path / "single", STATISTICS, heads=HEADS)
    wanted = {folder: torch.stack([theirs.crop(c, single.doubles(), HEADS, shape, window)["particle"] for c in crops])}
    multi = theirs.event_weights(SMALL, 1, 1, window, grid, 5)
    folder = convert_faserdl(save(multi, tmp_path / "b.ckpt"), tmp_path / "multi", STATISTICS, heads=HEADS)
    wanted[folder] = torch.empty(5, 5, dtype=torch.float64)
    for number in (0, 1):
        rows = (events == number).nonzero().squeeze(1)
        wanted[folder][rows] = theirs.particles([crops[i] for i in rows], multi.doubles(), HEADS, shape, window)
    assert "encoder.head_pid.2.weight" in json.loads((folder / "conversion.json").read_text())["left_out"]

    for place, logits in wanted.items():
        for dtype in (torch.float32, torch.float64):
            model = NuFMForEventParticleID.from_pretrained(place, dtype=dtype).eval()
            with torch.no_grad():
                close(model(**batch(crops, ["voxels"]), particle_event=events).logits, logits, place.name)


def test_minkowski_kernels(tmp_path):
    """The same network with MinkowskiEngine's flat kernels, x fastest."""
    weights = theirs.fasercal_weights(SMALL, 1, 1)
    flat = dict(weights)
    for name in ("fcal_patch_embed.0", "fcal_patch_embed.3", "ahcal_patch_embed"):
        kernel = flat.pop(f"{name}.weight")  # Cout, x, y, z, Cin
        out, x, y, z, inputs = kernel.shape
        flat[f"{name}.kernel"] = torch.stack([kernel[:, i, j, k].T for k in range(z) for j in range(y) for i in range(x)])
        assert flat[f"{name}.kernel"].shape == (x * y * z, inputs, out)
        if f"{name}.bias" in flat:
            flat[f"{name}.bias"] = flat[f"{name}.bias"][None]
    one, two = (convert_faserdl(save(w, tmp_path / f"{i}.ckpt"), tmp_path / str(i), STATISTICS, heads=HEADS) for i, w in enumerate((weights, flat)))
    states = [NuFMForFlavourClassification.from_pretrained(f).state_dict() for f in (one, two)]
    assert all(torch.equal(states[0][n], states[1][n]) for n in states[0])
    with pytest.raises(ValueError, match="is no kernel of 2 x 2 x 2 places"):
        minkowski_kernel(torch.zeros(12, 1, 4), (2, 2, 2))
    assert minkowski_kernel(torch.zeros(3, 4), (1, 1, 1)).shape == (4, 3, 1, 1, 1)


class Harmful:
    def __reduce__(self):
        return (exec, ("raise SystemExit('this must never run')",))


def test_refusals(tmp_path):
    weights = theirs.fasercal_weights(SMALL, 1, 1)
    good = save(weights, tmp_path / "good.ckpt")

    def refused(message, changed=None, statistics=STATISTICS, path=None, **options):
        if path is None:
            path = good if changed is None else save(changed, tmp_path / "bad.ckpt")
        with pytest.raises(ValueError, match=message):
            convert_faserdl(path, tmp_path / "out", statistics, **{"heads": HEADS, **options})
        assert not (tmp_path / "out").exists()

    refused("statistics", statistics=None)
    refused("no valid std", statistics={"k": 1, "mu": 0, "sigma": 0})
    refused("either k, mu and sigma", statistics={"k": 1})
    refused("cannot read statistics", statistics=tmp_path / "none.json")
    refused(r"\['blocks\.0\.attn\.gate', 'surplus'\]", {**weights, "surplus": torch.zeros(2), "blocks.0.attn.gate": torch.zeros(2)})
    lacking = {k: v for k, v in weights.items() if k not in ("ahcal_norm.bias", "kv_src_embed.weight")}
    refused(r"missing embeddings\.voxels\.1\.source.*missing encoder\.branches\.1\.norm\.bias", lacking)
    refused(r"lacks \['norm\.weight'\]", {k: v for k, v in weights.items() if k != "norm.weight"})
    refused("no faserDL encoder", {"something": torch.zeros(2)})
    refused(r"encoder\.tokens_norm\.weight \(7,\) should be", {**weights, "tokens_norm.weight": torch.ones(7)})
    refused(r"blocks\.0\.mlp\.fc1\.bias", {**weights, "blocks.0.mlp.fc1.bias": torch.full((4 * SMALL,), float("nan"))})
    refused("intra_pos_embed", {**weights, "intra_pos_embed.weight": weights["intra_pos_embed.weight"].flip(0)})
    refused("num_attention_heads=5", heads=5)
    refused(r"can become one of \['charm', 'encoder', 'flavour', 'vertex'\]", task="particle")
    refused("can become one of", task="momentum")
    refused("unknown detector", detector="nowhere")
    harmful = tmp_path / "harmful.ckpt"
    torch.save({"state_dict": {f"model.{k}": v for k, v in weights.items()}, "hyper_parameters": Harmful()}, harmful)
    refused("without running code", path=harmful)
    (tmp_path / "text.ckpt").write_text("hello")
    refused("without running code", path=tmp_path / "text.ckpt")
    refused("cannot read", path=tmp_path / "none.ckpt")
    torch.save({"epoch": 1}, tmp_path / "empty.ckpt")
    refused("no state_dict", path=tmp_path / "empty.ckpt")


def test_command(tmp_path, monkeypatch, capsys):
    weights = theirs.fasercal_weights(SMALL, 1, 1)
    checkpoint = save(weights, tmp_path / "a.ckpt")
    app = Typer()
    app.command()(convert)
    run = CliRunner().invoke(app, [str(checkpoint), str(tmp_path / "out"), "--charge", "0.7", "1.2", "0.8", "--heads", "4"])
    assert run.exit_code == 0, run.output
    assert NuFMForFlavourClassification.from_pretrained(tmp_path / "out").config.num_labels == 6
    assert "no statistics of ecal, muon and takes no events yet" in run.output
    assert json.loads((tmp_path / "out" / "conversion.json").read_text())["statistics_missing"] == ["ecal", "muon"]
    with pytest.raises(ValueError, match="no statistics"):
        NuFMProcessor.from_pretrained(tmp_path / "out")(next(read_events(sample_path("fasercal"))))
    again = CliRunner().invoke(app, [str(checkpoint), str(tmp_path / "out"), "--charge", "0.7", "1.2", "0.8", "--heads", "4"])
    assert again.exit_code == 2
    (tmp_path / "s.json").write_text(json.dumps(STATISTICS))
    monkeypatch.syspath_prepend(Path(__file__).parents[2])

    def module(*arguments):
        """`python -m conversion.faserdl`; its exit code."""
        monkeypatch.setattr(sys, "argv", ["faserdl", *map(str, arguments), "--heads", "4"])
        with pytest.raises(SystemExit) as end:
            runpy.run_module("conversion.faserdl", run_name="__main__")
        return end.value.code

    assert not module(checkpoint, tmp_path / "two", "--statistics", tmp_path / "s.json")
    assert (tmp_path / "two" / "model.safetensors").read_bytes() == (tmp_path / "out" / "model.safetensors").read_bytes()
    assert module(checkpoint, tmp_path / "three", "--charge", "0.7", "1.2", "0.8", "--task", "particle") == 2
    assert "can become one of" in capsys.readouterr().err
    bare = CliRunner().invoke(app, [str(checkpoint), str(tmp_path / "three")])
    assert bare.exit_code == 2
    assert "statistics" in bare.output
    assert not (tmp_path / "three").exists()
