"""What there is to say about every task, and about every simulation: the words of a card."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """Models of a task.

    Attributes:
        title: the task, for people.
        what: completes "This is ...".
        tags: for the Hub.
        code: the lines that use `model` and `processor`, or the pipeline `predict`, on `event`.
        pipeline: its class.
    """

    title: str
    what: str
    tags: tuple[str, ...]
    code: str
    pipeline: str | None = None


_PREDICT = "print(predict(event))"

KINDS = {
    "pretraining": Kind(
        "masked pre-training",
        "an encoder of whole detector events, pre-trained and without a task",
        ("masked-autoencoder", "representation-learning"),
        "print(model(**processor(event)).pooler_output.shape)  # one vector an event",
    ),
    "flavour": Kind(
        "neutrino flavour", "a classifier of the flavour of neutrino interactions", ("classification",), _PREDICT, "FlavourPipeline"
    ),
    "charm": Kind(
        "charm",
        "a classifier of charm production in neutrino interactions",
        ("classification",),
        "print(model(**processor(event)).logits.softmax(-1))",
    ),
    "vertex": Kind(
        "primary vertex", "a regression of the primary vertex of neutrino interactions", ("regression",), _PREDICT, "VertexPipeline"
    ),
    "momentum": Kind(
        "momenta",
        "a regression of the visible, jet and lepton momentum of neutrino interactions",
        ("regression",),
        "print(processor.post_process_reconstruction(model(**processor(event))))  # GeV",
    ),
    "reconstruction": Kind(
        "event reconstruction",
        "one model for flavour, charm, momenta and vertex of neutrino interactions, predicted jointly",
        ("classification", "regression"),
        "print(processor.post_process_reconstruction(model(**processor(event))))  # classes, GeV, mm",
    ),
    "voxels": Kind(
        "voxel classification",
        "a classifier of the single voxels of an event",
        ("classification", "segmentation"),
        "logits = model(**processor(event)).logits  # (1, voxels, classes of all labels), NaN where the branch has no labels\n"
        "print(processor.post_process_voxels(logits, [event])[0].keys())  # by branch, a row for each raw hit",
    ),
    "particle": Kind("particle identification", "a classifier of single particles", ("classification",), _PREDICT, "EventParticlePipeline"),
    "event-particles": Kind(
        "particle identification",
        "a classifier of all particles of an event, which look at each other",
        ("classification",),
        _PREDICT,
        "EventParticlePipeline",
    ),
}

SIMULATIONS = {
    "fasercal": (
        "Neutrino-nucleon scattering from Pythia 8, on free nucleons: there is no nuclear rescattering and no Fermi motion. Geant4 (FTFP_BERT) "
        "carries the final state through a FASERCal-like detector; light yield, crosstalk and threshold are modelled, and voxels are reconstructed "
        "from three projections, so that ghosts are real ambiguities."
    ),
    "superfgd": (
        "Single protons, pions, muons and electrons from a gun, carried by Geant4 through a SuperFGD-like block of scintillator cubes, with light "
        "yield, crosstalk between cubes and a threshold. There are no neutrino interactions in it."
    ),
    "pilarnet": (
        "Particles that leave common vertices, and cosmic-like muons, drawn by a gun without a neutrino generator, carried by Geant4 through liquid "
        "argon. Voxels hold true energy deposits: no recombination, diffusion or noise."
    ),
}
STAND_IN = (
    "Geant4 read stand-in tables built from public sources, not its official data sets: photon attenuation agrees with NIST to 3 %, neutrons of low "
    "energy are approximate."
)
