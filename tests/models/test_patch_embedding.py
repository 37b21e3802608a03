"""Sparse patch embedding against dense convolutions."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nufm_hub.detectors import VoxelBranch
from nufm_hub.models.nufm.configuration_nufm import NuFMConfig
from nufm_hub.models.nufm.patch_embedding import NuFMPatchEmbedding, choose_kernels, patchify

BATCH = 3
CASES = {
    "one convolution": VoxelBranch("b", (12, 12, 10), (1, 1, 1), (0, 0, 0), (6, 4, 5), (1, 3, 2)),
    "two convolutions": VoxelBranch("b", (24, 12, 20), (1, 1, 1), (0, 0, 0), (12, 12, 10), (2, 1, 1), channels=("energy", "time")),
    "patches beyond the grid": VoxelBranch("b", (10, 9, 11), (1, 1, 1), (0, 0, 0), (4, 4, 5), (2, 2, 2)),
}


def voxels(branch, count, seed=0):
    """Distinct voxels of a batch in random order: coordinates (N, 3), event (N,), features (N, C)."""
    generator = torch.Generator().manual_seed(seed)
    x, y, z = branch.shape
    cell = torch.randperm(BATCH * x * y * z, generator=generator)[:count]
    coordinates = torch.stack([cell // (y * z) % x, cell // z % y, cell % z], dim=1)
    return coordinates, cell // (x * y * z), torch.randn(count, len(branch.channels), generator=generator)


def dense_grid(branch, coordinates, event, features):
    """The hits on a grid of whole patches: what lies beyond the branch is empty."""
    grid = torch.zeros(BATCH, features.shape[1], *(n * p for n, p in zip(branch.patch_grid, branch.patch)))
    grid[event, :, coordinates[:, 0], coordinates[:, 1], coordinates[:, 2]] = features
    return grid


def make(branch, size):
    return NuFMPatchEmbedding(NuFMConfig(hidden_size=size, num_attention_heads=2), branch)


def dense_embedding(embed, grid):
    """(B, d, patches) the slow way, and the sub-patches that hold a hit are the only ones that GELU(LayerNorm) may fill."""
    project = embed.projection
    if embed.sub_patches == 1:
        return F.conv3d(grid, project.weight, project.bias, stride=project.kernel_size)
    sub = embed.sub_projection
    hidden = F.conv3d(grid, sub.weight, stride=sub.kernel_size)
    occupied = F.max_pool3d((grid != 0).any(1, keepdim=True).float(), sub.kernel_size)
    hidden = F.gelu(embed.sub_norm(hidden.movedim(1, -1))).movedim(-1, 1) * occupied
    return F.conv3d(hidden, project.weight, project.bias, stride=project.kernel_size)


@pytest.mark.parametrize("branch", CASES.values(), ids=CASES)
@pytest.mark.parametrize("count", [1, 40, 700])
def test_equals_dense_convolution_with_gradients(branch, count):
    torch.manual_seed(0)
    embed = make(branch, 16)
    coordinates, event, features = voxels(branch, count)
    features.requires_grad_(True)
    patches = patchify(coordinates, event, features, torch.arange(count), branch, BATCH)
    got, _ = embed(patches)

    cotangent = torch.randn_like(got)
    parameters = [features, *embed.parameters()]
    got_gradients = torch.autograd.grad((got * cotangent).sum(), parameters)

    dense = dense_embedding(embed, dense_grid(branch, coordinates, event, features))
    # the patch of each row, from window and position
    w = branch.window
    window = torch.stack(torch.unravel_index(patches.window, branch.window_grid), 1)
    inside = torch.stack(torch.unravel_index(patches.position, w), 1)
    patch = window * torch.tensor(w) + inside
    want = dense[patches.event, :, patch[:, 0], patch[:, 1], patch[:, 2]]
    want_gradients = torch.autograd.grad((want * cotangent).sum(), parameters)

    occupied = F.max_pool3d((dense_grid(branch, coordinates, event, features.detach()) != 0).any(1, keepdim=True).float(), branch.patch)
    assert len(patches) == int(occupied.sum())
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    for a, b in zip(got_gradients, want_gradients):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("branch", CASES.values(), ids=CASES)
def test_float64_gradients(branch):
    embed = make(branch, 8).double()
    coordinates, event, features = voxels(branch, 12)

    def run(x):
        return embed(patchify(coordinates, event, x, torch.arange(12), branch, BATCH))[0]

    assert torch.autograd.gradcheck(run, features.double().requires_grad_(True))


@pytest.mark.parametrize("branch", CASES.values(), ids=CASES)
def test_order_of_voxels_does_not_matter(branch):
    embed = make(branch, 16)
    coordinates, event, features = voxels(branch, 200)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(1))
    a, _ = embed(patchify(coordinates, event, features, torch.arange(200), branch, BATCH))
    b, _ = embed(patchify(coordinates[order], event[order], features[order], order, branch, BATCH))
    assert torch.equal(a, b)


@pytest.mark.parametrize("branch", CASES.values(), ids=CASES)
def test_no_voxel_gives_no_row(branch):
    embed = make(branch, 16)
    none = torch.zeros(0, 3, dtype=torch.long)
    out, _ = embed(patchify(none, none[:, 0], torch.zeros(0, len(branch.channels)), none[:, 0], branch, BATCH))
    assert out.shape == (0, 16)
    out.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in embed.parameters())


def test_voxels_at_the_same_place_add_up():
    branch = CASES["two convolutions"]
    embed = make(branch, 16)
    coordinates = torch.tensor([[3, 4, 5], [3, 4, 5], [20, 1, 2]])
    features = torch.randn(3, 2)
    event, voxel = torch.zeros(3, dtype=torch.long), torch.arange(3)
    twice, _ = embed(patchify(coordinates, event, features, voxel, branch, 1))
    once, _ = embed(patchify(coordinates[1:], event[1:], torch.stack([features[0] + features[1], features[2]]), voxel[1:], branch, 1))
    torch.testing.assert_close(twice, once)


def test_select_equals_embedding_first():
    branch = CASES["two convolutions"]
    embed = make(branch, 16)
    coordinates, event, features = voxels(branch, 300)
    patches = patchify(coordinates, event, features, torch.arange(300), branch, BATCH)
    keep = torch.arange(len(patches)) % 3 != 1
    chosen = patches.select(keep)
    torch.testing.assert_close(embed(chosen)[0], embed(patches)[0][keep])
    assert torch.equal(chosen.features, features[chosen.voxel])
    assert torch.equal(chosen.event[chosen.row], event[chosen.voxel])


def test_offset_is_row_major_in_the_patch():
    branch = CASES["two convolutions"]
    coordinates, event, features = voxels(branch, 50)
    patches = patchify(coordinates, event, features, torch.arange(50), branch, BATCH)
    x, y, z = (coordinates % torch.tensor(branch.patch)).unbind(1)
    assert torch.equal(patches.offset, (x * 12 + y) * 10 + z)


@pytest.mark.parametrize(
    ("patch", "first", "second"),
    [
        ((12, 12, 10), (4, 4, 2), (3, 3, 5)),
        ((16, 16, 4), (4, 4, 2), (4, 4, 2)),
        ((9, 9, 10), (3, 3, 2), (3, 3, 5)),
        ((11, 13, 7), (1, 1, 1), (11, 13, 7)),
    ],
)
def test_kernels_of_two_convolutions(patch, first, second):
    assert choose_kernels(patch) == (first, second)


class LargestTensor(TorchDispatchMode):
    """Bytes of the largest tensor that any operation gives."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        sizes = [t.numel() * t.element_size() for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
        self.bytes = max(self.bytes, *sizes, 0)
        return out


