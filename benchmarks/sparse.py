"""How fast the sparse operations are on one thread of this machine, beside MinkowskiEngine and spconv where they are installed.

    OMP_NUM_THREADS=1 python benchmarks/sparse.py --json benchmarks/sparse.json --page docs/sparse.md

Times are CPU time of the process, the smallest of several rounds; the competitors of a row take turns. The rate of matrix products in the
same run tells machines apart.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch
from common import cpu_ms, processor, write_page
from torch import Tensor

from nufm_hub.sparse import (
    CurveWindows,
    EventGRN,
    EventLayerNorm,
    Kernel,
    SparseLevel,
    depthwise_convolution,
    pool,
    strided_convolution,
    submanifold_convolution,
    transposed_convolution,
    unpool,
    windowed_attention,
)
from nufm_hub.sparse.backends import get_backend
from nufm_hub.sparse.neighbours import neighbour_pairs

GRID = (48, 48, 200)
RIVALS = {"spconv": "spconv", "minkowski": "MinkowskiEngine"}  # backend -> distribution
MARK = "<!-- benchmark: written by benchmarks/sparse.py -->\n"


def tracks(voxels: int, seed: int = 0) -> Tensor:
    """Distinct voxels (voxels, 3) of straight tracks from one vertex, whose width grows along the way, in a calorimeter of 48 x 48 x 200."""
    generator = np.random.default_rng(seed)
    shape, found = np.array(GRID), np.empty((0, 3), dtype=np.int64)
    depth = np.arange(0, GRID[2], 0.5)[:, None]
    while len(found) < voxels:
        direction = np.append(generator.normal(0, 0.12, 2), 1.0)
        vertex = shape * [0.5, 0.5, 0.05] + generator.normal(0, 2, 3)
        width = 0.36 + depth / 100
        points = np.floor(vertex + depth * direction + generator.normal(size=(len(depth), 3)) * width).astype(np.int64)
        new = np.concatenate([found, points[((points >= 0) & (points < shape)).all(axis=1)]])
        found = new[np.sort(np.unique(new, axis=0, return_index=True)[1])]
    return torch.from_numpy(found[:voxels])


def with_gradients(call: Callable[..., Tensor], *inputs: Tensor) -> Callable[[], None]:
    """A forward and backward pass with gradients of all inputs."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    cotangent = torch.ones_like(call(*inputs))

    def run() -> None:
        torch.autograd.grad(call(*leaves), leaves, cotangent)

    return run


def installed(backend: str) -> bool:
    try:
        get_backend(backend)
    except ImportError:
        return False
    return True


def spconv_layer(features: Tensor, weight: Tensor, level: SparseLevel) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """spconv's own submanifold layer on its own tensors: with its pairs kept, and made anew."""
    import spconv.pytorch as spconv

    layer = spconv.SubMConv3d(*weight.shape[1:], 3, bias=False, algo=spconv.ConvAlgo.Native, indice_key="pairs")
    layer.weight.data = weight.view(3, 3, 3, *weight.shape[1:]).permute(4, 0, 1, 2, 3).contiguous()
    indices = torch.cat([level.event[:, None], level.coordinates], dim=1).int()

    @torch.no_grad()
    def run(pairs: dict) -> spconv.SparseConvTensor:
        voxels = spconv.SparseConvTensor(features, indices, list(level.shape), level.num_events)
        voxels.indice_dict = dict(pairs)
        return layer(voxels)

    pairs = run({}).indice_dict
    return lambda: run(pairs).features, lambda: run({}).features


def minkowski_layer(weight: Tensor, level: SparseLevel) -> tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor, Tensor], Tensor], Tensor]:
    """MinkowskiEngine's own layer on its own tensors, as a function of features and weight, with its pairs kept, and made anew; and our weight in
    its layout.
    """
    engine = get_backend("minkowski").ME
    size = round(len(weight) ** (1 / 3))
    kind = engine.MinkowskiConvolution if weight.dim() == 3 else engine.MinkowskiChannelwiseConvolution
    layer = kind(*weight.shape[1:], kernel_size=size, dimension=3)
    coordinates = torch.cat([level.event[:, None], level.coordinates], dim=1).int()
    voxels = engine.SparseTensor(torch.empty(len(level), weight.shape[1]), coordinates)
    kept = {"coordinate_map_key": voxels.coordinate_map_key, "coordinate_manager": voxels.coordinate_manager}

    def run(x: Tensor, w: Tensor, **places: object) -> Tensor:
        return torch.func.functional_call(layer, {"kernel": w}, (engine.SparseTensor(x, **places),)).F

    theirs = weight.view(size, size, size, *weight.shape[1:]).transpose(0, 2).reshape(weight.shape)
    return partial(run, **kept), partial(run, coordinates=coordinates), theirs


