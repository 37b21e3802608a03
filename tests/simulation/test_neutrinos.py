import numpy as np
import pytest

from nufm_hub.simulation.neutrinos import CHARM_HADRONS, NEUTRON, PROTON, DISGenerator
from nufm_hub.simulation.sampling import cross_section
from nufm_hub.simulation.truth import event_truth, flavour

CTAU = {15: 0.08703, 421: 0.1229, 411: 0.3099}  # mm, PDG 2024
MASS = {15: 1.77693, 421: 1.86484, 411: 1.86966}


def interactions(neutrino, nucleon, is_cc, energy, number, seed=1):
    generator = DISGenerator(neutrino, nucleon, is_cc, energy, seed)
    return [generator.next() for _ in range(number)], generator


@pytest.fixture(scope="module")
def taus():
    return interactions(16, PROTON, True, 300.0, 1200)[0]


def test_tau_branching_fractions(taus):
    """PDG 2024: e 17.82 %, mu 17.39 %, pi pi0 25.49 %, three charged hadrons 14.57 to 15.2 % (without or with K0)."""
    share = np.bincount([i.tau_decay_mode for i in taus], minlength=7) / len(taus)
    assert share[0] == 0
    for mode, expected in ((1, 0.1782), (2, 0.1739), (4, 0.2549), (5, 0.149)):
        assert share[mode] == pytest.approx(expected, abs=4 * np.sqrt(expected * (1 - expected) / len(taus)))


def test_tau_flies_its_lifetime(taus):
    proper = [i.tau.length * MASS[15] / np.linalg.norm(i.tau.momentum) for i in taus]
    assert np.mean(proper) == pytest.approx(CTAU[15], rel=4 / np.sqrt(len(taus)))


def test_tau_daughters_start_where_the_tau_ends(taus):
    for i in taus[:50]:
        row = next(k for k, d in enumerate(i.decayed) if abs(d.pdg) == 15)
        daughters = (i.parent == row) & np.isin(np.abs(i.pdg), (11, 13, 211, 321))
        assert daughters.any()
        # A pi0 of 300 GeV flies 0.06 mm before its photons, or Dalitz electrons, are made.
        assert np.linalg.norm(i.position[daughters] - i.tau.end, axis=1).min() < 1e-6
        assert np.linalg.norm(i.position[i.parent == row] - i.tau.end, axis=1).max() < 1.0
        assert np.linalg.norm(i.lepton_momentum) < np.linalg.norm(i.tau.momentum)


def test_charm_fraction_agrees_with_chorus():
    """Charm in 5.75 +- 0.32 +- 0.30 % of charged currents at a mean energy of 27 GeV (CHORUS, arXiv:1107.0613)."""
    rate, total = 0.0, 0.0
    for nucleon, seed in ((PROTON, 1), (NEUTRON, 2)):
        made, generator = interactions(14, nucleon, True, 27.0, 2000, seed)
        rate += generator.cross_section() * np.mean([i.charm is not None for i in made])
        total += generator.cross_section()
    assert rate / total == pytest.approx(0.0575, abs=0.015)


def test_charm_flies_its_lifetime():
    made, _ = interactions(14, NEUTRON, True, 300.0, 2500)
    charm = [i.charm for i in made if i.charm is not None]
    assert {abs(c.pdg) for c in charm} <= CHARM_HADRONS
    for pdg in (421, 411):
        proper = [c.length * MASS[pdg] / np.linalg.norm(c.momentum) for c in charm if abs(c.pdg) == pdg]
        assert np.mean(proper) == pytest.approx(CTAU[pdg], rel=4 / np.sqrt(len(proper)))


def test_momentum_is_conserved():
    made, _ = interactions(14, PROTON, True, 200.0, 200)
    checked = [i for i in made if i.charm is None]  # charm may decay to neutrinos
    for i in checked:
        assert i.visible_momentum == pytest.approx([0, 0, 200], abs=1e-6)
        assert abs(i.pdg[np.linalg.norm(i.momentum - i.lepton_momentum, axis=1).argmin()]) == 13
    assert len(checked) > 150


@pytest.mark.parametrize(
    ("neutrino", "is_cc", "flavours"), [(12, True, {0}), (-14, True, {1}), (16, True, {2, 3, 4}), (-16, False, {5}), (14, False, {5})]
)
def test_event_truth(neutrino, is_cc, flavours):
    made, _ = interactions(neutrino, NEUTRON, is_cc, 150.0, 60)
    assert {flavour(i) for i in made} == flavours
    for i in made:
        truth = event_truth(i, np.array([1.0, 2.0, 3.0]))
        assert truth["lepton_momentum"] == pytest.approx(truth["visible_momentum"] - truth["jet_momentum"])
        assert (np.abs(truth["lepton_momentum"]).sum() > 0) == is_cc
        assert (truth["tau_decay_mode"] > 0) == (abs(neutrino) == 16 and is_cc)
        assert (truth["charm"] > 0) == (truth["charm_pdg"] != 0) == (truth["charm_decay_length"] > 0)
        assert np.linalg.norm(truth["visible_momentum"]) <= 150.001


def test_the_same_seed_makes_the_same_interaction():
    first, again = (interactions(12, PROTON, True, 99.5, 3, seed=7)[0] for _ in range(2))
    other = interactions(12, PROTON, True, 99.5, 3, seed=8)[0]
    for a, b, c in zip(first, again, other):
        assert np.array_equal(a.momentum, b.momentum)
        assert np.array_equal(a.position, b.position)
        assert not np.array_equal(a.momentum, c.momentum)


@pytest.mark.parametrize("is_cc", [True, False])
def test_table_of_cross_sections_is_what_the_generator_gives(is_cc):
    for sign, nucleon in ((1, PROTON), (1, NEUTRON), (-1, PROTON), (-1, NEUTRON)):
        _, generator = interactions(14 * sign, nucleon, is_cc, 140.0, 800)
        assert cross_section(is_cc, sign, nucleon, 140.0) == pytest.approx(generator.cross_section(), rel=0.06)


def test_cross_section_is_the_measured_one_without_low_momentum_transfer():
    """PDG 2024, 30 to 200 GeV: 0.677 and 0.334e-38 cm2/GeV for neutrinos and antineutrinos on isoscalar targets, of which Q2 > 1 GeV2 is most."""
    for sign, measured in ((1, 0.677), (-1, 0.334)):
        found = np.mean([cross_section(True, sign, n, 100.0) for n in (PROTON, NEUTRON)]) / 100.0
        assert 0.6 * measured < found < measured


@pytest.mark.parametrize("bad", [{"neutrino_pdg": 13}, {"target_pdg": 22}, {"energy": 5.0}, {"energy": float("nan")}, {"seed": 0}])
def test_refuses_what_it_cannot_do(bad):
    good = {"neutrino_pdg": 14, "target_pdg": PROTON, "is_cc": True, "energy": 100.0, "seed": 1}
    with pytest.raises(ValueError, match=str(next(iter(bad.values())))):
        DISGenerator(**{**good, **bad})
