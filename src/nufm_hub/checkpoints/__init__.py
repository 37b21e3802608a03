"""Bundled checkpoints: one folder per hub id, and the few lines that resolve an id to its folder."""

from .resolve import checkpoint_path, list_checkpoints, resolve

__all__ = ["checkpoint_path", "list_checkpoints", "resolve"]
