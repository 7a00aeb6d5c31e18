"""Looking something up on a bus in use."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from gateway.connectors.base import Inquirable
from gateway.connectors.modbus.client import Reply
from gateway.connectors.modbus.questions import Questions, read
from gateway.connectors.modbus.request import Function, Request
from gateway.errors import GatewayError

from .bench import Bench, device, rtu
from .slave import Slave

ASKED = {"unit": 2, "function": 3, "address": 40, "quantity": 3}


def test_a_question_is_answered_between_the_polls_which_go_on(tmp_path: Path) -> None:
    async def scenario(slave: Slave) -> None:
        bench = Bench(rtu(slave.path), [device("a", 1, {"name": "x", "address": 3}, interval=0.05)])
        assert isinstance(bench.connector, Inquirable)
        async with bench.running():
            await bench.until(lambda: bool(bench.samples))
            said = await bench.connector.inquire(ASKED)
            assert said == {"data": "00280029002a", "code": 0, "fault": None}
            refused = await bench.connector.inquire({**ASKED, "address": 90})
            assert (refused["data"], refused["code"]) == (None, 2)
            silent = await bench.connector.inquire({**ASKED, "unit": 9})
            assert (silent["data"], silent["code"], silent["fault"]) == (None, 0, "bad:comm_timeout")
            before = len(bench.samples)
            await asyncio.gather(*(bench.connector.inquire(ASKED) for _ in range(10)))
            assert len(bench.samples) >= before
            await bench.until(lambda: len(bench.samples) > before + 2)
        assert set(bench.values("a", "x")) == {3}

    with Slave(tmp_path, units=(1, 2)) as slave:
        slave.holes = {90}
        asyncio.run(scenario(slave))


def test_a_full_line_answers_one_question_for_each_poll(tmp_path: Path) -> None:
    async def scenario(slave: Slave) -> None:
        bench = Bench(rtu(slave.path), [device("a", 1, {"name": "x", "address": 3}, interval=0.01)])
        async with bench.running():
            await bench.until(lambda: bool(bench.samples))
            slave.delays = [0.02] * 100
            asked = slave.asked(2)
            polled = slave.asked(1)
            await asyncio.gather(*(bench.connector.inquire(ASKED) for _ in range(12)))
            assert slave.asked(2) - asked == 12
            assert slave.asked(1) - polled >= 6

    with Slave(tmp_path, units=(1, 2)) as slave:
        asyncio.run(scenario(slave))


def test_a_bus_without_devices_stays_open_and_answers_questions(tmp_path: Path) -> None:
    async def scenario(slave: Slave) -> None:
        bench = Bench(rtu(slave.path), [])
        async with bench.running():
            await bench.until(lambda: bench.connector.status()["open"])
            async with asyncio.timeout(10):
                said = await bench.connector.inquire(ASKED)
            assert said == {"data": "00280029002a", "code": 0, "fault": None}
            assert bench.connector.status()["reopened"] == 0

    with Slave(tmp_path, units=(1, 2)) as slave:
        asyncio.run(scenario(slave))


def test_a_question_about_a_bus_that_goes_is_refused(tmp_path: Path) -> None:
    async def scenario(slave: Slave) -> None:
        bench = Bench(rtu(slave.path, timeout=5), [device("a", 1, {"name": "x", "address": 3}, interval=60)])
        async with bench.running() as task:
            await bench.until(lambda: bool(bench.samples))
            slave.delays = [30.0]
            question = asyncio.create_task(bench.connector.inquire(ASKED))
            await bench.until(lambda: slave.asked(2) == 1)
            await asyncio.to_thread(slave.unplug)
            with pytest.raises(GatewayError, match="the bus is gone"):
                async with asyncio.timeout(20):
                    await question
            await asyncio.wait([task], timeout=20)
            with pytest.raises(GatewayError, match="not open"):
                await bench.connector.inquire(ASKED)

    with Slave(tmp_path, units=(1, 2)) as slave:
        asyncio.run(scenario(slave))


@pytest.mark.parametrize(
    "wrong",
    [
        {"function": 6},
        {"function": 16},
        {"function": 43},
        {"quantity": 126},
        {"quantity": 0},
        {"address": 65534},
        {"unit": 256},
        {"unit": "1"},
        {"address": None},
        {"quantity": True},
    ],
)
def test_nothing_but_reads_can_be_asked(wrong: dict[str, Any]) -> None:
    with pytest.raises(GatewayError):
        read({**ASKED, **wrong})
    assert read(ASKED) == Request(2, Function.READ_HOLDING_REGISTERS, 40, 3)


def test_questions_are_few_wait_for_their_unit_and_let_a_poll_between() -> None:
    async def scenario() -> None:
        questions = Questions()
        done = [questions.add(Request(unit, Function.READ_COILS)) for unit in range(16)]
        with pytest.raises(GatewayError, match="16 questions wait already"):
            questions.add(Request(1, Function.READ_COILS))
        assert questions.take(1.0, lambda unit: 2.0) is None
        assert questions.next_at(lambda unit: 2.0) == 2.0
        first = questions.take(3.0, lambda unit: 2.0)
        assert first is not None
        first.answer(Reply(b"\1"))
        assert (await done[0]).data == b"\1"
        assert questions.take(3.0, lambda unit: 2.0) is None
        done[1].cancel()
        third = questions.take(3.0, lambda unit: 2.0)
        assert third is not None
        assert third.request.unit == 2

    asyncio.run(scenario())