class Benchmark:
    """Rows of the table, measured on `voxels` voxels of tracks."""

    def __init__(self, voxels: int, rounds: int):
        self.voxels, self.rounds = voxels, rounds
        self.coordinates = tracks(voxels)
        self.rows: list[dict] = []
        self.rivals = [name for name in RIVALS if installed(name)]
        self.generator = torch.Generator().manual_seed(0)

    def random(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)

    def level(self) -> SparseLevel:
        """A fresh level of one event, with no tables yet."""
        return SparseLevel(self.coordinates, torch.zeros(self.voxels, dtype=torch.long), 1)

    def time(self, name: str, **calls: Callable[[], object]) -> None:
        """One row: a column for each call."""
        self.rows.append({"operation": name, **cpu_ms(calls, self.rounds)})

    def tables(self) -> None:
        level = self.level()
        self.time("level from coordinates", forward=self.level)
        for size in (3, 7):
            kernel = Kernel.submanifold(size)
            pairs = len(level.pairs(kernel)) / len(level)
            self.time(f"pairs {size}x{size}x{size}, {pairs:.1f} a voxel", forward=lambda kernel=kernel: neighbour_pairs(level, kernel))
        self.time("coarser level 2x2x2 and its pairs, level included", forward=lambda: self.level().pairs(Kernel.strided(2)))
        for curve in ("hilbert", "morton"):
            self.time(f"order along {curve}, depth 10, level included", forward=lambda curve=curve: self.level().order(curve, 10))

    def convolutions(self) -> None:
        level = self.level()
        x, weight = self.random(len(level), 48), self.random(27, 48, 48) / 36
        self.compare("submanifold 3x3x3, 48 to 48", submanifold_convolution, x, weight, level, tuple(RIVALS))
        x = self.random(len(level), 32)
        for size in (3, 7):
            convolve = lambda x, w, level, size=size, **options: depthwise_convolution(x, w, level, size, **options)  # noqa: E731
            self.compare(f"depth-wise {size}x{size}x{size}, 32", convolve, x, self.random(size**3, 32) / size**1.5, level, ("minkowski",))
        weight = self.random(8, 48, 96) / 20
        self.through_backends("strided 2x2x2, 48 to 96", strided_convolution, self.random(len(level), 48), weight, level)
        cells = self.random(len(level.coarser(2)), 96)
        self.through_backends("transposed 2x2x2, 96 to 48", transposed_convolution, cells, weight.transpose(1, 2).contiguous(), level)

    def compare(self, name: str, call: Callable[..., Tensor], x: Tensor, weight: Tensor, level: SparseLevel, rivals: tuple[str, ...]) -> None:
        """Our function beside the libraries' own layers."""
        ours = lambda x, w: call(x, w, level)  # noqa: E731
        want = ours(x, weight)
        calls, difference = {"forward": no_grad(ours, x, weight), "both": with_gradients(ours, x, weight)}, {}
        fresh = lambda: SparseLevel(level.coordinates, level.event, level.num_events)  # noqa: E731
        calls["forward with tables"] = no_grad(lambda x, w: call(x, w, fresh()), x, weight)
        if "spconv" in rivals and "spconv" in self.rivals:
            calls["spconv forward"], calls["spconv forward with tables"] = spconv_layer(x, weight, level)
            difference["spconv"] = float((calls["spconv forward"]() - want).abs().max())
        if "minkowski" in rivals and "minkowski" in self.rivals:
            layer, anew, theirs = minkowski_layer(weight, level)
            calls["minkowski forward"], calls["minkowski both"] = no_grad(layer, x, theirs), with_gradients(layer, x, theirs)
            calls["minkowski forward with tables"] = no_grad(anew, x, theirs)
            difference["minkowski"] = float((calls["minkowski forward"]() - want).abs().max())
        self.rows.append({"operation": name, **cpu_ms(calls, self.rounds), "largest difference": difference})

    def through_backends(self, name: str, call: Callable[..., Tensor], x: Tensor, weight: Tensor, level: SparseLevel) -> None:
        """Our function, and the same function through the backends."""
        calls, difference = {}, {}
        want = call(x, weight, level)
        for backend in ("torch", *self.rivals):
            convolve = lambda x, w, backend=backend: call(x, w, level, backend=backend)  # noqa: E731
            prefix = "" if backend == "torch" else f"{backend} "
            calls[f"{prefix}forward"] = no_grad(convolve, x, weight)
            if backend != "spconv":
                calls[f"{prefix}both"] = with_gradients(convolve, x, weight)
            if backend != "torch":
                difference[backend] = float((calls[f"{prefix}forward"]() - want).abs().max())
        self.rows.append({"operation": name, **cpu_ms(calls, self.rounds), "largest difference": difference})

    def others(self) -> None:
        level = self.level()
        x, coarse, grn, norm = self.random(len(level), 64), level.coarser(2), EventGRN(128), EventLayerNorm(128)
        steps: dict[str, tuple[Callable[..., Tensor], Tensor]] = {
            "maximum over 2x2x2, 64": (lambda x: pool(x, level, 2, "max"), x),
            "back from 2x2x2, 64": (lambda x: unpool(x, level, 2), self.random(len(coarse), 64)),
            "EventGRN, 128": (lambda x: grn(x, level), self.random(len(level), 128)),
            "EventLayerNorm, 128": (lambda x: norm(x, level), self.random(len(level), 128)),
        }
        for size in (64, 256):
            windows = CurveWindows(level, "hilbert", 10, size)
            attention = lambda x, windows=windows: windowed_attention(x, windows, 4)  # noqa: E731
            steps[f"attention in windows of {size}, 64"] = (attention, self.random(len(level), 192))
        for name, (call, inputs) in steps.items():
            self.time(name, forward=no_grad(call, inputs), both=with_gradients(call, inputs))

    def growth(self) -> None:
        """The submanifold convolution on fewer and on more voxels, in one event and in a batch."""
        weight = self.random(27, 48, 48) / 36
        for events, voxels in ((1, self.voxels // 4), (1, self.voxels * 3), (8, self.voxels)):
            event = torch.arange(events).repeat_interleave(voxels)
            level = SparseLevel(torch.cat([tracks(voxels, seed) for seed in range(events)]), event, events)
            pairs = len(level.pairs(Kernel.submanifold(3))) / len(level)
            name = f"submanifold 3x3x3, 48 to 48, {events} x {voxels:,} voxels, {pairs:.1f} pairs a voxel"
            self.compare(name, submanifold_convolution, self.random(len(level), 48), weight, level, tuple(RIVALS))


def no_grad(call: Callable[..., Tensor], *inputs: Tensor) -> Callable[[], Tensor]:
    @torch.no_grad()
    def run() -> Tensor:
        return call(*inputs)

    return run


def gemm_rates(voxels: int, rounds: int) -> dict[str, float]:
    """GFLOP/s of a product as the convolution has it, and of a large one."""
    a, b, square = torch.randn(voxels, 48), torch.randn(48, 48), torch.randn(1024, 1024)
    ms = cpu_ms({"tall": lambda: a @ b, "square": lambda: square @ square}, rounds * 4)
    return {f"{voxels} x 48 by 48 x 48": 2e-6 * voxels * 48 * 48 / ms["tall"], "1024 x 1024 by 1024 x 1024": 2e-6 * 1024**3 / ms["square"]}


def measure(voxels: int = 20_000, rounds: int = 12) -> dict:
    """The whole benchmark: where it ran, and its rows; times in ms."""
    torch.manual_seed(0)
    benchmark = Benchmark(voxels, rounds)
    before = gemm_rates(voxels, rounds)
    benchmark.tables()
    benchmark.convolutions()
    benchmark.others()
    benchmark.growth()
    after = gemm_rates(voxels, rounds)
    return {
        "voxels": voxels,
        "threads": torch.get_num_threads(),
        "processor": processor(),
        "versions": versions(),
        "gflops": {name: max(rate, after[name]) for name, rate in before.items()},
        "rows": benchmark.rows,
    }


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("torch", "numpy", *RIVALS.values()):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def table(result: dict) -> str:
    """The rows as Markdown."""
    columns = {"forward": "forward", "both": "and backward", "forward with tables": "forward, tables made anew"}
    columns |= {f"{name} {column}": f"{library} {columns[column]}" for name, library in RIVALS.items() for column in list(columns)[:3]}
    shown = [column for column in columns if any(column in row for row in result["rows"])]
    lines = [f"| operation | {' | '.join(columns[column] for column in shown)} |", f"|---|{'---:|' * len(shown)}"]
    for row in result["rows"]:
        lines.append(f"| {row['operation']} | {' | '.join(f'{row[c]:.1f}' if c in row else '' for c in shown)} |")
    differences = [(name, d) for row in result["rows"] for name, d in row.get("largest difference", {}).items()]
    largest = {name: max(d for other, d in differences if other == name) for name, _ in differences}
    rates = ", ".join(f"{rate:.0f} GFLOP/s ({name})" for name, rate in result["gflops"].items())
    where = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    lines += ["", f"{result['processor']}, {result['threads']} thread, {where}. Matrix products in the same run: {rates}."]
    if largest:
        said = " and ".join(f"{d:.0e} from {RIVALS[name]}" for name, d in largest.items())
        lines += ["", f"Largest differences of the outputs, which are of size 1, in float32: {said}."]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--voxels", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--page", type=Path, help="write the table into this page, between its marks")
    arguments = parser.parse_args()
    result = measure(arguments.voxels, arguments.rounds)
    print(table(result))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if arguments.page is not None:
        write_page(arguments.page, MARK, table(result))


if __name__ == "__main__":
    main()
