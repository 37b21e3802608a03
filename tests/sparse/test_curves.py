"""Space-filling curves against their definitions, bit by bit."""

import itertools

import pytest
import torch

from nufm_hub.sparse import CURVES, hilbert, morton


def morton_by_bits(x, y, z, depth):
    code = 0
    for bit in reversed(range(depth)):
        for axis in (x, y, z):
            code = code * 2 + (axis >> bit & 1)
    return code


def hilbert_by_bits(x, y, z, depth):
    """Skilling's algorithm on lists of bits, highest first; the exchange and the inversion of lower bits written out."""
    axes = [[value >> bit & 1 for bit in reversed(range(depth))] for value in (x, y, z)]
    for level in range(depth - 1):
        for axis in axes:
            for lower in range(level + 1, depth):
                if axis[level]:
                    axes[0][lower] = 1 - axes[0][lower]
                else:
                    axes[0][lower], axis[lower] = axis[lower], axes[0][lower]
    bits = [axes[i][level] for level in range(depth) for i in range(3)]
    code, one = 0, 0
    for bit in bits:  # the bits in turns are a Gray code of the place on the curve
        one ^= bit
        code = code * 2 + one
    return code


@pytest.mark.parametrize("depth", [1, 2, 3, 10, 16, 20])
def test_equals_the_definition(depth):
    coordinates = torch.randint(0, 1 << depth, (200, 3), generator=torch.Generator().manual_seed(depth))
    coordinates[:2] = torch.tensor([[0], [(1 << depth) - 1]])
    assert morton(coordinates, depth).tolist() == [morton_by_bits(*c, depth) for c in coordinates.tolist()]
    assert hilbert(coordinates, depth).tolist() == [hilbert_by_bits(*c, depth) for c in coordinates.tolist()]


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_hilbert_neighbours_share_a_face(depth):
    cube = torch.tensor(list(itertools.product(range(1 << depth), repeat=3)))
    for curve in ("hilbert", "hilbert-transposed"):
        codes = CURVES[curve](cube, depth)
        assert torch.equal(codes.sort().values, torch.arange(len(cube)))
        assert ((cube[codes.argsort()].diff(dim=0)).abs().sum(1) == 1).all()


def test_transposed_curves_exchange_x_and_y():
    coordinates = torch.randint(0, 64, (50, 3))
    exchanged = coordinates[:, [1, 0, 2]]
    assert torch.equal(CURVES["hilbert-transposed"](coordinates, 6), hilbert(exchanged, 6))
    assert torch.equal(CURVES["morton-transposed"](coordinates, 6), morton(exchanged, 6))


def test_morton_codes_do_not_depend_on_the_depth_and_hilbert_codes_do():
    coordinates = torch.randint(0, 64, (50, 3))
    assert torch.equal(morton(coordinates, 6), morton(coordinates, 9))
    assert not torch.equal(hilbert(coordinates, 6), hilbert(coordinates, 7))


@pytest.mark.parametrize("curve", CURVES)
def test_what_is_out_of_range_is_refused(curve):
    for coordinates, depth, message in (
        ([[0, 8, 0]], 3, "coordinates from 0 to 8 leave 0 .. 7"),
        ([[0, -1, 0]], 3, "coordinates from -1 to 0 leave"),
        ([[0, 0, 0]], 0, "depth must be 1 to 20"),
        ([[0.0, 0.5, 0.0]], 3, "must be integers"),
    ):
        with pytest.raises(ValueError, match=message):
            CURVES[curve](torch.tensor(coordinates), depth)


@pytest.mark.parametrize("curve", CURVES)
def test_orders_keep_events_apart(curve, make_level):
    level = make_level((6, 6, 6), 300, events=4)
    order = level.order(curve, 5)
    assert torch.equal(level.event[order], level.event)
    codes = CURVES[curve](level.coordinates, 5)[order]
    assert (codes.diff()[level.event.diff() == 0] > 0).all()
