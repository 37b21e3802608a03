"""What a training step costs, in floating-point operations and on one thread of this machine, for every preset.

    OMP_NUM_THREADS=1 python benchmarks/training.py --json benchmarks/training.json --page docs/training.md

On the packaged FASERCal events. Operations are counted by torch (matrix products and attention, forward and backward); times are CPU time
of the process, the smallest of several rounds. The rate of a large matrix product in the same run tells machines apart.
"""

from __future__ import annotations

import argparse
import json
from itertools import islice
from pathlib import Path

import torch
from common import cpu_ms, processor, write_page
from torch.utils.flop_counter import FlopCounterMode

from nufm_hub import NuFMConfig, NuFMProcessor, read_events, sample_path
from nufm_hub.models import NuFMForEventReconstruction, NuFMForPreTraining
from nufm_hub.provenance import package_versions
from nufm_hub.training import load_recipe

MARK = "<!-- benchmark: written by benchmarks/training.py -->\n"
KINDS = {"pre-training": (NuFMForPreTraining, "voxels"), "reconstruction": (NuFMForEventReconstruction, "reconstruction")}
# What the method's paper trained with, arXiv:2604.07037: samples seen in pre-training.
PUBLISHED_SAMPLES = 40e6
# A guess of what a GPU sustains on such sparse work, TFLOP/s; nothing was measured on one.
GPU_RATES = (10, 30)


def step_of(preset: str, kind: str, events: list, rounds: int) -> dict:
    """A row of the table: parameters of the encoder, and what forward and backward of a batch cost."""
    model_class, labels = KINDS[kind]
    recipe = load_recipe("fasercal-scratch-nano")
    fitted = NuFMProcessor.fit(events, "fasercal").with_summary(events)
    scales = {"momentum_scales": fitted.momentum_scales, "vertex_scale": fitted.vertex_scale}
    torch.manual_seed(0)
    model = model_class(NuFMConfig.preset(preset, **recipe.model | scales)).train()
    batch = fitted(events, labels=labels)

    def call() -> None:
        model(**batch).loss.backward()

    flop, times = [], []
    # the relational pass of pre-training runs in half of the steps, by chance: count it as that
    for share in (0.0, 1.0) if kind == "pre-training" else (0.0,):
        model.config.relational_probability = share
        with FlopCounterMode(display=False) as counter:
            call()
        flop.append(counter.get_total_flops() / len(events) / 1e9)
        times.append(cpu_ms({kind: call}, rounds)[kind] / len(events))
    parameters = sum(p.numel() for name, p in model.named_parameters() if name.startswith(("embeddings.", "encoder.")))
    return {
        "preset": preset,
        "training": kind,
        "parameters": parameters,
        "gflop_per_event": sum(flop) / len(flop),
        "ms_per_event": sum(times) / len(times),
    }


def measure(presets: list[str], num_events: int = 16, rounds: int = 3) -> dict:
    """The whole benchmark: where it ran, and its rows."""
    events = list(islice(read_events(sample_path("fasercal")), num_events))
    square = torch.randn(1024, 1024)
    rate = 2e-6 * 1024**3 / cpu_ms({"square": lambda: square @ square}, 4 * rounds)["square"]
    rows = [step_of(preset, kind, events, rounds) for preset in presets for kind in KINDS]
    return {
        "events": num_events,
        "voxels": sum(len(v) for event in events for v in event.voxels.values()) / num_events,
        "threads": torch.get_num_threads(),
        "processor": processor(),
        "versions": package_versions(),
        "gflops": rate,
        "rows": rows,
    }


def table(result: dict) -> str:
    """The rows as Markdown, with what follows for a million events."""
    low, high = GPU_RATES
    head = ("preset", "training", "encoder parameters", "GFLOP an event", "ms an event, one thread", "share of the GEMM rate")
    head += ("a million events: hours of two cores", "hours of a GPU")
    lines = [f"| {' | '.join(head)} |", f"|---|---|{'---:|' * 6}"]
    for row in result["rows"]:
        flop, ms = row["gflop_per_event"], row["ms_per_event"]
        gpu = [flop * 1e6 / rate / 1e3 / 3600 for rate in (high, low)]
        cells = (f"`{row['preset']}`", row["training"], f"{row['parameters'] / 1e6:.1f} M", f"{flop:.2f}", f"{ms:.0f}")
        cells += (f"{flop / ms * 1e3 / result['gflops']:.0%}", f"{ms * 1e6 / 1e3 / 3600 / 2:.1f}", f"{gpu[0]:.2g} to {gpu[1]:.2g}")
        lines.append(f"| {' | '.join(cells)} |")
    largest = max((r for r in result["rows"] if r["training"] == "pre-training"), key=lambda r: r["gflop_per_event"])
    total = largest["gflop_per_event"] * 1e9 * PUBLISHED_SAMPLES
    hours = [total / (rate * 1e12) / 3600 for rate in (high, low)]
    lines += [
        "",
        f"{result['processor']}, {result['threads']} thread, a matrix product of 1024 x 1024 at {result['gflops']:.0f} GFLOP/s; batches of "
        f"{result['events']} packaged events of {result['voxels']:.0f} voxels, with all options of `fasercal-scratch-nano`. Two cores are taken for "
        f"two such threads, and the hours of a GPU for {low} to {high} TFLOP/s, which is a guess: nothing was run on one.",
        "",
        f"The scale of the method's paper, {PUBLISHED_SAMPLES / 1e6:.0f} million samples, is {total:.1e} FLOP of pre-training with "
        f"`{largest['preset']}`, so {hours[0]:.1f} to {hours[1]:.0f} hours of one GPU at these rates.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", action="append", help="of these presets; all if left out")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--page", type=Path, help="write the table into this page, between its marks")
    arguments = parser.parse_args()
    result = measure(arguments.preset or list(NuFMConfig.presets), rounds=arguments.rounds)
    print(table(result))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if arguments.page is not None:
        write_page(arguments.page, MARK, table(result))


if __name__ == "__main__":
    main()
