"""Small batches of voxels, and their dense grids."""

import pytest
import torch

from nufm_hub.sparse import SparseLevel


@pytest.fixture
def make_voxels():
    def make(shape, count, events=3, seed=0):
        """Distinct voxels of a batch in random order: coordinates (count, 3), event (count,)."""
        generator = torch.Generator().manual_seed(seed)
        x, y, z = shape
        cell = torch.randperm(events * x * y * z, generator=generator)[:count]
        return torch.stack([cell // (y * z) % x, cell // z % y, cell % z], dim=1), cell // (x * y * z)

    return make


@pytest.fixture
def make_level(make_voxels):
    def make(shape, count, events=3, seed=0):
        return SparseLevel(*make_voxels(shape, count, events, seed), events)

    return make


@pytest.fixture
def dense():
    def dense(level, features, shape, empty=0.0):
        """(events, C, *shape) with the features of a level; differentiable."""
        places = (level.event, *level.coordinates.T)
        grid = features.new_full((level.num_events, *shape, features.shape[1]), empty).index_put(places, features)
        return grid.movedim(-1, 1)

    return dense


@pytest.fixture
def at_voxels():
    def at_voxels(grid, level):
        """(N, C): what a dense grid (events, C, x, y, z) has at the voxels of a level."""
        return grid.movedim(1, -1)[(level.event, *level.coordinates.T)]

    return at_voxels
