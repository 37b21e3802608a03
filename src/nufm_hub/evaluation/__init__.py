"""What a checkpoint is worth on events that it has not seen: `evaluate`, one function for every head."""

from nufm_hub.lazy import lazy_names

__all__ = ["checkpoint_folder", "class_scores", "evaluate", "vertex_scores", "weights_sha256"]

# Models cost seconds to import; the command line does not need them.
__getattr__ = lazy_names(
    __name__,
    {
        **dict.fromkeys(("checkpoint_folder", "evaluate"), "checkpoint"),
        "weights_sha256": "source",
        **dict.fromkeys(("class_scores", "vertex_scores"), "scores"),
    },
)
