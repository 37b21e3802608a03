"""Held-out simulated events that come with the package; none of them was used in any training."""

from pathlib import Path

_FOLDER = Path(__file__).parent


def list_samples() -> list[str]:
    """Detectors with a packaged sample."""
    return sorted(p.stem for p in _FOLDER.glob("*.parquet"))


def sample_path(detector: str = "fasercal") -> Path:
    """Parquet file of a detector's sample; where it came from is said in the JSON file of the same name.

    Raises:
        ValueError: no sample of this detector.
    """
    path = _FOLDER / f"{detector}.parquet"
    if not path.is_file():
        raise ValueError(f"no sample of detector {detector!r}; there are {list_samples()}")
    return path
