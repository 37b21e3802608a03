"""Readers of foreign formats: `read_x(path, ...)` streams `Event`s, whatever the file."""

from .common import Format, SourceFile, read_range, source_files
from .edepsim import EDEPSIM, read_edepsim
from .fasercal_npz import FASERCAL_NPZ, read_fasercal_npz
from .pilarnet_larcv import PILARNET_LARCV, read_pilarnet_larcv
from .pilarnet_m import PILARNET_M, read_pilarnet_m
from .scintillator import SCINTILLATOR, read_scintillator

FORMATS: dict[str, Format] = {f.name: f for f in (FASERCAL_NPZ, PILARNET_M, PILARNET_LARCV, SCINTILLATOR, EDEPSIM)}

__all__ = [
    "FORMATS",
    "Format",
    "SourceFile",
    "read_edepsim",
    "read_fasercal_npz",
    "read_pilarnet_larcv",
    "read_pilarnet_m",
    "read_range",
    "read_scintillator",
    "source_files",
]
