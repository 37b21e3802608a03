"""What several tests need, as fixtures (tests are not a package): writers of foreign formats, equality of events."""

import importlib.util
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from nufm_hub.events import Event, Voxels


@pytest.fixture(scope="session")
def formats():
    spec = importlib.util.spec_from_file_location("formats", Path(__file__).with_name("formats.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def same(a, b):
    """Bit for bit, with types, and absent for absent."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            same(a[key], b[key])
    elif isinstance(a, (Event, Voxels)):
        for field in fields(a):
            same(getattr(a, field.name), getattr(b, field.name))
    elif isinstance(a, np.ndarray):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert a.tobytes() == b.tobytes()
    else:
        assert type(a) is type(b)
        assert a == b


@pytest.fixture(scope="session")
def same_event():
    return same
