"""Data sets of crops: parquet in, parquet out, split so that nothing leaks from training to test."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from nufm_hub.detectors import DetectorSpec
from nufm_hub.files import new_folder

from .crops import MIN_VOXELS, crop_clamped, crop_detector, crop_particle, particle_crops
from .event import Event
from .parquet import read_detector, read_events, write_events
from .splits import GROUPS, SPLITS, split_events
from .streaming import list_shards

PROVENANCE = "provenance.json"


@dataclass(frozen=True)
class CropSettings:
    """How to crop the events of a detector; see `nufm_hub.events.crops`.

    Attributes:
        shape, patch, window: voxels of a crop, voxels of a patch, patches of a window.
        fit: `"clamp"`: events of one particle each, the crop is moved inside the detector. `"scale"`: every particle instance of an image,
            shrunk to fit.
        group_by: what must not be divided between training and test, see `nufm_hub.events.splits.group_key`.
        features: give each crop its 31 features, as the one row of a track branch.
        min_voxels: of a particle worth identifying.
    """

    shape: tuple[int, int, int]
    patch: tuple[int, int, int]
    window: tuple[int, int, int]
    fit: str
    group_by: str
    features: bool = True
    min_voxels: int = MIN_VOXELS

    def __post_init__(self) -> None:
        for name in ("shape", "patch", "window"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.fit not in ("clamp", "scale") or self.group_by not in GROUPS or self.min_voxels < 1:
            raise ValueError(f"{self}: fit is 'clamp' or 'scale', group_by one of {GROUPS}, min_voxels at least 1")

    @classmethod
    def load(cls, settings: str | Path | Mapping[str, Any], **overrides: Any) -> CropSettings:
        """From the name of a packaged detector (published settings, arXiv:2604.07037), a JSON file or a dictionary.

        Raises:
            ValueError: unknown name or field, or a value out of range.
        """
        if isinstance(settings, Mapping):
            data = dict(settings)
        else:
            packaged = json.loads((resources.files(__package__) / "crops.json").read_text(encoding="utf-8"))
            if str(settings) in packaged:
                data = packaged[str(settings)]
            elif Path(settings).is_file():
                data = json.loads(Path(settings).read_text(encoding="utf-8"))
            else:
                raise ValueError(f"no crop settings for {str(settings)!r}: there are some for {sorted(packaged)}; give a JSON file for others")
        try:
            return cls(**data | overrides)
        except TypeError as error:
            raise ValueError(f"crop settings {settings}: {error}; the fields are {[f.name for f in fields(cls)]}") from error

    def detector(self, spec: DetectorSpec) -> DetectorSpec:
        """The detector the crops belong to."""
        return crop_detector(spec, self.shape, self.patch, self.window, self.fit, self.features)

    def crops(self, event: Event, spec: DetectorSpec, crop_spec: DetectorSpec) -> Iterator[Event]:
        """The crops of an event; none of particles with fewer than `min_voxels` voxels, in all or in the crop."""
        if self.fit == "scale":
            yield from particle_crops(event, spec, crop_spec, self.min_voxels)
            return
        branch = spec.voxel_branches[0]
        voxels = event.voxels.get(branch.name, ())
        if len(voxels) >= self.min_voxels and len(crop_clamped(voxels, branch.shape, self.shape).rows) >= self.min_voxels:
            yield crop_particle(event, spec, crop_spec)


def write_crops(
    source: str | Path | Sequence[str | Path],
    out: str | Path,
    settings: CropSettings | None = None,
    fractions: tuple[float, float, float] = (0.85, 0.05, 0.10),
    seed: int = 7,
) -> dict[str, int]:
    """Crop the events of parquet shards into `out/train`, `out/validation` and `out/test`, one shard for each of the source.

    The crops of an event follow one another. `provenance.json` in each folder says what they were made from and how. `out` appears when
    all is done.

    Args:
        source: file, folder, glob pattern, or a list of these.
        out: a new folder.
        settings: those of the detector (`CropSettings.load(detector name)`) when None.
        fractions, seed: of the split, see `split_events`; its groups are `settings.group_by`.

    Returns:
        Number of crops of each split.

    Raises:
        ValueError: no events, events without the truth to crop or split by, or no settings for the detector.
        FileExistsError: `out` exists.
    """
    shards = list_shards(source)
    spec = read_detector(shards[0])
    settings = CropSettings.load(spec.name) if settings is None else settings
    crop_spec = settings.detector(spec)
    split_of = {int(i): name for name, rows in split_events(shards, fractions, seed, settings.group_by).items() for i in rows}
    counts, number = dict.fromkeys(SPLITS, 0), 0
    record = {
        "crops": asdict(settings),
        "split": {"fractions": fractions, "seed": seed},
        "shards": [Path(shard).name for shard in shards],
        "source": origins(shards),
    }
    with new_folder(out) as folder:
        for shard in tqdm(shards, desc="crop", unit="shard"):
            held: dict[str, list[Event]] = {name: [] for name in SPLITS}
            for event in read_events(shard):
                held[split_of[number]] += settings.crops(event, spec, crop_spec)
                number += 1
            for name, crops in held.items():
                if crops:
                    (folder / name).mkdir(exist_ok=True)
                    counts[name] += write_events(crops, folder / name / Path(shard).name, crop_spec)
        for name in SPLITS:
            if counts[name]:
                (folder / name / PROVENANCE).write_text(json.dumps(record | {"part": name}, indent=1) + "\n", encoding="utf-8")
    return counts


def origins(shards: Sequence[str | Path]) -> list[dict[str, Any]]:
    """What the provenance of each folder of event files says, without its list of shards; nothing where there is none."""
    found = []
    for folder in sorted({Path(shard).parent for shard in shards}):
        path = folder / PROVENANCE
        data = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        found.append({k: v for k, v in data.items() if k != "shards"})
    return found
