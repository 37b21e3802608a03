"""Model cards: every number comes from a file that a command writes, and every table names that command."""

from nufm_hub.lazy import lazy_names

__all__ = ["make_card", "write_card"]

# Models cost seconds to import; the command line does not need them.
__getattr__ = lazy_names(__name__, dict.fromkeys(__all__, "card"))
