"""What benchmarks share: times, the machine, and tables in pages."""

from __future__ import annotations

import platform
import re
import time
from collections.abc import Callable
from pathlib import Path

END = "<!-- end of benchmark -->\n"


def cpu_ms(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Smallest CPU time of the process for each call, in ms; the calls take turns.

    Each is timed right after a run of itself that is not, so that none pays for the tables, nor for the caches that another one left.
    """
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(rounds):
        for name, call in calls.items():
            call()
            begin = time.process_time()
            call()
            best[name] = min(best[name], 1e3 * (time.process_time() - begin))
    return best


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def write_page(page: Path, mark: str, text: str) -> None:
    """Put a table between a mark of a page and the next `END`.

    Raises:
        ValueError: a page without the marks.
    """
    held = page.read_text(encoding="utf-8")
    between = re.compile(re.escape(mark) + ".*?" + re.escape(END), re.DOTALL)
    if not between.search(held):
        raise ValueError(f"{page} has no lines {mark!r} and {END!r} for the table to stand between")
    page.write_text(between.sub(lambda _: mark + text + END, held), encoding="utf-8")
