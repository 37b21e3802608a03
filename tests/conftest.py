"""Settings that must be in place before any library is imported: no network, no telemetry, one thread a process. And what a command printed."""

import os

import pytest

os.environ.update(
    HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", HF_HUB_DISABLE_XET="1", HF_HUB_DISABLE_PROGRESS_BARS="1", OMP_WAIT_POLICY="PASSIVE"
)


@pytest.fixture(scope="session")
def printed():
    """In one line: messages come in boxes, and broken into lines."""
    return lambda result: " ".join(result.output.replace("│", " ").split())
