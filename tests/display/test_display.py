"""Event displays: positions and sums in the pictures, the text, the files, the command."""

import re

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

pytest.importorskip("matplotlib")
pytest.importorskip("plotly")

from nufm_hub.detectors import DetectorSpec, VoxelBranch, load_detector
from nufm_hub.display import event_html, interactive, plot_event
from nufm_hub.display.colouring import colour_choices, colour_voxels
from nufm_hub.display.command import show
from nufm_hub.display.projection import cells, merge_factor, project, view_limits
from nufm_hub.events import Event, Voxels, write_events

FASERCAL = load_detector("fasercal")
CUBES = DetectorSpec(
    "cubes",
    (
        VoxelBranch(
            "lar",
            (768, 768, 768),
            (3, 3, 3),
            (-1152, -1152, -1152),
            (12, 12, 12),
            (4, 4, 4),
            channels=("energy", "time"),
            labels=({"name": "motif", "classes": ("shower", "track")},),
            instances=("particle",),
        ),
    ),
    event_labels={"particle": ("electron", "muon")},
)


def fasercal_event(num_voxels: int = 300, **changes) -> Event:
    """A cone of voxels from the vertex, with labels, towers and two tracks."""
    rng = np.random.default_rng(0)
    z = rng.integers(60, 200, num_voxels)
    xy = 24 + (rng.normal(size=(num_voxels, 2)) * (z[:, None] - 55) / 25).astype(int)
    coordinates = np.unique(np.clip(np.column_stack([xy, z]), 0, [47, 47, 199]), axis=0)
    n = len(coordinates)
    category = np.eye(3, dtype=np.float32)[rng.integers(0, 3, n)]
    category[:5] = 0
    ghost = rng.random((n, 1)).astype(np.float32)
    ghost[:3] = np.nan
    tracks = np.zeros((2, 11), dtype=np.float32)
    tracks[:, 0], tracks[:, 5] = [1, -1], [12.5, 234]
    event = Event(
        "fasercal",
        {
            "3dcal": Voxels(coordinates, rng.gamma(1, 3, n), {"category": category, "ghost": ghost}),
            "ahcal": Voxels(rng.integers(0, 18, (40, 3)), rng.gamma(1, 3, 40)),
        },
        {"ecal": rng.gamma(0.5, 100, (5, 5)).astype(np.float32)},
        {"muon": tracks},
        {
            "flavour": 1,
            "charm": 0,
            "vertex": np.array([3.0, -4, 580]),
            "neutrino_pdg": 14,
            "is_cc": True,
            "neutrino_momentum": np.array([0, 0, 812.0]),
        },
        provenance={"file": "events.parquet", "seed": 1, "index": 7},
    )
    for name, value in changes.items():
        setattr(event, name, value)
    return event


