"""The writers of foreign formats, as a fixture (tests are not a package)."""

import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def formats():
    spec = importlib.util.spec_from_file_location("formats", Path(__file__).with_name("formats.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
