"""Event displays of any detector: `plot_event` (matplotlib figure) and `event_html` (one interactive page that opens offline).

Both need `pip install "nufm-hub[display]"`.
"""

from .interactive import event_html
from .static import plot_event

__all__ = ["event_html", "plot_event"]
