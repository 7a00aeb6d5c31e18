"""One transaction at a time over a medium that a test holds in its hands, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from gateway.connectors.modbus.client import TURNAROUND_S, Reply
from gateway.connectors.modbus.config import AnyBus, RtuBus, TcpBus
from gateway.connectors.modbus.framing import ASCII, RTU, TCP, Framing
from gateway.connectors.modbus.link import Line
from gateway.connectors.modbus.request import Function, Request
from gateway.model import Status
from gateway.testing.loop import VirtualClock, run

HOLDING = Request(1, Function.READ_HOLDING_REGISTERS, 0x6B, 1)
TIMEOUT_S, WINDOW_S = 0.3, 0.6


class Hands:
    """A medium: shows what is written, delivers what it is given."""

    def __init__(self) -> None:
        self.written: list[tuple[float, bytes]] = []
        self.asked = asyncio.Event()

    async def open(self) -> None: ...

    def write(self, data: bytes) -> None:
        self.written.append((asyncio.get_running_loop().time(), data))
        self.asked.set()

    def drain(self) -> None: ...

    def close(self) -> None: ...


def rtu(**more: object) -> RtuBus:
    line: dict[str, object] = {"timeout": TIMEOUT_S, "late_window": WINDOW_S, "baud_rate": 4_000_000}
    return RtuBus(name="b", kind="modbus-rtu", port="/dev/x", **(line | more))  # type: ignore[arg-type]


def tcp(kind: str = "modbus-tcp") -> TcpBus:
    return TcpBus(name="b", kind=kind, host="h", timeout=TIMEOUT_S, late_window=WINDOW_S)


def on_a_line(bus: AnyBus, scenario: Callable[[Line, Hands], Awaitable[None]]) -> None:
    async def main() -> None:
        line, hands = Line(bus, VirtualClock(), lambda: None), Hands()
        line._medium = hands
        await line.open()
        await scenario(line, hands)

    run(main())


def frame(value: int, framing: Framing = RTU, transaction: int = 1, unit: int = 1) -> bytes:
    return framing.frame(unit, bytes([3, 2]) + value.to_bytes(2, "big"), transaction)


def test_an_answer_in_the_very_moment_of_the_timeout_is_an_answer() -> None:
    async def scenario(line: Line, hands: Hands) -> None:
        loop = asyncio.get_running_loop()
        asking = asyncio.create_task(line.ask(HOLDING))
        await hands.asked.wait()
        deadline = line.client.deadline()
        assert deadline is not None
        # the timer of the answer is first in its round of the event loop, the one of the timeout second
        loop.call_at(deadline - 1e-12, line._received, frame(7))
        assert (await asking).reply == Reply(b"\0\7")

    on_a_line(rtu(), scenario)


def test_cancelling_leaves_a_line_that_can_be_asked_and_a_unit_that_owes_its_answer() -> None:
    async def scenario(line: Line, hands: Hands) -> None:
        loop = asyncio.get_running_loop()
        asking = asyncio.create_task(line.ask(HOLDING))
        await hands.asked.wait()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        other = Request(2, Function.READ_HOLDING_REGISTERS, 0, 1)
        loop.call_later(0.02, line._received, frame(7))
        loop.call_later(0.03, line._received, frame(8, unit=2))
        assert (await line.ask(other)).reply == Reply(b"\0\x08")  # others go on at once
        assert line.client.late_discarded == {1: 1}
        loop.call_later(0.05, line._received, frame(9))
        assert (await line.ask(HOLDING)).reply == Reply(b"\0\x09")

    on_a_line(rtu(), scenario)


@pytest.mark.parametrize(("bus", "framing"), [(rtu(), RTU), (tcp(), TCP), (tcp("modbus-ascii-over-tcp"), ASCII)])
def test_a_unit_that_was_silent_is_asked_again_after_its_window_on_every_medium(bus: AnyBus, framing: Framing) -> None:
    async def scenario(line: Line, hands: Hands) -> None:
        assert (await line.ask(HOLDING)).reply == Reply(None, fault=Status.COMM_TIMEOUT)
        asyncio.get_running_loop().call_later(WINDOW_S + 0.1, line._received, frame(7, framing, 2))
        assert (await line.ask(HOLDING)).reply == Reply(b"\0\7")
        (first, _), (second, _) = hands.written
        assert second - first >= TIMEOUT_S + WINDOW_S - 1e-6

    on_a_line(bus, scenario)


def test_a_gateway_that_puts_the_right_number_on_a_late_answer_is_not_believed() -> None:
    async def scenario(line: Line, hands: Hands) -> None:
        loop = asyncio.get_running_loop()
        await line.ask(HOLDING)
        # the answer to the first question comes off its line now, and goes out under the number of the second
        loop.call_later(WINDOW_S + 0.05, line._received, frame(0x6B, TCP, 2))
        reply = (await line.ask(Request(1, Function.READ_HOLDING_REGISTERS, 0x100, 1))).reply
        assert reply.data is None
        assert reply.doubtful
        loop.call_later(WINDOW_S + 0.05, line._received, frame(0x100, TCP, 3))
        assert (await line.ask(Request(1, Function.READ_HOLDING_REGISTERS, 0x100, 1))).reply == Reply(b"\1\0")

    on_a_line(tcp(), scenario)


def test_a_line_that_is_never_silent_is_asked_all_the_same_but_no_unit_before_its_quarantine_is_over() -> None:
    async def scenario(line: Line, hands: Hands) -> None:
        loop = asyncio.get_running_loop()

        async def babble() -> None:
            while True:
                line._received(b"\x55")
                await asyncio.sleep(0.001)

        babbling = asyncio.create_task(babble())
        begun = loop.time()
        assert (await line.ask(HOLDING)).reply.fault is Status.COMM_TIMEOUT
        ((asked_at, _),) = hands.written
        assert WINDOW_S <= asked_at - begun <= WINDOW_S + TIMEOUT_S + 0.1
        begun = loop.time()
        # two late answers while it waits: each makes the quarantine longer, whatever the noise
        asking = asyncio.create_task(line.ask(HOLDING))
        await asyncio.sleep(WINDOW_S + TIMEOUT_S / 2)
        line._received(frame(1))
        await asking
        assert hands.written[1][0] - begun >= WINDOW_S
        babbling.cancel()

    on_a_line(rtu(), scenario)


def test_a_slow_device_has_a_timeout_of_its_own() -> None:
    async def scenario(line: Line, hands: Hands) -> None:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        loop.call_later(2.0, line._received, frame(7))
        assert (await line.ask(HOLDING, timeout=3.0)).reply == Reply(b"\0\7")
        assert loop.time() - begun == pytest.approx(2.0)

    on_a_line(rtu(late_window=0.0), scenario)


@pytest.mark.parametrize("bus", [rtu(), tcp("modbus-rtu-over-tcp"), tcp("modbus-ascii-over-tcp")])
def test_a_broadcast_waits_for_nobody_but_lets_the_units_carry_it_out(bus: AnyBus) -> None:
    async def scenario(line: Line, hands: Hands) -> None:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        everybody = Request(0, Function.WRITE_SINGLE_REGISTER, 7, 1, b"\0\7")
        assert (await line.ask(everybody)).reply == Reply(None)
        assert TURNAROUND_S <= loop.time() - begun - WINDOW_S < TURNAROUND_S + 0.05
        assert line.client.free_at(0, 0.0) <= loop.time()  # nobody owes an answer
        assert len(hands.written) == 1

    on_a_line(bus, scenario)


def test_on_modbus_tcp_unit_0_is_a_unit_that_answers() -> None:
    async def scenario(line: Line, hands: Hands) -> None:
        asyncio.get_running_loop().call_later(0.1, line._received, frame(7, TCP, 1, unit=0))
        assert (await line.ask(HOLDING._replace(unit=0))).reply == Reply(b"\0\7")

    on_a_line(tcp(), scenario)
