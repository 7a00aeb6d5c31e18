"""The planner against brute force: it covers everything, splits nothing, and there is no cheaper plan."""

from __future__ import annotations

import itertools
import time

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.connectors.modbus.planner import Cost, Item, Limits, Read, Table, plan, split

settings.register_profile("planner", deadline=None)
settings.load_profile("planner")

items = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 4)), min_size=1, max_size=8).map(
    lambda pairs: [Item(number, address, width) for number, (address, width) in enumerate(pairs)]
)
limits = st.builds(Limits, st.integers(0, 20), st.integers(4, 40))
costs = st.builds(Cost, st.sampled_from([0.001, 0.01, 0.03]), st.sampled_from([0.000001, 0.0002, 0.002, 0.02]))


def spans(reads: list[Read[int]]) -> list[tuple[int, int]]:
    return [(read.address, read.quantity) for read in reads]


def test_neighbours_become_one_request_and_a_small_hole_is_bridged() -> None:
    wanted = [Item("a", 0, 2), Item("b", 2, 2), Item("c", 6, 2), Item("d", 40, 1)]
    reads = plan(Table.INPUT, wanted, Limits(8, 125), Cost(0.02, 0.002))
    assert [(r.address, r.quantity, [i.key for i in r.items]) for r in reads] == [
        (0, 8, ["a", "b", "c"]),
        (40, 1, ["d"]),
    ]


def test_a_hole_that_costs_more_than_a_request_is_not_bridged() -> None:
    wanted = [Item(0, 0, 1), Item(1, 30, 1)]
    assert len(plan(Table.HOLDING, wanted, Limits(50, 125), Cost(0.02, 0.002))) == 2
    assert len(plan(Table.HOLDING, wanted, Limits(50, 125), Cost(0.02, 0.0001))) == 1


def test_at_equal_cost_there_are_fewer_requests() -> None:
    wanted = [Item(0, 0, 1), Item(1, 11, 1)]
    assert len(plan(Table.HOLDING, wanted, Limits(50, 125), Cost(0.01, 0.001))) == 1


@given(items, limits, costs, st.sampled_from(Table))
def test_every_item_is_read_whole_once_within_the_limits(
    wanted: list[Item[int]], limit: Limits, cost: Cost, table: Table
) -> None:
    reads = plan(table, wanted, limit, cost)
    assert sorted(item.key for read in reads for item in read.items) == sorted(item.key for item in wanted)
    for read in reads:
        assert read.quantity <= limit.max_read
        covered: set[int] = set()
        for item in read.items:
            assert read.address <= item.address
            assert item.end <= read.address + read.quantity
            covered |= set(range(item.address, item.end))
        assert {read.address, read.address + read.quantity - 1} <= covered
        holes = [
            len(list(run))
            for hole, run in itertools.groupby(
                range(read.address, read.address + read.quantity), key=lambda a: a not in covered
            )
            if hole
        ]
        assert max(holes, default=0) <= limit.max_gap


@given(items, limits, costs)
@settings(max_examples=60)
def test_no_way_to_cut_the_points_is_cheaper(wanted: list[Item[int]], limit: Limits, cost: Cost) -> None:
    ordered = sorted(wanted, key=lambda item: (item.address, item.end))

    def price(runs: list[list[Item[int]]]) -> tuple[float, int] | None:
        total = 0.0
        for run in runs:
            end = run[0].address
            for item in run:
                if item.address - end > limit.max_gap:
                    return None
                end = max(end, item.end)
            if len(run) > 1 and end - run[0].address > limit.max_read:
                return None
            total += cost.of(Table.HOLDING, end - run[0].address)
        return round(total, 9), len(runs)

    best = min(
        found
        for cuts in itertools.product([False, True], repeat=len(ordered) - 1)
        if (found := price([list(group) for group in _runs(ordered, cuts)])) is not None
    )
    reads = plan(Table.HOLDING, wanted, limit, cost)
    assert (round(sum(cost.of(read.table, read.quantity) for read in reads), 9), len(reads)) == best


def _runs(ordered: list[Item[int]], cuts: tuple[bool, ...]) -> list[list[Item[int]]]:
    runs = [[ordered[0]]]
    for item, cut in zip(ordered[1:], cuts, strict=True):
        if cut:
            runs.append([item])
        else:
            runs[-1].append(item)
    return runs


@given(items.filter(lambda found: len(found) > 1))
def test_a_refused_read_falls_apart_until_every_item_is_alone(wanted: list[Item[int]]) -> None:
    waiting = plan(Table.HOLDING, wanted, Limits(100, 125), Cost(1.0, 0.001))
    alone = []
    while waiting:
        read = waiting.pop()
        if len(read.items) == 1:
            alone.append(read.items[0])
            assert (read.address, read.quantity) == (read.items[0].address, read.items[0].width)
        else:
            waiting += split(read)
    assert sorted(item.key for item in alone) == sorted(item.key for item in wanted)


def test_a_refused_read_is_cut_at_its_largest_hole() -> None:
    (read,) = plan(
        Table.HOLDING, [Item(0, 0, 1), Item(1, 1, 1), Item(2, 5, 1), Item(3, 6, 1)], Limits(8, 125), Cost(1, 0.001)
    )
    assert spans(list(split(read))) == [(0, 2), (5, 2)]


def test_ten_thousand_points_are_planned_while_nobody_notices() -> None:
    """It runs on the event loop at every new connection; what it must not do is try every run of every length."""
    coils = [Item(n, n, 1) for n in range(10_000)]
    registers = [Item(n, 3 * n, 2) for n in range(10_000)]
    before = time.process_time()
    assert len(plan(Table.COIL, coils, Limits(64, 2000), Cost(0.02, 0.002))) == 5
    # 42 points of 3 registers, the last without its hole, fill 125
    assert len(plan(Table.HOLDING, registers, Limits(8, 125), Cost(0.02, 0.002))) == -(-10_000 // 42)
    assert time.process_time() - before < 5  # 0.1 s here; trying every run takes 40
