"""Sparse operations on voxels, in plain PyTorch: levels of occupied voxels, convolutions, pooling, curves, windows and norms.

Needs torch and numpy only. `docs/sparse.md` tells how to use it and how fast it is.
"""

from __future__ import annotations

from .backends import BACKENDS
from .convolution import depthwise_convolution, strided_convolution, submanifold_convolution, transposed_convolution
from .curves import CURVES, hilbert, morton
from .keys import KeyGrid
from .level import SparseLevel
from .modules import DepthwiseConv3d, SparseConvolution, StridedConv3d, SubmanifoldConv3d, TransposedConv3d
from .neighbours import Kernel, KernelPairs
from .norms import EventGRN, EventLayerNorm
from .pooling import pool, unpool
from .windows import CurveWindows, windowed_attention

__all__ = [
    "BACKENDS",
    "CURVES",
    "CurveWindows",
    "DepthwiseConv3d",
    "EventGRN",
    "EventLayerNorm",
    "Kernel",
    "KernelPairs",
    "KeyGrid",
    "SparseConvolution",
    "SparseLevel",
    "StridedConv3d",
    "SubmanifoldConv3d",
    "TransposedConv3d",
    "depthwise_convolution",
    "hilbert",
    "morton",
    "pool",
    "strided_convolution",
    "submanifold_convolution",
    "transposed_convolution",
    "unpool",
    "windowed_attention",
]