def cubes_event() -> Event:
    steps = np.arange(100)
    coordinates = np.column_stack([300 + steps, 400 - steps, 350 + steps // 2])
    labels = np.eye(2, dtype=np.float32)[(steps > 60).astype(int)]
    values = np.column_stack([np.full(100, 2.0), steps])
    return Event("cubes", {"lar": Voxels(coordinates, values, {"motif": labels}, {"particle": steps // 8})}, truth={"particle": 1})


def texts(figure) -> str:
    """All text of a figure, sub-figures included."""
    import matplotlib.text

    return "\n".join(t.get_text() for t in figure.findobj(matplotlib.text.Text))


def test_cells_keep_the_gaps_between_modules():
    branch = FASERCAL.voxel_branches[0]
    z = cells(branch, 2, 1)
    assert len(z.edges) == 200 + 9 + 1  # a cell per layer and one per gap
    for layer in (0, 19, 20, 59, 199):
        low, high = z.edges[z.of_layer[layer]], z.edges[z.of_layer[layer] + 1]
        assert (low + high) / 2 == pytest.approx(branch.to_mm(np.array([[0, 0, layer]]))[0, 2])
        assert high - low == pytest.approx(10)
    merged = cells(branch, 2, 3)  # 20 layers make six cells of three and one of two
    assert len(merged.edges) == 10 * 7 + 9 + 1
    assert np.diff(merged.edges).max() == pytest.approx(598 - 457)
    assert merged.of_layer[19] != merged.of_layer[20]


@pytest.mark.parametrize("view", [(2, 0), (2, 1), (0, 1)])
def test_projection_keeps_every_voxel_in_place_and_all_energy(view):
    branch, event = FASERCAL.voxel_branches[0], fasercal_event()
    voxels = event.voxels["3dcal"]
    for merge in ((1, 1), (3, 2)):
        picture = project(branch, voxels, colour_voxels(event, branch, FASERCAL, "energy", {}), view, merge)
        assert picture.image.sum() == pytest.approx(voxels.energy.sum(), rel=1e-6)
        expected, _, _ = np.histogram2d(
            *branch.to_mm(voxels.coordinates)[:, list(view)].T, bins=(picture.horizontal, picture.vertical), weights=voxels.energy
        )
        assert picture.image.filled(0) == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_projection_shows_the_class_of_highest_energy_and_averages_other_channels():
    branch = CUBES.voxel_branches[0]
    stack = Voxels(np.array([[5, 5, 1], [5, 5, 2], [5, 5, 3]]), np.array([[1, 10], [1, 10], [3, 30]]), {"motif": np.array([[1, 0], [1, 0], [0, 1]])})
    event = Event("cubes", {"lar": stack})
    by_class = project(branch, stack, colour_voxels(event, branch, CUBES, "motif", {}), (0, 1), (1, 1))
    assert by_class.image.tolist() == [[1.0]]  # 3 MeV of track outweigh twice 1 MeV of shower
    by_time = project(branch, stack, colour_voxels(event, branch, CUBES, "time", {}), (0, 1), (1, 1))
    assert by_time.image[0, 0] == pytest.approx((10 + 10 + 90) / 5)
    assert (by_class.horizontal.tolist(), by_class.vertical.tolist()) == ([-1137, -1134], [-1137, -1134])


def test_view_zooms_into_small_events_and_shows_all_of_large_ones():
    branch = CUBES.voxel_branches[0]
    small = view_limits(branch, np.array([[300, 300, 300], [340, 320, 310]]), [])
    spans = small[1] - small[0]
    assert spans == pytest.approx([spans[0]] * 3)  # to scale
    assert 120 < spans[0] < 180
    assert merge_factor(branch, 0, small, 220) == 1
    large = view_limits(branch, np.array([[0, 300, 300], [700, 320, 310]]), [])
    assert (large[0] < branch.bounds[0]).all()
    assert merge_factor(branch, 0, large, 220) == 4
    corner = view_limits(branch, np.array([[0, 0, 0], [10, 10, 10]]), [])
    assert (corner[0] >= large[0]).all()
    assert (corner[0] < branch.bounds[0]).all()
    assert (corner[1] < -1000).all()
    outside = view_limits(branch, np.array([[300, 300, 300]]), [np.array([0.0, 0, 9000])])
    assert outside[1, 2] < 1000


def test_colours_of_labels_instances_and_predictions():
    branch, event = FASERCAL.voxel_branches[0], fasercal_event()
    category = colour_voxels(event, branch, FASERCAL, "category", {})
    assert category.classes == ("electromagnetic", "muon", "hadron", "unlabelled")
    assert (category.values[:5] == 3).all()
    assert (category.values[5:] == event.voxels["3dcal"].labels["category"][5:].argmax(1)).all()
    ghost = colour_voxels(event, branch, FASERCAL, "ghost", {})
    assert (ghost.values[:3] == 2).all()
    assert ((ghost.values[3:] == 0) == (event.voxels["3dcal"].labels["ghost"][3:, 0] > 0.5)).all()
    n = len(event.voxels["3dcal"])
    shares = np.zeros((n, 7))
    shares[:, 0], shares[:, 3] = 0.9, 1  # ghost; hierarchy "secondary"; no category
    prediction = {"voxels": {"3dcal": shares}}
    assert (colour_voxels(event, branch, FASERCAL, "predicted:hierarchy", prediction).values == 2).all()
    assert (colour_voxels(event, branch, FASERCAL, "predicted:ghost", prediction).values == 0).all()
    hits = event.voxels["3dcal"].voxel_of_hit = np.repeat(np.arange(1, n), 2).astype(np.int32)
    per_hit = colour_voxels(event, branch, FASERCAL, "predicted:hierarchy", {"voxels": {"3dcal": shares[hits]}})
    assert per_hit.classes[per_hit.values[0]] == "unlabelled"
    assert (per_hit.values[1:] == 2).all()
    particles = colour_voxels(cubes_event(), CUBES.voxel_branches[0], CUBES, "instance:particle", {})
    assert len(particles.classes) == len(particles.colours) == 8 + 2
    assert particles.classes[-2:] == ("5 others", "none")  # 13 particles, eight with a colour of their own
    assert (np.bincount(particles.values) == [8] * 8 + [36]).all()


def test_what_cannot_be_shown_is_refused():
    event = fasercal_event()
    assert colour_choices(FASERCAL)[:4] == ["energy", "ghost", "hierarchy", "category"]
    with pytest.raises(ValueError, match=r"cannot colour by 'flavor'.*hierarchy"):
        plot_event(event, FASERCAL, "flavor")
    with pytest.raises(ValueError, match="does not carry 'hierarchy'"):
        plot_event(event, FASERCAL, "hierarchy")
    with pytest.raises(ValueError, match="needs prediction"):
        plot_event(event, FASERCAL, "predicted:ghost")
    with pytest.raises(ValueError, match="predicted voxels of '3dcal' have shape"):
        plot_event(event, FASERCAL, "predicted:ghost", {"voxels": {"3dcal": np.zeros((2, 7))}})
    with pytest.raises(ValueError, match="unknown keys"):
        event_html(event, FASERCAL, prediction={"flavor": "nc"})
    with pytest.raises(ValueError, match="three finite numbers"):
        event_html(event, FASERCAL, prediction={"vertex": [1, 2, np.nan]})
    with pytest.raises(ValueError, match="belongs to detector"):
        plot_event(event, CUBES)


def test_figure_says_what_it_shows():
    vertex = np.array([3.0, -4, 610])
    figure = plot_event(fasercal_event(), FASERCAL, prediction={"flavour": {"label": "nc", "score": 0.625}, "charm": "none", "vertex": vertex})
    words = texts(figure)
    assert "fasercal event events.parquet seed 1 index 7" in words
    assert "truth: flavour numu_cc, charm none, νμ CC of 812 GeV, vertex (3, -4, 580) mm" in words
    assert "prediction: flavour nc (0.62), charm none, vertex (3, -4, 610) mm, 30 mm from the truth" in words
    assert re.search(r"3dcal: \d+ voxels", words)
    assert "muon: 2 tracks, momenta in GeV" in words
    tracks = next(t for t in words.split("\n") if t.split()[:1] == ["-1"])
    assert tracks.split()[1] == "234"
    # Both vertices are marked in the three views of the first branch.
    assert marks(figure) == sorted([[580, 3], [580, -4], [3, -4], [610, 3], [610, -4], [3, -4]])


def marks(figure) -> list[list[float]]:
    return sorted(point for part in figure.subfigs[:1] for ax in part.axes for line in ax.lines if ax.axison for point in line.get_xydata().tolist())


def test_starts_and_interaction_vertices_are_marked():
    """Of an image the points that most parentless particles of an interaction share; what enters through a face has no vertex."""
    event = cubes_event()
    event.truth |= {"particle_momentum": np.array([0.3, 0.0, 0.4]), "particle_position": np.array([-100.0, 0, 50])}
    figure = plot_event(event, CUBES)
    assert "truth: particle muon, momentum 500 MeV/c, start (-100, 0, 50) mm" in texts(figure)
    assert marks(figure) == [[-100, 0], [50, -100], [50, 0]]

    image = cubes_event()
    image.truth = {}
    points = [[10, 20, 30], [40, 50, 60], [10, 20, 30], [10, 20, 30], [0, 1151.999, 0], [70, 80, 90]]
    image.particles = {
        "id": np.arange(6),
        "parent": np.array([-1, -1, -1, 1, -1, -1]),
        "interaction": np.array([0, 0, 0, 0, 1, 2]),
        "vertex": np.array(points, np.float32),
    }
    figure = plot_event(image, CUBES)
    assert "truth: 3 interactions, 6 particles" in texts(figure)
    assert marks(figure) == [[10, 20], [30, 10], [30, 20], [70, 80], [90, 70], [90, 80]]


def test_zoom_shows_one_cube():
    """Steps 40 to 60 have their x, 300 + step, within 30 mm of voxel 350's centre; y and z are inside too."""
    event, zoom = cubes_event(), (-1152 + 350.5 * 3, -1152 + 350.5 * 3, -1152 + 375.5 * 3, 61.0)
    event.truth["particle_position"] = np.array([-1152.0, 0, 0])
    figure = plot_event(event, CUBES, "motif", zoom=zoom)
    words = texts(figure)
    assert "lar: 21 of 100 voxels, energy 42 MeV" in words
    assert "shower (21)" in words
    assert "true start" not in words
    assert marks(figure) == []
    for ax in [ax for ax in figure.subfigs[0].axes if ax.axison][:3]:
        assert np.diff(ax.get_xlim()) == pytest.approx(61)
    page = event_html(event, CUBES, zoom=zoom)
    assert "lar voxel (350, 350, 375)" in page
    assert "lar voxel (300, 400, 350)" not in page
    assert "lar: 0 of 100 voxels" in texts(plot_event(event, CUBES, zoom=(1000, 1000, 1000, 10)))
    for bad in ((1, 2, 3), (1, 2, 3, 0), (1, 2, np.nan, 4)):
        with pytest.raises(ValueError, match="zoom is x, y, z"):
            plot_event(event, CUBES, zoom=bad)


def test_empty_absent_and_unknown_parts_say_so():
    words = texts(plot_event(fasercal_event(voxels={"3dcal": Voxels(np.zeros((0, 3)), np.zeros((0, 1)))}, images={}, tracks={}, truth={}), FASERCAL))
    assert "3dcal: no hits" in words
    assert "ahcal: sub-detector absent" in words
    assert "ecal: sub-detector absent" in words
    assert "muon: sub-detector absent" in words
    assert "truth: unknown" in words
    page = event_html(Event("fasercal", images={"ecal": np.zeros((5, 5), np.float32)}), FASERCAL)
    assert "3dcal: sub-detector absent" in page
    silent = fasercal_event(images={"ecal": np.zeros((5, 5), np.float32)})
    silent.voxels["3dcal"].values[:] = 0
    silent.tracks["muon"] = silent.tracks["muon"][:0]
    words = texts(plot_event(silent, FASERCAL))
    assert "ecal: no energy" in words
    assert "muon: no track" in words


@pytest.mark.parametrize("colour_by", ["energy", "time", "motif", "instance:particle"])
def test_another_detector_needs_no_code(colour_by, tmp_path):
    path = tmp_path / "event.png"
    plot_event(cubes_event(), CUBES, colour_by, path=path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert "lar voxel (300, 400, 350)" in event_html(cubes_event(), CUBES, colour_by)


def test_files_are_new_complete_and_reproducible(tmp_path):
    event = fasercal_event()
    path = tmp_path / "sub" / "event.png"
    plot_event(event, FASERCAL, path=path)
    first = path.read_bytes()
    with pytest.raises(FileExistsError, match=r"event\.png"):
        plot_event(event, FASERCAL, "category", path=path)
    assert path.read_bytes() == first
    plot_event(event, FASERCAL, "category", path=path, overwrite=True)
    assert path.read_bytes() != first
    page = tmp_path / "event.html"
    text = event_html(event, FASERCAL, path=page)
    assert page.read_text(encoding="utf-8") == text == event_html(event, FASERCAL)
    with pytest.raises(FileExistsError, match=r"event\.html"):
        event_html(event, FASERCAL, path=page)
    for draw, name in ((plot_event, "event.gif"), (event_html, "event.png")):
        with pytest.raises(ValueError, match="is written as"):
            draw(event, FASERCAL, path=tmp_path / name)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["event.html", "event.png", "sub"]


def test_no_pyplot_state_is_touched():
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    plot_event(fasercal_event(), FASERCAL)
    assert plt.get_fignums() == before


def test_page_holds_plotly_and_loads_nothing():
    page = event_html(fasercal_event(), FASERCAL, prediction={"vertex": np.array([0.0, 0, 600])})
    assert "plotly.js v" in page
    assert len(page) > 3e6
    assert not re.findall(r"<(?:script|link|img|iframe)[^>]*\b(?:src|href)\s*=", page)
    assert "predicted vertex" in page
    assert "sub-detector" not in page


def test_page_draws_the_voxels_of_highest_energy_and_says_so(monkeypatch):
    monkeypatch.setattr(interactive, "MAX_VOXELS", 50)
    event = fasercal_event()
    voxels, branch = event.voxels["3dcal"], FASERCAL.voxel_branches[0]
    (trace,) = interactive._voxel_traces(branch, voxels, colour_voxels(event, branch, FASERCAL, "energy", {}), 0)
    assert len(trace.x) == 50
    hardest = voxels.coordinates[np.argsort(-voxels.energy)[:50]]
    assert sorted(map(tuple, np.column_stack([trace.y, trace.z, trace.x]))) == sorted(map(tuple, branch.to_mm(hardest)))
    share = np.sort(voxels.energy)[-50:].sum() / voxels.energy.sum()
    assert trace.legendgrouptitle.text == f"3dcal: the 50 of highest energy of {len(voxels):,} voxels, {share:.1%} of the energy"


@pytest.fixture
def app():
    """`nufm` with the command mounted beside another, as in the package."""
    application = typer.Typer()
    application.command()(show)
    application.command("other")(lambda: None)
    return application


def test_command(app, tmp_path):
    file = tmp_path / "events.parquet"
    write_events([fasercal_event(), fasercal_event(200)], file, FASERCAL)

    def run(*arguments: str):
        return CliRunner().invoke(app, ["show", *arguments], env={"COLUMNS": "300", "TERM": "dumb", "NO_COLOR": "1"})

    for name in ("out.png", "out.html", "out.pdf"):
        result = run(str(file), "--event", "1", "--out", str(tmp_path / name), "--colour-by", "category")
        assert result.exit_code == 0, result.output
        assert (tmp_path / name).stat().st_size > 10_000
    refused = [
        ((str(file), "--out", str(tmp_path / "out.png")), "exists already"),
        ((str(file), "--out", str(tmp_path / "out.jpeg")), ".html nor"),
        ((str(file), "--event", "2", "--out", str(tmp_path / "x.png")), "holds 2 events"),
        ((str(file), "--event", "-1", "--out", str(tmp_path / "x.png")), "negative"),
        ((str(file), "--colour-by", "flavor", "--out", str(tmp_path / "x.png")), "cannot colour by"),
        ((str(tmp_path / "none.parquet"), "--out", str(tmp_path / "x.png")), "there is no file"),
        ((str(tmp_path / "out.pdf"), "--out", str(tmp_path / "x.png")), "not a readable parquet file"),
    ]
    for arguments, message in refused:
        result = run(*arguments)
        assert result.exit_code == 2, (arguments, result.output)
        assert message in result.output
    assert not (tmp_path / "x.png").exists()
    assert run(str(file), "--out", str(tmp_path / "out.png"), "--overwrite").exit_code == 0


def test_command_takes_samples_models_and_zoom(app, tmp_path):
    import torch

    from nufm_hub import AutoModelForParticleID, AutoModelForVertexRegression, NuFMConfig, NuFMProcessor, read_events, sample_path

    spec = load_detector("superfgd")
    event, other = (e for e, _ in zip(read_events(sample_path("superfgd")), range(2)))
    for e in (event, other):
        e.truth["vertex"] = e.truth["particle_position"]
    torch.manual_seed(0)
    small = {"hidden_size": 24, "num_attention_heads": 2, "window_depths": [1], "fusion_depth": 1, "decoder_hidden_size": 16}
    config = NuFMConfig(detector=spec.to_dict(), **small, decoder_num_attention_heads=2, decoder_depth=1, num_labels=4)
    folders = []
    for name, auto in (("particle", AutoModelForParticleID), ("vertex", AutoModelForVertexRegression)):
        folders.append(tmp_path / name)
        auto.from_config(config).save_pretrained(folders[-1])
        NuFMProcessor.fit([event, other], spec).save_pretrained(folders[-1])
    out = tmp_path / "x.html"

    def run(*arguments: str):
        return CliRunner().invoke(app, ["show", "superfgd", "--out", str(out), *arguments], env={"COLUMNS": "300", "TERM": "dumb", "NO_COLOR": "1"})

    result = run("--model", str(folders[0]), "--model", str(folders[1]), "--zoom", "418", "230", "787", "300")
    assert result.exit_code == 0, result.output
    page = out.read_text(encoding="utf-8")
    assert re.search(r"prediction: particle (proton|pion|muon|electron) \(0\.\d\d\), vertex", page)
    assert "predicted vertex" in page
    refused = run("--model", str(tmp_path), "--overwrite")
    assert refused.exit_code == 2, refused.output
