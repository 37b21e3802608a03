"""Cards: the committed ones are what the command writes, their metadata is what the Hub reads, and their numbers are those of the files."""

import json
import re
import shlex
import shutil
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results
from typer.main import get_command
from typer.testing import CliRunner

from nufm_hub import (
    NuFMConfig,
    NuFMForParticleID,
    NuFMForPreTraining,
    NuFMProcessor,
    checkpoint_path,
    list_checkpoints,
    load_detector,
    read_events,
    sample_path,
    transfer_encoder,
    write_events,
)
from nufm_hub.cards import make_card
from nufm_hub.cli import app
from nufm_hub.evaluation import evaluate, weights_sha256
from nufm_hub.events.crop_files import CropSettings
from nufm_hub.studies.label_factor import compare_with_reference
from nufm_hub.studies.tables import spread, summarise, write_results
from nufm_hub.studies.transfer import outside_intervals

CARDS = Path(__file__).parents[2] / "model_cards"
RESULTS = CARDS / "results"
NAMES = list_checkpoints()
HEAD = "nufm/fasercal-mae-rel-flavour"
COMMAND = "nufm card --all"
# what a card calls them -> names in the files
QUANTITIES = {"pre-training loss": "pretraining", "missing pT": "missing_pt", "missing pT above 1 GeV": "missing_pt_above_1gev"}


def path_of(name: str) -> Path:
    return CARDS / f"{name.removeprefix('nufm/')}.md"


def rows_of(text: str) -> list[list[str]]:
    """Cells of all rows of all tables."""
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line.startswith("| ")]


def shown(value: float) -> str:
    return f"{value:.4g}"


@pytest.mark.parametrize("name", NAMES)
def test_committed_cards_are_what_the_command_writes(name):
    assert path_of(name).is_file(), f"there is no card of {name}: run `nufm evaluate {name} --out {RESULTS.name}/...` and `{COMMAND}`"
    same = path_of(name).read_bytes() == str(make_card(name, RESULTS)).encode()
    assert same, f"the card of {name} is not what its files say: run `{COMMAND}`"


def test_there_are_no_cards_of_what_is_gone():
    assert {p.name for p in CARDS.glob("*.md")} <= {path_of(name).name for name in NAMES} | {"README.md"}


@pytest.mark.parametrize("name", NAMES)
def test_metadata(name):
    card, training = ModelCard.load(path_of(name)), json.loads((checkpoint_path(name) / "training.json").read_text())
    data, results = card.data, json.loads((RESULTS / f"{path_of(name).stem}.json").read_text())
    assert (data.license, data.library_name, data.model_name) == ("apache-2.0", "transformers", path_of(name).stem)
    assert {"nufm", results["data"]["detector"].removesuffix("-crop"), "simulated-data"} <= {tag.removesuffix("-crop") for tag in data.tags}
    assert getattr(data, "base_model", None) == training["source"]
    written = data.to_dict()["model-index"]
    assert eval_results_to_model_index(data.model_name, data.eval_results) == written
    model_name, read = model_index_to_eval_results(written)
    assert (model_name, len(read)) == (data.model_name, len(data.eval_results))
    for result in data.eval_results:
        quantity = result.metric_name.partition(":")[0]
        scores = results["metrics"][QUANTITIES.get(quantity, quantity.replace(" ", "_"))]
        assert result.metric_value == scores[result.metric_type]
        assert result.metric_args.get("low") == scores.get(f"{result.metric_type}_low")
        assert result.dataset_revision == results["data"]["events_sha256"]
    assert ModelCard(str(card)).content == card.content


@pytest.mark.parametrize("name", NAMES)
def test_numbers_are_those_of_the_files(name):
    """Every number of the evaluation is on the card, with its interval and for every class."""
    text = path_of(name).read_text(encoding="utf-8")
    rows, results = rows_of(text), json.loads((RESULTS / f"{path_of(name).stem}.json").read_text())
    for scores in results["metrics"].values():
        for key, value in scores.items():
            if key.endswith(("_low", "_high")) or key.startswith("num_") or isinstance(value, list):
                continue
            if isinstance(value, float):
                interval = f"{shown(low)} to {shown(scores[f'{key}_high'])}" if (low := scores.get(f"{key}_low")) is not None else "–"
                assert [shown(value), interval, str(scores["num_events"])] in [row[2:] for row in rows]
            elif key == "auroc":
                for of_class, area in value.items():
                    row = next(row for row in rows if row[0] == of_class)
                    assert row[2].startswith("undefined" if area is None else f"{shown(area)} ({shown(scores['auroc_low'][of_class])} to ")
    training = json.loads((checkpoint_path(name) / "training.json").read_text())
    for number in (training["parameters"], training["data"]["train"]["events"]):
        assert f"{number:,}" in text
    assert f"{training['seconds']:,.0f}" in text
    assert f"{shown(results['events_per_second'])} events a second" in text


