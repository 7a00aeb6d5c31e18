"""The planner against brute force: it covers everything, splits nothing, and there is no cheaper plan."""

from __future__ import annotations

import itertools
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.connectors.modbus.planner import Cost, Item, Limits, Read, Table, plan, split

settings.register_profile("planner", deadline=None)
settings.load_profile("planner")

items = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 4)), min_size=1, max_size=8).map(
    lambda pairs: [Item(number, address, width) for number, (address, width) in enumerate(pairs)]
)
limits = st.builds(Limits, st.integers(0, 20), st.integers(4, 40), st.just(()))
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


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[Item[int]], Limits]:
    """Few points, close together, with forbidden registers between them."""
    places = draw(st.lists(st.tuples(st.integers(0, 22), st.integers(1, 4)), min_size=1, max_size=6))
    wanted = [Item(number, address, width) for number, (address, width) in enumerate(places)]
    taken = {register for item in wanted for register in range(item.address, item.end)}
    free = [register for register in range(max(taken)) if register not in taken]
    starts = draw(st.sets(st.sampled_from(free), max_size=3)) if free else set()
    forbidden = tuple((start, start + 1) for start in sorted(starts))
    return wanted, Limits(draw(st.integers(0, 12)), draw(st.integers(4, 26)), forbidden)


def cheapest(table: Table, wanted: list[Item[int]], limit: Limits, cost: Cost) -> tuple[float, int]:
    """Seconds and requests of the best of all sets of reads whatever: every start, every end, in any combination."""
    taken = {register for item in wanted for register in range(item.address, item.end)}
    barred = {register for first, stop in limit.forbidden for register in range(first, stop)}
    span = max(item.end for item in wanted)
    reads: list[tuple[int, int]] = []
    for start, stop in itertools.combinations(range(span + 1), 2):
        registers = range(start, stop)
        holes = [len(list(run)) for there, run in itertools.groupby(registers, key=taken.__contains__) if not there]
        if stop - start <= limit.max_read and max(holes, default=0) <= limit.max_gap and not barred & set(registers):
            inside = sum(1 << n for n, item in enumerate(wanted) if start <= item.address and item.end <= stop)
            reads.append((inside, stop - start))
    everything = (1 << len(wanted)) - 1
    best: dict[int, tuple[float, int]] = {0: (0.0, 0)}
    for have in range(everything + 1):
        if have in best:
            seconds, requests = best[have]
            for inside, quantity in reads:
                then = (round(seconds + cost.of(table, quantity), 12), requests + 1)
                best[have | inside] = min(best.get(have | inside, then), then)
    return best[everything]


@given(problems(), costs)
@settings(max_examples=150)
def test_no_set_of_reads_whatever_is_cheaper(problem: tuple[list[Item[int]], Limits], cost: Cost) -> None:
    wanted, limit = problem
    reads = plan(Table.HOLDING, wanted, limit, cost)
    found = (sum(cost.of(read.table, read.quantity) for read in reads), len(reads))
    seconds, requests = cheapest(Table.HOLDING, wanted, limit, cost)
    assert found[0] == pytest.approx(seconds, rel=1e-9)
    assert found[1] <= requests


@given(problems(), st.sampled_from([1200, 9600, 19200, 115200]))
@settings(max_examples=150)
def test_of_bits_no_set_of_reads_is_a_tenth_cheaper(problem: tuple[list[Item[int]], Limits], baud: int) -> None:
    """A byte that is not full counts as a part of one, and travels whole."""
    wanted, limit = problem
    cost = Cost(0.01 + 13 * 10 / baud, 2 * 10 / baud)
    taken = sum(cost.of(Table.COIL, read.quantity) for read in plan(Table.COIL, wanted, limit, cost))
    assert taken <= 1.1 * cheapest(Table.COIL, wanted, limit, cost)[0]


@given(problems(), costs, st.sampled_from(Table))
def test_no_forbidden_register_is_ever_touched(
    problem: tuple[list[Item[int]], Limits], cost: Cost, table: Table
) -> None:
    wanted, limit = problem
    for read in plan(table, wanted, limit, cost):
        assert all(stop <= read.address or read.address + read.quantity <= first for first, stop in limit.forbidden)


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
