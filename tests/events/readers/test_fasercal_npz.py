import numpy as np
import pytest

from nufm_hub.detectors import load_detector
from nufm_hub.events.readers import read_fasercal_npz

SPEC = load_detector("fasercal")


def read_one(path):
    (event,) = read_fasercal_npz(path)
    return event


def test_values_and_truth(formats, tmp_path):
    event = read_one(formats.write_fasercal(tmp_path / "run_7_event_42.npz"))
    voxels = event.voxels["3dcal"]
    np.testing.assert_array_equal(voxels.coordinates, [[0, 1, 2], [47, 47, 199], [5, 6, 7]])
    np.testing.assert_array_equal(voxels.energy, np.float32([4.5, 2.5, 0.5]))
    np.testing.assert_array_equal(event.voxels["ahcal"].coordinates, [[0, 0, 0], [17, 17, 39]])
    np.testing.assert_array_equal(event.images["ecal"], np.arange(25).reshape(5, 5))
    # Tracks are stored feature by feature; an event has one row a track.
    np.testing.assert_array_equal(event.tracks["muon"][1], np.arange(1, 22, 2))
    assert event.truth["flavour"] == SPEC.classes("flavour").index("numu_cc")
    assert event.truth["charm"] == 0
    np.testing.assert_array_equal(event.truth["lepton_momentum"], [1, 0, 500])
    np.testing.assert_array_equal(event.truth["vertex"], [1, 2, 300])
    assert event.provenance == {"generator": "faserDL", "seed": 7, "index": 42, "file": "run_7_event_42.npz"}
    assert event.particles["pdg"].tolist() == [13, 11, 211]


def test_labels_are_energy_shares(formats, tmp_path):
    labels = read_one(formats.write_fasercal(tmp_path / "a.npz")).voxels["3dcal"].labels
    np.testing.assert_array_equal(labels["ghost"], [[0], [0], [1]])
    np.testing.assert_allclose(labels["hierarchy"], [[0, 1, 0], [0, 0, 1], [0, 0, 0]])
    np.testing.assert_allclose(labels["category"], [[0.75, 0.25, 0], [0, 0, 1], [0, 0, 0]])


@pytest.mark.parametrize(
    ("pdg", "category"), [(22, 0), (-11, 0), (111, 0), (221, 0), (331, 0), (-13, 1), (2212, 2), (-211, 2), (130, 2), (1000060120, 2), (14, 2)]
)
def test_category_of_a_particle(formats, tmp_path, pdg, category):
    hits = formats.fasercal_arrays()["true_hits"].astype(np.float64)
    hits[2, formats.PDG] = pdg
    labels = read_one(formats.write_fasercal(tmp_path / "a.npz", true_hits=hits)).voxels["3dcal"].labels
    assert labels["category"][1].argmax() == category


@pytest.mark.parametrize(
    ("mode", "category", "flavour"), [(1, 0, "nutau_cc_e"), (2, 1, "nutau_cc_mu"), (3, 2, "nutau_cc_had"), (6, 2, "nutau_cc_had")]
)
def test_a_tau_counts_as_its_decay_mode(formats, tmp_path, mode, category, flavour):
    hits = formats.fasercal_arrays()["true_hits"]
    hits[2, formats.PDG] = 15
    path = formats.write_fasercal(
        tmp_path / "a.npz", true_hits=hits, is_tau=True, in_neutrino_pdg=-16, tau_decay_mode=mode, tau_decay_length=1.5, tau_vis_momentum=np.ones(3)
    )
    event = read_one(path)
    assert event.voxels["3dcal"].labels["category"][1].argmax() == category
    assert event.truth["flavour"] == SPEC.classes("flavour").index(flavour)
    assert event.truth["tau_decay_length"] == 1.5
    np.testing.assert_array_equal(event.truth["lepton_momentum"], [1, 1, 1])


def test_neutral_current_has_no_lepton_and_electron_scattering_no_flavour(formats, tmp_path):
    nc = read_one(formats.write_fasercal(tmp_path / "a.npz", is_cc=False))
    assert nc.truth["flavour"] == SPEC.classes("flavour").index("nc")
    np.testing.assert_array_equal(nc.truth["lepton_momentum"], np.zeros(3))
    assert "flavour" not in read_one(formats.write_fasercal(tmp_path / "b.npz", is_es=True)).truth


