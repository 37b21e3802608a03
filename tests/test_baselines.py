"""What the packaged checkpoints give on the packaged events is pinned: a change of the code that changes predictions is seen.

After a checkpoint or a sample was replaced, `python tests/test_baselines.py` measures all of them anew and writes `baselines.json`.
"""

import json
from pathlib import Path

import pytest
import torch

from nufm_hub import list_checkpoints
from nufm_hub.evaluation import evaluate
from nufm_hub.studies.tables import flatten

FILE = Path(__file__).with_name("baselines.json")
COMMAND = "python tests/test_baselines.py"


def measure(checkpoint: str) -> tuple[str, str, dict[str, float]]:
    """Hash of the weights, hash of the events, metrics; on one thread, since the order of sums depends on their number."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        result = evaluate(checkpoint, seed=0, num_resamples=0, use_cpu=True)
    finally:
        torch.set_num_threads(threads)
    metrics = {name: value for name, value in flatten(result["metrics"]).items() if value is not None}
    return result["weights_sha256"], result["data"]["events_sha256"], metrics


@pytest.mark.parametrize("checkpoint", list_checkpoints())
def test_metrics_are_as_pinned(checkpoint):
    weights, events, metrics = measure(checkpoint)
    pinned = json.loads(FILE.read_text(encoding="utf-8"))
    assert weights in pinned, f"the weights of {checkpoint} ({weights[:12]}) have no baseline: run `{COMMAND}`, and look at what changed"
    assert events in pinned[weights]["metrics"], f"{checkpoint} has no baseline for these packaged events ({events[:12]}): run `{COMMAND}`"
    assert metrics == pytest.approx(pinned[weights]["metrics"][events], rel=1e-4, abs=1e-4)


def main() -> None:
    pinned = {}
    for checkpoint in list_checkpoints():
        weights, events, metrics = measure(checkpoint)
        pinned[weights] = {"checkpoint": checkpoint, "metrics": {events: metrics}}
    FILE.write_text(json.dumps(pinned, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