@pytest.mark.parametrize("name", NAMES)
def test_what_a_card_must_not_hide(name):
    text = " ".join(path_of(name).read_text(encoding="utf-8").split())
    for words in (
        "small model",
        "It is not the model of [arXiv:2604.07037]",
        "All events are simulated",
        "not fit for physics results",
        "stand-in tables",
    ):
        assert words in text
    if "mae-rel" in name:
        assert "Simulation truth was used in pre-training" in text or "their pre-training used simulation truth" in text
    if name.startswith("nufm/fasercal"):
        assert "no nuclear rescattering" in text
    assert not re.search(r"(?<![\w.])/(?:home|root|tmp|work)/", text)


@pytest.mark.parametrize("name", NAMES)
def test_code_runs(name, capsys):
    code = re.search(r"^```python\n(.*?)^```$", path_of(name).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)[1]
    exec(compile(code, str(path_of(name)), "exec"), {})
    assert capsys.readouterr().out


@pytest.mark.parametrize("name", NAMES)
def test_commands_are_understood(name):
    """Their options exist and take these values; nothing is run."""
    blocks = re.findall(r"^```bash\n(.*?)^```$", path_of(name).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    commands = [shlex.split(line) for block in blocks for line in block.splitlines() if line.startswith("nufm ")]
    assert {words[1] for words in commands} >= {"simulate", "evaluate", "card"}
    for _, *words in commands:
        command = get_command(app)
        while hasattr(command, "commands"):
            command, words = command.commands[words[0]], words[1:]
        command.make_context("nufm", list(words))


@pytest.fixture
def folder(tmp_path):
    """A head that records what it started from, and its results, to be spoilt."""
    (tmp_path / "results").mkdir()
    shutil.copy(RESULTS / f"{path_of(HEAD).stem}.json", tmp_path / "results")
    shutil.copytree(checkpoint_path(HEAD), tmp_path / path_of(HEAD).stem)
    record(tmp_path, source="nufm/fasercal-mae-rel", source_sha256=ENCODER)
    return tmp_path


ENCODER = weights_sha256(checkpoint_path("nufm/fasercal-mae-rel"))


def record(folder: Path, **changes) -> Path:
    path = folder / path_of(HEAD).stem / "training.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return path.parent


def test_the_card_follows_the_weights_not_their_name(folder):
    text = " ".join(str(make_card(record(folder), folder / "results")).split())
    assert "**Simulation truth was used in pre-training** (`nufm/fasercal-mae-rel`)" in text
    assert "`nufm/fasercal-mae-rel` (pretraining):" in text
    for digest, words in (("f" * 64, "(SHA-256 `ffffffffffffffff`) do not come with the package"), (None, "is not recorded, so that this card")):
        text = " ".join(str(make_card(record(folder, source_sha256=digest), folder / "results")).split())
        assert words in text
        assert "By its name, their pre-training used simulation truth" in text
        assert "(pretraining):" not in text


def spoil(folder: Path, **changes) -> Path:
    path = folder / "results" / f"{path_of(HEAD).stem}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder / "results"


def test_command(folder):
    result = CliRunner().invoke(app, ["card", HEAD, "--results", str(folder / "results"), "--out", str(folder / "cards")])
    assert result.exit_code == 0, result.output
    assert [p.name for p in (folder / "cards").iterdir()] == [path_of(HEAD).name]
    for arguments in ([], [HEAD, "--all"]):
        result = CliRunner().invoke(app, ["card", *arguments])
        assert result.exit_code == 2
        assert "--all" in result.output


def test_nothing_is_invented(folder):
    (folder / "empty").mkdir()
    with pytest.raises(ValueError, match=f"no results of {HEAD}.*run `nufm evaluate {HEAD} --out"):
        make_card(HEAD, folder / "empty")
    with pytest.raises(ValueError, match="of other weights"):
        make_card(HEAD, spoil(folder, weights_sha256="0" * 64))
    right = json.loads((RESULTS / f"{path_of(HEAD).stem}.json").read_text())["weights_sha256"]
    with pytest.raises(ValueError, match="was trained on"):
        make_card(HEAD, spoil(folder, weights_sha256=right, held_out=False))
    with pytest.raises(ValueError, match=r"without \['ecal'\]"):
        make_card(HEAD, spoil(folder, held_out=True, absent=["ecal"]))
    shutil.copytree(checkpoint_path(HEAD), folder / "copy")
    (folder / "copy" / "training.json").unlink()
    with pytest.raises(ValueError, match=r"no training\.json"):
        make_card(folder / "copy", RESULTS)
    assert "cannot be said whether a training saw them" in " ".join(str(make_card(HEAD, spoil(folder, absent=[], held_out=None))).split())


def study_file(results: Path, name: str, sha256: str, detector: str = "fasercal") -> None:
    values = {"scratch": {100: (0.60, 0.64), 1000: (0.80, 0.82)}, "mae-rel": {100: (0.70, 0.72), 1000: (0.79, 0.81)}}
    intervals = {"flavour.macro_auroc_low": 0.0, "flavour.macro_auroc_high": 1.0, "flavour.auroc_low.nc": 0.0, "flavour.auroc_high.nc": 1.0}
    rows = []
    for initialisation, by_labels in values.items():
        for labels, pair in by_labels.items():
            for seed, value in enumerate(pair):
                row = {"initialisation": initialisation, "labels": labels, "seed": seed, "vertex.vertex_bias_x": 1.0, **intervals}
                rows.append(row | {"flavour.macro_auroc": value, "flavour.auroc.nc": 1 - value})
    summary = {
        "study": name,
        "runs": {"finished": 8, "planned": 9},
        "initialisations": {"scratch": None, "mae-rel": {"checkpoint": "nufm/fasercal-mae-rel", "sha256": sha256}},
        "data": {"train": {"detector": detector}},
        "summary": summarise(rows, ["initialisation", "labels"]),
        "against_scratch": compare_with_reference(rows),
        "outside_intervals": outside_intervals(rows),
        "steps_to_reference_loss": [
            {"initialisation": "mae-rel", "labels": 100, "target": "final", "runs": 2, "reached": 2, "share": spread([0.4, 0.6])},
            {"initialisation": "mae-rel", "labels": 1000, "target": "final", "runs": 2, "reached": 0, "share": spread([])},
        ],
    }
    write_results(name, rows, summary, results)
    (results / f"{name}-curves.png").touch()


def test_studies_of_the_same_weights_are_shown_with_what_got_worse(folder):
    results = folder / "results"
    study_file(results, "data-efficiency", ENCODER)
    study_file(results, "transfer-superfgd", ENCODER, "superfgd")
    study_file(results, "stale", "0" * 64)
    study_file(results, "data-efficiency-vertex", "1" * 64)
    (results / "longer").mkdir()
    study_file(results / "longer", "data-efficiency", ENCODER)
    text = str(make_card(record(folder), results))
    rows = rows_of(text)
    assert ["flavour macro-AUROC", "100", "0.62 ± 0.02828 (0.6 to 0.64)", "0.71 ± 0.01414 (0.7 to 0.72)"] in rows
    assert ["flavour macro-AUROC", "1000", "0.81 ± 0.01414 (0.8 to 0.82)", "0.8 ± 0.01414 (0.79 to 0.81) (worse)"] in rows
    assert ["flavour AUROC nc", "100", "0.38 ± 0.02828 (0.36 to 0.4)", "0.29 ± 0.01414 (0.28 to 0.3) (worse)"] in rows
    assert "`mae-rel` is better than training from scratch in 2 of the numbers below, classes included, and worse in 2." in text
    assert "mean over 2 seeds" in text
    assert "Made by `nufm study data-efficiency`" in text
    assert "[data-efficiency-curves.png](results/data-efficiency-curves.png)" in text
    assert "8 of 9 runs are done" in text
    assert "data-efficiency-vertex-curves.png" not in text  # of another study
    assert "### Data-efficiency (longer)" in text
    assert "[longer/data-efficiency-curves.png](results/longer/data-efficiency-curves.png)" in text
    factor = np.exp(np.interp(0.71, (0.62, 0.81), np.log((100, 1000)))) / 100
    by_seed = [np.exp(np.interp(v, c, np.log((100, 1000)))) / 100 for v, c in ((0.70, (0.60, 0.80)), (0.72, (0.64, 0.82)))]
    assert ["flavour macro-AUROC", "100", "mae-rel", shown(factor), ", ".join(map(shown, by_seed))] in rows
    assert ["flavour macro-AUROC", "100", "mae-rel", "0", "0", "2"] in rows
    assert ["100", "mae-rel", "final", "2 of 2", "0.5 (0.4 to 0.6)"] in rows
    assert ["1000", "mae-rel", "final", "0 of 2", "–"] in rows
    assert "superfgd" not in text
    shutil.copy(RESULTS / "fasercal-mae-rel.json", results)
    assert "Made by `nufm study transfer superfgd`" in str(make_card("nufm/fasercal-mae-rel", results))
    assert "earlier weights of the same name are left out: data-efficiency-vertex, stale" in text


def test_without_a_study_the_card_says_so(folder):
    assert "Not measured for these weights" in str(make_card(HEAD, folder / "results"))


def test_particles_on_another_detector(tmp_path):
    """A transferred model of crops whose training and test are parts of one simulation."""
    source = load_detector("superfgd")
    settings = CropSettings.load("superfgd", shape=(72, 72, 72), patch=(12, 12, 12))
    spec = settings.detector(source)
    events = list(islice(read_events(sample_path("superfgd")), 16))
    torch.manual_seed(0)
    small = {"hidden_size": 24, "num_attention_heads": 2, "fusion_depth": 1, "decoder_hidden_size": 12, "decoder_num_attention_heads": 2}
    encoder = NuFMForPreTraining(NuFMConfig.preset("nano", **small))
    encoder.name_or_path = "nufm/fasercal-mae-rel"
    model, report = transfer_encoder(encoder, NuFMForParticleID, spec)
    folder = tmp_path / "toy-pid"
    model.save_pretrained(folder)
    report.save(folder)
    NuFMProcessor.fit([crop for event in events for crop in settings.crops(event, source, spec)], spec).save_pretrained(folder)
    simulation = {k: v for k, v in json.loads(sample_path("superfgd").with_suffix(".json").read_text()).items() if k != "shards"}
    record = {"crops": {"min_voxels": 5}, "split": {"fractions": [0.8, 0.1, 0.1], "seed": 7}, "source": [simulation]}
    training = json.loads((checkpoint_path(HEAD) / "training.json").read_text())
    training |= {
        "task": "particle",
        "transfer": True,
        "source": "nufm/fasercal-mae-rel",
        "source_sha256": ENCODER,
        "data": {"train": {"events": 16, "simulations": [record | {"part": "train"}]}, "validation": None},
    }
    (folder / "training.json").write_text(json.dumps(training))
    data = tmp_path / "test"
    data.mkdir()
    write_events((crop for event in events[:8] for crop in settings.crops(event, source, spec)), data / "crops.parquet", spec)
    (data / "provenance.json").write_text(json.dumps(record | {"part": "test"}))
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "toy-pid.json").write_text(json.dumps(evaluate(folder, data, num_resamples=10)))

    card = make_card(folder, tmp_path / "results")
    text = " ".join(str(card).split())
    assert "groups that belong together were not divided (fractions 0.8, 0.1, 0.1, seed 7)" in text
    assert "started from `nufm/fasercal-mae-rel`, the encoder of another detector" in text
    assert f"Carried over: {report.fraction:.1%} of the encoder's {report.encoder_parameters:,} parameters" in text
    assert "There are no neutrino interactions in it." in text
    assert "nufm finetune particle --recipe recipe.json --events EVENTS --source nufm/fasercal-mae-rel --transfer" in text
    assert f"training, evaluation | {simulation['events']} | {simulation['seed']}" in text
    assert card.data.base_model == "nufm/fasercal-mae-rel"
    assert np.isfinite([r.metric_value for r in card.data.eval_results]).all()
