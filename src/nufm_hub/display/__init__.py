"""Event displays of any detector: `plot_event` (matplotlib figure) and `event_html` (one interactive page that opens offline).

Both need `pip install "nufm-hub[display]"`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .interactive import event_html
    from .static import plot_event

__all__ = ["event_html", "plot_event"]

_HOMES = {"event_html": "interactive", "plot_event": "static"}


def __getattr__(name: str) -> Any:
    # Lazily, so that the command line can mount `command.show` without importing what reads events.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
