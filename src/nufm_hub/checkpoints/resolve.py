"""From a hub id such as `nufm/fasercal-mae-rel` to the folder of the checkpoint that the package brings."""

from __future__ import annotations

import os
from pathlib import Path

_ROOT = Path(__file__).parent
_NAMESPACE = "nufm"


def list_checkpoints() -> list[str]:
    """Ids of the checkpoints that come with the package."""
    return sorted(f"{_NAMESPACE}/{p.parent.name}" for p in _ROOT.glob("*/config.json"))


def checkpoint_path(name: str) -> Path:
    """Folder of a bundled checkpoint; `name` with or without the `nufm/` in front. It can be passed to anything that takes a folder.

    Raises:
        ValueError: there is no such checkpoint.
    """
    folder = _ROOT / name.removeprefix(f"{_NAMESPACE}/")
    if not (folder / "config.json").is_file():
        raise ValueError(f"no bundled checkpoint {name!r}; the package brings {list_checkpoints()}")
    return folder


def resolve(name_or_path: str | os.PathLike[str], revision: str | None = None) -> str:
    """The bundled folder of an id, else the input unchanged.

    A local folder of that name and an explicit revision win: both mean something else than the bundled weights.

    Raises:
        ValueError: an id of our namespace that the package does not bring, while the Hub is switched off.
    """
    name = os.fspath(name_or_path)
    if revision is not None or os.path.isdir(name) or not name.startswith(f"{_NAMESPACE}/"):
        return name
    if name in list_checkpoints():
        return str(checkpoint_path(name))
    from huggingface_hub.constants import is_offline_mode

    if is_offline_mode():
        raise ValueError(f"no bundled checkpoint {name!r} (the package brings {list_checkpoints()}), and HF_HUB_OFFLINE forbids to ask the Hub")
    return name
