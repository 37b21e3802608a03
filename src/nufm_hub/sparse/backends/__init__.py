"""Who computes a sparse convolution: plain PyTorch, or a library when it is installed. Same inputs, same weights, same outputs.

A backend is a module with the two functions of `Backend`; `native` is the one that every other must agree with.
"""

from __future__ import annotations

import importlib
from typing import Protocol

from torch import Tensor

from ..level import SparseLevel
from ..neighbours import Kernel

BACKENDS = {"torch": "native", "minkowski": "minkowski", "spconv": "spconv"}  # name -> module in this folder


class Backend(Protocol):
    def convolve(self, features: Tensor, weight: Tensor, level: SparseLevel, kernel: Kernel, transposed: bool) -> Tensor:
        """Features (N, Cin) and weight (K, Cin, Cout) -> (M, Cout): from `level` to `level.coarser(kernel.stride)`, back if `transposed`."""
        ...

    def convolve_depthwise(self, features: Tensor, weight: Tensor, level: SparseLevel, kernel: Kernel) -> Tensor:
        """Features (N, C) and weight (K, C) -> (N, C), with a submanifold kernel."""
        ...


def get_backend(name: str) -> Backend:
    """The backend of a name, imported now.

    Raises:
        ValueError: an unknown name.
        ImportError: the library is not installed; says how to install it.
    """
    if name not in BACKENDS:
        raise ValueError(f"sparse_backend={name!r} is none of {', '.join(BACKENDS)}")
    try:
        return importlib.import_module(f".{BACKENDS[name]}", __name__)  # type: ignore[return-value]
    except ModuleNotFoundError as error:
        raise ImportError(
            f'sparse_backend="{name}" needs a library that is not installed ({error.name}): pip install "nufm-hub[{name}]", or use "torch"'
        ) from error
