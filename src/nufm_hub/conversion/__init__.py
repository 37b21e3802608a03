"""Checkpoints of other projects to folders of this one."""

from nufm_hub.lazy import lazy_names

__all__ = ["convert_faserdl"]

__getattr__ = lazy_names(__name__, {"convert_faserdl": "faserdl"})