@pytest.mark.parametrize(("pdgs", "charm"), [([13, -14, 311], "charm_mu"), ([-11, 12], "charm_e"), ([211, 311], "charm_had")])
@pytest.mark.parametrize("structured", [True, False])
def test_charm_decay(formats, tmp_path, pdgs, charm, structured):
    products = np.array(pdgs)
    if structured:
        products = np.zeros(len(pdgs), [("g4_id", "i4"), ("pdg", "i4")])
        products["pdg"] = pdgs
    event = read_one(formats.write_fasercal(tmp_path / "a.npz", is_charmed=True, charm_decay=products))
    assert event.truth["charm"] == SPEC.classes("charm").index(charm)


def test_absent_sub_detectors_are_not_empty_ones(formats, tmp_path):
    event = read_one(formats.write_fasercal(tmp_path / "a.npz", muspec_info=None, ahcal_hits=None, ecal_hits=None))
    assert "muon" not in event.tracks
    assert "ahcal" not in event.voxels
    assert "ecal" not in event.images
    empty = read_one(formats.write_fasercal(tmp_path / "b.npz", muspec_info=np.zeros(0, np.float32), ahcal_hits=np.zeros((0, 4))))
    assert empty.tracks["muon"].shape == (0, 11)
    assert len(empty.voxels["ahcal"]) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reco_hits": None}, "'reco_hits' is missing"),
        ({"reco_hits": np.zeros((3, 5), np.float32)}, r"'reco_hits' has shape \(3, 5\)"),
        ({"indptr": np.array([0, 2, 3], np.int32)}, "'indptr' has shape"),
        ({"indptr": np.array([0, 2, 1, 3], np.int32)}, "'indptr' runs from"),
        ({"true_index": np.array([0, 1, 3], np.int32)}, r"'true_index' points to rows 0..3 of 'true_hits', which has 3"),
        ({"link_weight": np.ones(2, np.float32)}, "'link_weight' has shape"),
        ({"true_hits": np.array(None)}, "unpickling"),
        ({"in_neutrino_pdg": 13}, "13, which is not a neutrino"),
        ({"reco_hits": np.array([[0, 0, 0.5, 0, 1, 0]] * 3, np.float32)}, "not voxel indices"),
        ({"reco_hits": np.array([[0, 0, 200, 0, 1, 0]] * 3, np.float32)}, "outside the grid"),
        ({"reco_hits": np.array([[0, 0, 0, 0, np.nan, 0]] * 3, np.float32)}, "not finite"),
    ],
)
def test_bad_arrays_are_named(formats, tmp_path, changes, message):
    path = formats.write_fasercal(tmp_path / "bad.npz", **changes)
    with pytest.raises(ValueError, match=message) as error:
        read_one(path)
    assert "bad.npz, event 0" in str(error.value)


def test_truncated_and_foreign_files(formats, tmp_path):
    path = formats.write_fasercal(tmp_path / "a.npz")
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"a\.npz, event 0: is not a readable npz"):
        read_one(path)
    (tmp_path / "b.npz").write_bytes(b"not a zip")
    with pytest.raises(ValueError, match=r"b\.npz"):
        read_one(tmp_path / "b.npz")


def test_a_folder_is_read_in_order_and_bad_events_can_be_skipped(formats, tmp_path):
    for name in ("sub/c", "a", "b"):
        formats.write_fasercal(tmp_path / f"{name}.npz", reco_hits=None if name == "b" else formats.fasercal_arrays()["reco_hits"])
    errors = []
    names = [e.provenance["file"] for e in read_fasercal_npz(tmp_path, on_bad=errors.append)]
    assert names == ["a.npz", "sub/c.npz"]
    assert [str(e).split(",")[0] for e in errors] == ["b.npz"]
    with pytest.raises(ValueError, match=r"no file that ends in \.npz"):
        next(read_fasercal_npz(tmp_path / "nowhere"))
