"""Reading a range that nobody described, from a unit that is not always willing."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable

import pytest

from gateway.connectors.modbus.client import Reply
from gateway.connectors.modbus.planner import Table
from gateway.connectors.modbus.reading import Reading
from gateway.connectors.modbus.request import Function, Request
from gateway.model import Status

SILENCE = Reply(None, fault=Status.COMM_TIMEOUT)


def registers(request: Request) -> Reply:
    held = range(request.address, request.address + request.quantity)
    return Reply(b"".join(each.to_bytes(2, "big") for each in held))


def reading_of(answer: Callable[[Request], Reply], table: Table = Table.INPUT, count: int = 30) -> Reading:
    async def scenario() -> Reading:
        async def ask(request: Request) -> Reply:
            return answer(request)

        reading = Reading(ask, 1, table, 0, count)
        await reading.run(lambda share, what: None, asyncio.Event())
        return reading

    return asyncio.run(scenario())


@pytest.mark.parametrize(
    ("table", "function"),
    [
        (Table.HOLDING, Function.READ_HOLDING_REGISTERS),
        (Table.INPUT, Function.READ_INPUT_REGISTERS),
        (Table.COIL, Function.READ_COILS),
        (Table.DISCRETE, Function.READ_DISCRETE_INPUTS),
    ],
)
def test_every_table_is_read_with_its_function(table: Table, function: Function) -> None:
    asked: list[Request] = []

    def answer(request: Request) -> Reply:
        asked.append(request)
        return Reply(b"\x05\0\0\0") if table.bits else registers(request)

    reading = reading_of(answer, table)
    assert {request.function for request in asked} == {function}
    assert reading.values == (
        {at: int(at in (0, 2)) for at in range(30)} if table.bits else {at: at for at in range(30)}
    )


@pytest.mark.parametrize("trouble", [Reply(None, code=6), Reply(None, code=5), SILENCE])
def test_a_unit_that_is_busy_or_misses_a_question_is_asked_again(
    trouble: Reply, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.connectors.modbus.reading.BUSY_PAUSE_S", 0)
    replies = [trouble, trouble]
    reading = reading_of(lambda request: replies.pop() if replies else registers(request))
    assert len(reading.values) == 30
    assert reading.ended == ""


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (Reply(None, code=1), "unit 1 has no input registers: illegal function (exception 1)"),
        (Reply(None, code=11), "unit 1: gateway target does not respond (exception 11)"),
        (SILENCE, "unit 1 does not answer"),
    ],
)
def test_what_will_not_change_ends_it_at_once(reply: Reply, said: str) -> None:
    asked: list[Request] = []

    def answer(request: Request) -> Reply:
        asked.append(request)
        return reply

    assert reading_of(answer).ended == said
    assert len(asked) <= 4


def test_silence_about_what_does_not_exist_is_a_refusal_and_silence_about_all_ends_it() -> None:
    def answer(request: Request) -> Reply:
        return registers(request) if request.address + request.quantity <= 24 else SILENCE

    reading = reading_of(answer, count=26)
    assert sorted(reading.values) == list(range(24))
    assert (reading.missing, reading.ended) == ([24, 25], "")
    reading = reading_of(answer, count=300)
    assert sorted(reading.values) == list(range(24))
    assert re.fullmatch(r"unit 1 does not answer any more, from input \d+ on", reading.ended)


def test_what_exists_is_looked_at_again_in_as_few_reads() -> None:
    async def scenario() -> None:
        asked: list[Request] = []

        async def ask(request: Request) -> Reply:
            asked.append(request)
            there = request.address >= 10
            return registers(request) if there else Reply(None, code=2)

        reading = Reading(ask, 1, Table.HOLDING, 0, 200)
        await reading.run(lambda share, what: None, asyncio.Event())
        first = len(asked)
        assert await reading.look() == {at: at for at in range(10, 200)}
        assert len(asked) - first < first

    asyncio.run(scenario())


def test_told_to_stop_it_asks_nothing_more_and_keeps_what_it_has() -> None:
    async def scenario() -> None:
        stop = asyncio.Event()
        asked: list[Request] = []

        async def ask(request: Request) -> Reply:
            asked.append(request)
            if len(asked) == 2:
                stop.set()
                return SILENCE
            return registers(request)

        reading = Reading(ask, 1, Table.HOLDING, 0, 1000)
        await reading.run(lambda share, what: None, stop)
        assert len(asked) == 2
        assert len(reading.values) == 125
        assert reading.missing == []

    asyncio.run(scenario())
