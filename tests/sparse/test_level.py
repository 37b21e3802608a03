"""Levels: sorted rows, duplicates, coarser levels, tables that are shared, and what is refused."""

import pytest
import torch

from nufm_hub.sparse import Kernel, KeyGrid, SparseLevel, depthwise_convolution, pool, submanifold_convolution, unpool


def test_rows_are_sorted_and_lead_back(make_voxels):
    coordinates, event = make_voxels((5, 6, 7), 100)
    level = SparseLevel(coordinates.int(), event.short(), 3)
    rows = [(int(e), *c) for e, c in zip(level.event, level.coordinates.tolist())]
    assert rows == sorted({(int(e), *c) for e, c in zip(event, coordinates.tolist())})
    assert level.coordinates.dtype == level.event.dtype == torch.long
    assert torch.equal(level.coordinates[level.row], coordinates)
    assert torch.equal(level.event[level.row], event)
    assert level.sizes == [int((event == e).sum()) for e in range(3)]
    features = torch.randn(100, 2)
    assert torch.equal(level.spread(level.merge(features)), features)


def test_voxels_at_one_place_are_one_row():
    coordinates = torch.tensor([[3, 1, 2], [0, 0, 0], [3, 1, 2], [3, 1, 2]])
    event = torch.tensor([0, 1, 0, 1])
    level = SparseLevel(coordinates, event, 2)
    assert level.coordinates.tolist() == [[3, 1, 2], [0, 0, 0], [3, 1, 2]]
    assert level.row.tolist() == [0, 1, 0, 2]
    features = torch.tensor([[1.0], [2.0], [4.0], [8.0]])
    assert level.merge(features).tolist() == [[5.0], [2.0], [8.0]]
    assert level.merge(features, "mean").tolist() == [[2.5], [2.0], [8.0]]
    assert level.merge(features, "max").tolist() == [[4.0], [2.0], [8.0]]
    assert level.spread(torch.tensor([[1.0], [2.0], [3.0]])).tolist() == [[1.0], [2.0], [1.0], [3.0]]


def test_layers_share_tables(make_level):
    level = make_level((5, 5, 5), 50)
    assert level.pairs(Kernel.submanifold(3)) is level.pairs(Kernel.submanifold((3, 3, 3)))
    assert level.coarser(2) is level.coarser((2, 2, 2))
    assert level.pairs(Kernel.strided(2)) is level.pairs(Kernel.strided(2))
    assert level.order("hilbert", 4) is level.order("hilbert", 4)
    assert level.order("hilbert", 4) is not level.order("hilbert", 5)


