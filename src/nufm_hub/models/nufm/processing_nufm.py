"""Events as NuFM models take them: padded lists of voxels, images, and tracks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from nufm_hub.events import Event
from nufm_hub.models.common.processing import EventProcessor


class NuFMProcessor(EventProcessor):
    """Turns events of one detector into padded batches, and model outputs into physical units; see `EventProcessor` and `NuFMInputs`."""

    model_input_names = (
        "voxel_coordinates", "voxel_features", "voxel_branch", "image_features", "track_features", "track_mask", "branch_mask", "voxel_energy",
        "summary_features", "start_position",
    )  # fmt: skip

    def inputs(self, events: Sequence[Event]) -> dict[str, torch.Tensor]:
        """`voxel_coordinates` int64 (B, N, 3), `voxel_features` float32 (B, N, C), `voxel_branch` int64 (B, N) with -1 for padding,
        `voxel_energy` float32 (B, N), energy over k, the median of the fit, `branch_mask` bool (B, branches), and where the detector has them
        `image_features` float32 (B, D), `track_features` float32 (B, T, F), `track_mask` bool (B, T); where the numbers were fitted
        `summary_features` float32 (B, F) and `start_position` float32 (B, 3), mm, NaN where there is none."""
        data = self._voxel_inputs(events) | {"branch_mask": self.branch_mask(events)}
        if (image := self.spec.image_branch) is not None:
            features = np.zeros((len(events), image.size), dtype=np.float32)
            for row, event in zip(features, events):
                if image.name in event.images:
                    row[:] = self.standardise("image", image.name, np.asarray(event.images[image.name], dtype=np.float32).reshape(1, -1))
            data["image_features"] = torch.from_numpy(features)
        if self.spec.track_branch is not None:
            data["track_features"], data["track_mask"] = self._track_inputs(events)
        if "summary" in self.statistics:
            data |= {"summary_features": self.summary(events), "start_position": self.starts(events)}
        return data

    def _voxel_inputs(self, events: Sequence[Event]) -> dict[str, torch.Tensor]:
        branches = self.spec.voxel_branches
        shape = (len(events), self.most_voxels(events))
        coordinates = np.zeros((*shape, 3), dtype=np.int64)
        features = np.zeros((*shape, max(len(b.channels) for b in branches)), dtype=np.float32)
        branch_index = np.full(shape, -1, dtype=np.int64)
        energy = np.zeros(shape, dtype=np.float32)
        for row, event in enumerate(events):
            start = 0
            for index, branch in enumerate(branches):
                if branch.name not in event.voxels:
                    continue
                voxels = event.voxels[branch.name]
                stop = start + len(voxels)
                coordinates[row, start:stop] = voxels.coordinates
                features[row, start:stop, : len(branch.channels)] = self.standardise("voxels", branch.name, voxels.values)
                branch_index[row, start:stop] = index
                if len(voxels):
                    energy[row, start:stop] = voxels.energy / self.statistics["voxels"][branch.name]["k"][0]
                start = stop
        return {
            "voxel_coordinates": torch.from_numpy(coordinates),
            "voxel_features": torch.from_numpy(features),
            "voxel_branch": torch.from_numpy(branch_index),
            "voxel_energy": torch.from_numpy(energy),
        }

    def _track_inputs(self, events: Sequence[Event]) -> tuple[torch.Tensor, torch.Tensor]:
        branch = self.spec.track_branch
        columns = [branch.features.index(name) for name in branch.model_features]
        width = max([1, *(min(len(e.tracks.get(branch.name, ())), branch.max_count) for e in events)])
        features = np.zeros((len(events), width, len(columns)), dtype=np.float32)
        mask = np.zeros((len(events), width), dtype=bool)
        for row, event in enumerate(events):
            tracks = event.tracks.get(branch.name)
            if tracks is not None and len(tracks):
                kept = self.standardise("tracks", branch.name, np.asarray(tracks, dtype=np.float32)[: branch.max_count])
                features[row, : len(kept)] = kept[:, columns]
                mask[row, : len(kept)] = True
        return torch.from_numpy(features), torch.from_numpy(mask)
