"""Tables and numbers as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


def table(head: Sequence[str], rows: Iterable[Sequence[Any]], numbers_from: int = 1) -> str:
    """A table; the columns from `numbers_from` on are aligned to the right. Without rows, nothing."""
    if not (rows := list(rows)):
        return ""
    align = ["---" if i < numbers_from else "---:" for i in range(len(head))]
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in (head, align, *rows))


def number(value: float | None) -> str:
    """Four significant digits; integers in full."""
    if value is None:
        return "undefined"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def interval(low: float | None, high: float | None) -> str:
    """Both ends, or a dash where there is no interval."""
    return "–" if low is None or high is None else f"{number(low)} to {number(high)}"


def revision(commit: str | None) -> str:
    """A commit, shortened; `-dirty` stays."""
    return "unknown" if not commit else f"`{commit[:12]}{'-dirty' if commit.endswith('-dirty') else ''}`"