@pytest.mark.parametrize("stride", [1, 2, (1, 2, 3)], ids=str)
def test_cells_of_a_coarser_level(stride, make_level):
    level = make_level((5, 6, 7), 60)
    coarse = level.coarser(stride)
    want = torch.cat([level.event[:, None], level.coordinates // torch.tensor(stride)], dim=1)
    assert torch.equal(torch.cat([coarse.event[:, None], coarse.coordinates], dim=1), want.unique(dim=0))
    assert torch.equal(coarse.coordinates[coarse.row], want[:, 1:])
    x = torch.randn(60, 2)
    assert torch.equal(unpool(pool(x, level, stride), level, stride), pool(x, level, stride)[coarse.row])


@pytest.mark.parametrize("kernel", [Kernel.submanifold((3, 1, 5)), Kernel.strided((2, 3, 4), 2, (1, 0, 2))], ids=["submanifold", "strided"])
def test_pairs_equal_a_loop_over_voxels(kernel, make_level):
    level = make_level((4, 5, 6), 90)
    out = level if kernel.is_submanifold else level.coarser(kernel.stride)
    row_of = {(int(e), *c): r for r, (e, c) in enumerate(zip(level.event, level.coordinates.tolist()))}
    pairs = level.pairs(kernel)
    place = 0
    for i in range(kernel.size[0]):
        for j in range(kernel.size[1]):
            for k in range(kernel.size[2]):
                want = set()
                for row, (e, c) in enumerate(zip(out.event, out.coordinates.tolist())):
                    at = [o * s - p + d for o, s, p, d in zip(c, kernel.stride, kernel.padding, (i, j, k))]
                    if (int(e), *at) in row_of:
                        want.add((row_of[int(e), *at], row))
                assert set(zip(pairs.source[place].tolist(), pairs.target[place].tolist())) == want
                assert len(pairs.source[place]) == len(want)
                place += 1
    assert len(pairs) == sum(map(len, pairs.source))


def test_keys_lead_back_to_places(make_voxels):
    coordinates, event = make_voxels((5, 6, 7), 100)
    grid = KeyGrid((8, 9, 7), 3)
    keys = grid.keys(coordinates, event)
    assert len(keys.unique()) == 100
    for a, b in zip(grid.places(keys), (coordinates, event)):
        assert torch.equal(a, b)


PLACE, ZERO = torch.tensor([[1, 2, 3]]), torch.tensor([0])


@pytest.mark.parametrize(
    ("coordinates", "event", "num_events", "message"),
    [
        (torch.tensor([[1, -2, 3]]), ZERO, 1, "the smallest is -2"),
        (PLACE.float(), ZERO, 1, "coordinates must be integers; got torch.float32"),
        (PLACE, ZERO.double(), 1, "event must be integers; got torch.float64"),
        (PLACE, ZERO.bool(), 1, "event must be integers; got torch.bool"),
        (PLACE, ZERO - 1, 1, r"event must be in 0 .. num_events - 1 = 0; got -1"),
        (PLACE, ZERO + 2, 2, r"event must be in 0 .. num_events - 1 = 1; got 2"),
        (PLACE, ZERO, 0, "num_events - 1 = -1; got 0"),
        (PLACE, ZERO, -1, "num_events must be 0 or more; got -1"),
        (PLACE[0], ZERO, 1, r"got \(3,\) and \(1,\)"),
        (PLACE[:, :2], ZERO, 1, r"got \(1, 2\) and \(1,\)"),
        (PLACE, torch.tensor([0, 0]), 1, r"got \(1, 3\) and \(2,\)"),
        (PLACE.to("meta"), ZERO, 1, "one device; got meta and cpu"),
        (PLACE * 2**30, ZERO, 64, "64 events on a grid of 1073741825 x 2147483649 x 3221225473 voxels .* has no room"),
        (PLACE * (2**63 // 3), ZERO, 1, "has no room in 64-bit keys"),
    ],
)
def test_bad_voxels_are_refused(coordinates, event, num_events, message):
    with pytest.raises(ValueError, match=message):
        SparseLevel(coordinates, event, num_events)


def test_a_grid_that_has_no_room_for_a_kernels_margin_is_refused():
    level = SparseLevel(torch.tensor([[2**21 - 2, 2**21 - 2, 2**21 - 2]]), ZERO, 1)
    with pytest.raises(ValueError, match=r"margins included\) has no room"):
        level.pairs(Kernel.submanifold(3))


def test_small_integers_do_not_wrap():
    level = SparseLevel(torch.tensor([[127, 127, 127], [0, 0, 126]], dtype=torch.int8), torch.tensor([1, 0], dtype=torch.uint8), 2)
    assert level.coordinates.tolist() == [[0, 0, 126], [127, 127, 127]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda level: level.merge(torch.zeros(3, 2)), r"features must be \(2, C\)"),
        (lambda level: level.merge(torch.zeros(2, 2), "median"), "how='median' is none of"),
        (lambda level: level.spread(torch.zeros(2)), r"features must be \(2, C\)"),
        (lambda level: level.coarser(0), "stride must be at least 1"),
        (lambda level: level.coarser((2, 2)), "stride must be an integer"),
        (lambda level: level.coarser(1.5), "stride must be an integer"),
        (lambda level: level.order("peano", 3), "curve='peano' is none of hilbert"),
        (lambda level: level.order("morton", 21), "depth must be 1 to 20"),
        (lambda level: level.order("morton", 2), "coordinates from 0 to 5 leave 0 .. 3"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    level = SparseLevel(torch.tensor([[0, 0, 0], [5, 5, 5]]), torch.tensor([0, 1]), 2)
    with pytest.raises(ValueError, match=message):
        call(level)


def test_more_events_than_an_order_has_room_for():
    level = SparseLevel(PLACE, ZERO, 9)
    assert level.order("morton", 19).tolist() == [0]
    with pytest.raises(ValueError, match="9 events at depth 20 have no room"):
        level.order("morton", 20)


def test_blocks_hold_every_pair_once(make_level, monkeypatch):
    monkeypatch.setattr("nufm_hub.sparse.neighbours.BLOCK", 16)
    level = make_level((4, 5, 6), 90)
    for pairs in (level.pairs(Kernel.submanifold(3)), level.pairs(Kernel.strided(3, 2, 1)), level.pairs(Kernel.strided(3, 2, 1)).reversed):
        want = [(k, int(s), int(t)) for k in range(27) if k != pairs.centre for s, t in zip(pairs.source[k], pairs.target[k])]
        blocks = [(k, s, t) for k, source, target in pairs.blocks for s, t in zip(source.tolist(), target.tolist())]
        assert sorted(blocks) == sorted(want)
        assert all(int(target[-1]) - int(target[0]) < 16 for _, _, target in pairs.blocks)
        assert len(pairs.blocks) > 27


def test_results_do_not_depend_on_the_blocks(make_voxels, monkeypatch):
    x, weight = torch.randn(200, 3, dtype=torch.double, requires_grad=True), torch.randn(27, 3, 4, dtype=torch.double, requires_grad=True)
    depthwise = torch.randn(27, 4, dtype=torch.double, requires_grad=True)
    results = []
    for block in (16, 12_288):
        monkeypatch.setattr("nufm_hub.sparse.neighbours.BLOCK", block)
        level = SparseLevel(*make_voxels((5, 6, 7), 200), 3)
        out = depthwise_convolution(submanifold_convolution(x, weight, level), depthwise, level)
        results.append([out, *torch.autograd.grad(out.square().sum(), (x, weight, depthwise))])
    for a, b in zip(*results):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-12)
