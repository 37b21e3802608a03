"""What a physicist does in an afternoon: geometry without training, and trees on summary numbers. The rivals of every model here."""

from nufm_hub.lazy import lazy_names

_PUBLIC = {
    "RIVALS": "trees",
    "predict": "trees",
}

__all__ = sorted(_PUBLIC)

# scikit-learn costs a second to import
__getattr__ = lazy_names(__name__, _PUBLIC)
