"""Random sources of one event, so that an event depends on nothing but the run seed and its index."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class EventSeeds(NamedTuple):
    """Independent sources of one event.

    Attributes:
        rng: numpy generator for everything drawn in Python.
        generator: Pythia seed, 1 to 900,000,000.
        transport: 63-bit seeds of the two Geant4 stages.
    """

    rng: np.random.Generator
    generator: int
    transport: tuple[int, int]


def event_seeds(run_seed: int, index: int, attempt: int = 0) -> EventSeeds:
    """Seeds of attempt `attempt` at event `index` of a run; each triple gives statistically independent streams."""
    streams = np.random.SeedSequence([run_seed, index, attempt]).spawn(4)
    first, second, third = (int(s.generate_state(1, np.uint64)[0]) for s in streams[1:])
    return EventSeeds(np.random.default_rng(streams[0]), 1 + first % 900_000_000, (second >> 1, third >> 1))
