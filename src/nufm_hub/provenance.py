"""Where a result came from: package versions, git revision, machine."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any


def package_versions(packages: Iterable[str] = ("nufm-hub", "torch", "transformers", "datasets", "accelerate", "numpy")) -> dict[str, str]:
    """Installed versions; packages that are not installed are left out."""
    versions = {"python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def git_revision() -> str | None:
    """Commit of the checkout this package runs from, with `-dirty` when tracked files differ; None outside a checkout."""
    folder = Path(__file__).parent
    try:
        described = subprocess.run(
            ["git", "-C", str(folder), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"], capture_output=True, text=True, check=True
        )
        top = subprocess.run(["git", "-C", str(folder), "ls-files", "--error-unmatch", Path(__file__).name], capture_output=True, check=False)
    except (OSError, subprocess.CalledProcessError):
        return None
    # A package installed inside somebody else's checkout has no revision of its own.
    return described.stdout.strip() if top.returncode == 0 else None


def machine() -> dict[str, str | int]:
    """What the computation ran on."""
    import torch

    return {
        "platform": platform.machine(),
        "cpus": os.cpu_count() or 0,
        "gpus": torch.cuda.device_count(),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none",
        "torch_threads": torch.get_num_threads(),
    }


def simulations_of(files: Iterable[str | Path]) -> list[dict[str, Any]]:
    """How event files were simulated: what `provenance.json` in their folders says, else the JSON file of the same name beside a file."""
    found: dict[Path, dict[str, Any]] = {}
    for file in sorted(map(Path, files)):
        for record in (file.parent / "provenance.json", file.with_suffix(".json")):
            if record.is_file():
                found.setdefault(record, json.loads(record.read_text(encoding="utf-8")))
                break
    return list(found.values())
