"""Event displays of any detector: `plot_event` (matplotlib figure) and `event_html` (one interactive page that opens offline).

Both need `pip install "nufm-hub[display]"`.
"""

from typing import TYPE_CHECKING

from nufm_hub.lazy import lazy_names

if TYPE_CHECKING:
    from .interactive import event_html
    from .static import plot_event

__all__ = ["event_html", "plot_event"]

# Lazily, so that the command line can mount `command.show` without importing what reads events.
__getattr__ = lazy_names(__name__, {"event_html": "interactive", "plot_event": "static"})
