"""The front door: names, import cost, bundled ids."""

import subprocess
import sys

import pytest

import nufm_hub
from nufm_hub import checkpoints


def test_every_public_name_exists():
    for name in nufm_hub.__all__:
        assert getattr(nufm_hub, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = nufm_hub.no_such_name


def test_import_opens_no_socket_and_loads_nothing_heavy():
    code = (
        "import socket, sys\n"
        "def refuse(*a, **k): raise AssertionError('network at import')\n"
        "socket.socket.connect = refuse; socket.getaddrinfo = refuse\n"
        "import nufm_hub\n"
        "assert not {'torch', 'transformers', 'datasets', 'matplotlib', 'calzone'} & set(sys.modules), sorted(sys.modules)\n"
        "import nufm_hub.models, nufm_hub.events, nufm_hub.detectors, nufm_hub.training.run\n"
        "assert not {'matplotlib', 'plotly', 'calzone', 'pythia8mc', 'h5py'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_ids_resolve_to_folders_unless_something_else_is_meant(tmp_path, monkeypatch):
    for name in checkpoints.list_checkpoints():
        folder = checkpoints.resolve(name)
        assert checkpoints.checkpoint_path(name).samefile(folder)
        assert checkpoints.resolve(name, revision="v1") == name
    assert checkpoints.resolve("somebody/model") == "somebody/model"
    with pytest.raises(ValueError, match="nufm/nope"):
        checkpoints.resolve("nufm/nope")
    with pytest.raises(ValueError, match="nope"):
        checkpoints.checkpoint_path("nope")
    (tmp_path / "nufm" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert checkpoints.resolve("nufm/mine") == "nufm/mine"