def test_memory_follows_the_voxels_and_not_the_grid():
    branch, count, batch = VoxelBranch("b", (768, 768, 768), (1, 1, 1), (0, 0, 0), (4, 4, 4), (8, 8, 8)), 16_000, 16
    generator = torch.Generator().manual_seed(0)
    coordinates = torch.randint(0, 768, (count, 3), generator=generator)
    event = torch.randint(0, batch, (count,), generator=generator)
    embed = make(branch, 16)
    with LargestTensor() as largest:
        patches = patchify(coordinates, event, torch.ones(count, 1), torch.arange(count), branch, batch)
        embed(patches)
    assert len(patches) > 0.99 * count
    # the patches' cells, 64 float32 each; a table of all patches of the batch has 906 MB
    assert count * 4 * 64 * 0.99 < largest.bytes <= count * 4 * 64


def test_rejects_events_outside_the_batch():
    branch = CASES["one convolution"]
    with pytest.raises(ValueError, match="events from 1 to 1 leave the batch of 1"):
        patchify(torch.tensor([[1, 0, 0]]), torch.tensor([1]), torch.ones(1, 1), torch.tensor([0]), branch, 1)


def test_rejects_voxels_outside_the_grid():
    branch = CASES["one convolution"]
    with pytest.raises(ValueError, match=r"\[12, 0, 0\] leave the grid"):
        patchify(torch.tensor([[12, 0, 0]]), torch.tensor([0]), torch.ones(1, 1), torch.tensor([0]), branch, 1)
