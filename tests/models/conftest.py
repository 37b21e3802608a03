"""A small detector with every kind of branch, and batches for it."""

from types import SimpleNamespace

import pytest
import torch

from nufm_hub.detectors import DetectorSpec
from nufm_hub.models import NuFMConfig

SPEC = {
    "name": "toy",
    "event_labels": {"flavour": ["nue", "numu", "nc"], "particle": ["e", "mu", "pi", "p"]},
    "branches": [
        {
            "kind": "voxels", "name": "cubes", "shape": [24, 12, 40], "voxel_size": [1, 1, 1], "origin": [0, 0, 0],
            "patch": [6, 6, 5], "window": [4, 2, 2],
            "labels": [{"name": "ghost", "classes": ["ghost"]}, {"name": "kind", "classes": ["em", "mu", "had"]}],
        },
        {
            "kind": "voxels", "name": "bars", "shape": [12, 24, 20], "voxel_size": [1, 1, 1], "origin": [0, 0, 50],
            "patch": [12, 12, 10], "window": [1, 2, 1], "channels": ["energy", "time"],
        },
        {"kind": "image", "name": "towers", "shape": [2, 3]},
        {"kind": "tracks", "name": "muon", "features": ["q", "px", "py"], "max_count": 4, "model_features": ["q", "py"]},
    ],
}  # fmt: skip
SHAPES = torch.tensor([b["shape"] for b in SPEC["branches"][:2]])
SMALL = {
    "hidden_size": 24, "num_attention_heads": 2, "window_depths": [2, 1], "fusion_depth": 2,
    "decoder_hidden_size": 16, "decoder_num_attention_heads": 2, "decoder_depth": 1,
}  # fmt: skip


def small_config(**overrides) -> NuFMConfig:
    return NuFMConfig(**({"detector": SPEC} | SMALL | overrides))


def make_event(cubes: int, bars: int, tracks: int, seed: int) -> dict[str, torch.Tensor]:
    """One event with the given numbers of distinct voxels and tracks."""
    generator = torch.Generator().manual_seed(seed)
    coordinates = []
    for shape, count in zip(SHAPES.tolist(), (cubes, bars)):
        x, y, z = shape
        cell = torch.randperm(x * y * z, generator=generator)[:count]
        coordinates.append(torch.stack([cell // (y * z), cell // z % y, cell % z], dim=1))
    count = cubes + bars
    labels = torch.full((count, 4), -100.0)
    labels[:cubes, 0] = (torch.rand(cubes, generator=generator) < 0.3).float()
    labels[:cubes, 1:] = torch.softmax(2 * torch.randn(cubes, 3, generator=generator), dim=1)
    labels[:cubes, 1:][labels[:cubes, 0] == 1] = -100.0
    return {
        "voxel_coordinates": torch.cat(coordinates),
        "voxel_features": torch.randn(count, 2, generator=generator),
        "voxel_branch": torch.tensor([0] * cubes + [1] * bars),
        "image_features": torch.randn(6, generator=generator),
        "track_features": torch.randn(4, 2, generator=generator),
        "track_mask": torch.arange(4) < tracks,
        "voxel_labels": labels,
    }


def collate(events: list[dict[str, torch.Tensor]], extra: int = 0) -> dict[str, torch.Tensor]:
    """Padded batch without the voxel labels; `extra` adds padding."""
    batch = collate_with_labels(events, extra)
    del batch["voxel_labels"]
    return batch


def collate_with_labels(events: list[dict[str, torch.Tensor]], extra: int = 0) -> dict[str, torch.Tensor]:
    length = max(len(e["voxel_branch"]) for e in events) + extra
    fill = {"voxel_coordinates": 0, "voxel_features": 0.0, "voxel_branch": -1, "voxel_labels": -100.0}
    batch = {}
    for key in events[0]:
        rows = [e[key] for e in events]
        if key in fill:
            rows = [torch.cat([r, torch.full((length - len(r), *r.shape[1:]), fill[key], dtype=r.dtype)]) for r in rows]
        batch[key] = torch.stack(rows)
    return batch


MIXED = [(200, 30, 2, 0), (0, 0, 0, 1), (1, 0, 1, 2), (3000, 500, 4, 3), (0, 40, 0, 4), (60, 0, 0, 5)]


def check_parts_average_to_whole(net: torch.nn.Module, whole: dict, parts: list[dict]) -> None:
    """What gradient accumulation and several processes rest on: loss and gradients, however the labels are spread over the parts."""

    def gradients(batches):
        net.zero_grad()
        losses = [net(**batch).loss / len(batches) for batch in batches]
        torch.stack(losses).sum().backward()
        return sum(loss.item() for loss in losses), {name: p.grad.clone() for name, p in net.named_parameters()}

    (loss, wanted), (total, got) = gradients([whole]), gradients(parts)
    assert total == pytest.approx(loss, rel=1e-5)
    torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-5)


def mixed_events() -> list[dict[str, torch.Tensor]]:
    return [make_event(*arguments) for arguments in MIXED]


@pytest.fixture
def toy() -> SimpleNamespace:
    return SimpleNamespace(
        spec=DetectorSpec.from_dict(SPEC),
        config=small_config,
        event=make_event,
        collate=collate,
        collate_with_labels=collate_with_labels,
        mixed_events=mixed_events,
        check_parts_average_to_whole=check_parts_average_to_whole,
    )
