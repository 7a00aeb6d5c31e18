"""What goes wrong on lines and connections in the field, and the test that shows what happens here.

`ROWS` is the list; the tests below are those of its rows that have no better place.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.clock import SystemClock
from gateway.connectors import schedule
from gateway.connectors.base import Tools
from gateway.connectors.modbus.config import TcpBus
from gateway.connectors.modbus.connector import ModbusConnector
from gateway.connectors.modbus.framing import ASCII, RTU, Framing
from gateway.connectors.modbus.link import Line, _Tcp
from gateway.errors import CommandError, LinkError
from gateway.model import DeviceState, Outcome, Status, Write
from gateway.supervisor import policy
from gateway.supervisor.supervisor import Supervisor
from gateway.testing.loop import VirtualClock, run
from tests.uplink.namespaces import namespace, needs_root

from .bench import Bench, NoLedger, device, rtu
from .slave import Slave
from .test_connector import at
from .test_link import Hands

HERE = Path(__file__).parent
ROWS: dict[str, tuple[str, ...]] = {
    "a late reply taken for the next request": (
        "test_connector.py::test_a_late_reply_never_becomes_another_registers_value",
        "test_link.py::test_a_gateway_that_puts_the_right_number_on_a_late_answer_is_not_believed",
        "test_schedules.py::test_in_no_random_schedule_a_value_is_another_address_units_or_requests",
        "test_schedules.py::test_over_a_pseudo_terminal_no_value_is_anothers_either",
    ),
    "a cancelled call leaves its reply under way": (
        "test_connector.py::test_a_cancelled_command_leaves_no_reply_for_the_next_one",
        "test_connector.py::test_commands_cancelled_at_any_moment_spoil_no_value",
        "test_link.py::test_cancelling_leaves_a_line_that_can_be_asked_and_a_unit_that_owes_its_answer",
    ),
    "an adapter that echoes": (
        "test_connector.py::test_an_echo_is_found_out_by_the_first_read_and_a_dead_unit_does_not_acknowledge_a_write",
        "test_connector.py::test_nothing_is_written_before_the_echo_is_known",
        "test_client.py::test_an_echo_that_was_damaged_is_not_taken_for_none",
    ),
    "an adapter pulled out and put back under another name": (
        "test_wire_rows.py::test_an_adapter_that_is_away_costs_no_processor_time_and_comes_back_by_itself",
        "test_connector.py::test_an_adapter_that_is_pulled_out_ends_the_run_and_works_again_when_it_is_back",
        "../connectors/test_port.py::test_a_hang_up_closes_at_once_and_is_told_once",
    ),
    "a port that another program has": (
        "../connectors/test_port.py::test_a_port_that_is_held_names_its_holder",
        "../connectors/test_port.py::test_a_serial_port_is_exclusive_for_programs_that_do_not_ask",
    ),
    "noise around a frame, split reads": (
        "test_connector.py::test_noise_before_and_behind_frames_and_split_reads_do_no_harm",
        "test_request.py::test_an_answer_is_taken_as_soon_as_it_is_whole_and_not_before",
        "test_schedules.py::test_random_replies_let_nothing_escape_invent_nothing_and_stay_in_their_bounds",
    ),
    "a wrong checksum, a reply cut short": (
        "test_connector.py::test_a_spoilt_frame_is_asked_for_again_and_then_bad",
        "test_client.py::test_a_damaged_frame_that_may_be_anothers_leaves_the_answer_owed",
    ),
    "a connection that is silent or half open": (
        "test_other_servers.py::test_a_server_that_accepts_and_never_answers_is_recycled_and_said_to_be_offline",
        "test_wire_rows.py::test_a_cable_that_is_pulled_is_noticed_and_its_return_too",
        "test_wire_rows.py::test_a_connection_is_watched_by_the_kernel_too",
    ),
    "a gateway that answers out of order": (
        "test_other_servers.py::test_a_stranger_on_the_connection_and_answers_out_of_order_are_passed_over",
        "test_client.py::test_an_answer_to_an_older_tcp_transaction_is_dropped_and_the_right_one_awaited",
    ),
    "a device that serves one client": (
        "test_wire_rows.py::test_all_units_behind_a_host_share_one_connection",
        "test_wire_rows.py::test_a_bus_that_hangs_up_after_its_polls_leaves_the_device_to_others",
        "../config/test_load.py::test_a_second_bus_on_the_same_wire_is_refused_with_the_way_to_write_it",
    ),
    "a device that ignores what comes at once": (
        "test_other_servers.py::test_a_device_that_ignores_what_comes_at_once_gets_its_pause_after_connecting",
    ),
    "a busy device, a gateway without its target": (
        "test_connector.py::test_a_busy_device_is_asked_again_after_a_pause",
        "test_connector.py::test_a_gateway_without_its_target_counts_as_the_unit_being_away",
        "test_wire_rows.py::test_a_target_that_its_gateway_does_not_reach_costs_neither_the_link_nor_its_neighbours",
    ),
    "a write that was carried out and not acknowledged": (
        "test_connector.py::test_a_write_whose_reply_is_lost_is_unknown_and_sent_once",
    ),
    "a command that has become stale": (
        "test_wire_rows.py::test_a_command_whose_caller_gave_up_is_never_sent",
    ),
    "a clock that jumps": ("test_wire_rows.py::test_a_clock_that_jumps_moves_no_sample_and_no_poll",),
}  # fmt: skip


@pytest.mark.parametrize("row", ROWS)
def test_every_row_has_the_tests_that_it_names(row: str) -> None:
    for name in ROWS[row]:
        file, test = name.split("::")
        assert re.search(rf"^def {test}\(", (HERE / file).read_text(), re.MULTILINE), name


# ---- a port


def test_an_adapter_that_is_away_costs_no_processor_time_and_comes_back_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policy, "FIRST_WAIT_S", 0.2)
    monkeypatch.setattr(policy, "LONGEST_WAIT_S", 0.5)
    monkeypatch.setattr(schedule, "FIRST_PROBE_S", 0.2)  # a starved machine may let the device rest
    monkeypatch.setattr(schedule, "LAST_PROBE_S", 0.2)

    async def scenario(slave: Slave) -> None:
        bench = Bench(rtu(slave.path), [device("meter", 1, at(10), interval=0.05)])
        clock = SystemClock()
        supervisor = Supervisor(clock)
        tools = Tools(clock, NoLedger(), lambda within_s: supervisor.beat("bus", within_s), bench._report)
        supervisor.add("bus", lambda: ModbusConnector(bench.bus, bench.devices, tools), ["meter"])
        running = asyncio.create_task(supervisor.run(bench.emit))
        descriptors = set()
        for _ in range(3):
            polls = len(bench.values("meter", "h10"))
            await bench.until(lambda: len(bench.values("meter", "h10")) >= polls + 3, 60)  # noqa: B023
            descriptors.add(len(os.listdir("/proc/self/fd")))
            await asyncio.to_thread(slave.unplug)
            await bench.until(lambda: bench.statuses("meter", "h10")[-1] is Status.DEVICE_OFFLINE, 60)
            tried, began = supervisor.status()["bus"]["restarts"], time.process_time()
            await asyncio.sleep(2)
            assert time.process_time() - began < 0.02 * 2
            assert supervisor.status()["bus"]["restarts"] - tried >= 2
            await asyncio.to_thread(slave.plug)
        assert len(descriptors) == 1
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    with Slave(tmp_path) as slave:
        asyncio.run(scenario(slave))


# ---- connections


class OneAtATime:
    """A Modbus TCP device that serves one client and refuses the next, as inverters do."""

    def __init__(self, exclusive: bool = True) -> None:
        self.exclusive = exclusive
        self.open = 0
        self.most = 0
        self.accepted = 0
        self.refused = 0
        self.unreached: set[int] = set()

    async def listen(self) -> int:
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return int(self.server.sockets[0].getsockname()[1])

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.open and self.exclusive:
            self.refused += 1
            writer.transport.abort()
            return
        self.open, self.accepted = self.open + 1, self.accepted + 1
        self.most = max(self.most, self.open)
        try:
            while request := await reader.read(300):
                head, unit, address = request[:4], request[6], int.from_bytes(request[8:10], "big")
                if unit in self.unreached:
                    writer.write(head + b"\0\3" + bytes([unit, request[7] | 0x80, 11]))
                else:
                    value = (1000 * unit + address).to_bytes(2, "big")
                    writer.write(head + b"\0\5" + bytes([unit, request[7], 2]) + value)
        except ConnectionError:
            pass
        finally:
            self.open -= 1
            writer.close()

    def bus(self, port: int, **more: object) -> dict[str, object]:
        return {"kind": "modbus-tcp", "host": "127.0.0.1", "tcp_port": port, "timeout": 2} | more


def test_all_units_behind_a_host_share_one_connection() -> None:
    async def scenario() -> None:
        far = OneAtATime()
        devices = [device(f"d{unit}", unit, at(5), interval=0.05) for unit in (1, 2, 3)]
        bench = Bench(far.bus(await far.listen()), devices)
        async with bench.running():
            await bench.until(lambda: all(len(bench.values(f"d{unit}", "h5")) >= 5 for unit in (1, 2, 3)))
        assert {unit: set(bench.values(f"d{unit}", "h5")) for unit in (1, 2, 3)} == {
            unit: {1000 * unit + 5} for unit in (1, 2, 3)
        }
        assert (far.accepted, far.refused) == (1, 0)
        far.server.close()

    asyncio.run(scenario())


def test_a_bus_that_hangs_up_after_its_polls_leaves_the_device_to_others() -> None:
    async def scenario() -> None:
        far = OneAtATime()
        port = await far.listen()
        points = [at(5), at(50, write={})]
        bench = Bench(far.bus(port, close_after_poll=True), [device("d1", 1, *points, interval=0.4, max_gap=0)])
        async with bench.running():
            for round_ in range(1, 4):
                await bench.until(lambda r=round_: len(bench.values("d1", "h50")) >= r and not far.open)  # type: ignore[misc]
                assert bench.connector.status()["open"] is True  # as it is meant
                assert bench.connector.status()["devices"]["d1"]["state"] == "online"
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(bytes.fromhex("0001 0000 0006 02 03 0005 0001"))
                assert (await reader.readexactly(11))[-2:] == (2005).to_bytes(2, "big")
                writer.close()
                await writer.wait_closed()
                await bench.until(lambda: not far.open)
        assert set(bench.statuses("d1", "h5")) == {Status.GOOD}
        # polls of one moment go over one connection
        assert far.accepted - 3 <= len(bench.values("d1", "h5")) + len(bench.values("d1", "h50"))
        far.server.close()

    asyncio.run(scenario())


def test_a_command_opens_a_connection_that_was_hung_up() -> None:
    async def scenario() -> None:
        far = OneAtATime()
        bench = Bench(
            far.bus(await far.listen(), close_after_poll=True), [device("d1", 1, at(50, write={}), interval=60)]
        )
        async with bench.running():
            await bench.until(lambda: bool(bench.values("d1", "h50")) and not far.open)
            before = far.accepted
            with pytest.raises(CommandError):  # this device answers a write with what a read would say
                await bench.connector.execute(Write("d1", "h50", 7))
            assert far.accepted == before + 1
            far.server.close()
            await bench.until(lambda: not far.open)
            with pytest.raises(CommandError) as caught:
                await bench.connector.execute(Write("d1", "h50", 7))
            assert caught.value.outcome is Outcome.UNAVAILABLE  # nothing was sent

    asyncio.run(scenario())


def test_a_target_that_its_gateway_does_not_reach_costs_neither_the_link_nor_its_neighbours() -> None:
    async def scenario() -> None:
        far = OneAtATime()
        far.unreached = {2}
        devices = [device(f"d{unit}", unit, at(5), interval=0.05) for unit in (1, 2)]
        bench = Bench(far.bus(await far.listen()), devices)
        async with bench.running():
            await bench.until(lambda: ("d2", DeviceState.OFFLINE) in [report[:2] for report in bench.reports])
            polls = len(bench.values("d1", "h5"))
            await bench.until(lambda: len(bench.values("d1", "h5")) >= polls + 5)
            assert bench.connector.status()["reopened"] == 0
        assert set(bench.statuses("d1", "h5")) == {Status.GOOD}
        assert set(bench.statuses("d2", "h5")) == {Status.EXCEPTION, Status.DEVICE_OFFLINE}
        assert far.accepted == 1
        far.server.close()

    asyncio.run(scenario())


@pytest.fixture
def cable() -> Iterator[tuple[object, object, socket.socket]]:
    with namespace("edge") as edge, namespace("far") as far:
        edge.ip("link", "add", "eth0", "type", "veth", "peer", "name", "to-edge", "netns", far.name)
        edge.ip("addr", "add", "10.78.1.2/24", "dev", "eth0")
        far.ip("addr", "add", "10.78.1.1/24", "dev", "to-edge")
        edge.ip("link", "set", "eth0", "up")
        far.ip("link", "set", "to-edge", "up")
        listener = far.within(lambda: socket.create_server(("10.78.1.1", 0)))
        yield edge, far, listener
        listener.close()


@needs_root[0]
@needs_root[1]
def test_a_cable_that_is_pulled_is_noticed_and_its_return_too(cable: tuple) -> None:  # type: ignore[type-arg]
    edge, far_end, listener = cable

    async def scenario() -> None:
        far = OneAtATime(exclusive=False)
        server = await asyncio.start_server(far._serve, sock=listener)
        bus = {"kind": "modbus-tcp", "host": "10.78.1.1", "tcp_port": listener.getsockname()[1], "timeout": 0.2}
        setup = bus, [device("d1", 1, at(5), interval=0.1)]
        bench = Bench(*setup)
        async with bench.running() as running:
            await bench.until(lambda: len(bench.values("d1", "h5")) >= 3)
            # no FIN, no RST: nothing comes any more
            await asyncio.to_thread(far_end.ip, "link", "set", "to-edge", "down")
            with pytest.raises(LinkError, match=r"10\.78\.1\.1"):
                await asyncio.wait_for(asyncio.shield(running), 40)
        assert bench.statuses("d1", "h5")[-1] is Status.DEVICE_OFFLINE
        await asyncio.to_thread(far_end.ip, "link", "set", "to-edge", "up")
        again = Bench(*setup)
        async with asyncio.timeout(40):
            while not again.values("d1", "h5"):  # as a supervisor does it
                again = Bench(*setup)
                async with again.running() as running:
                    await again.until(lambda: running.done() or bool(again.values("d1", "h5")), 40)  # noqa: B023
        server.close()

    edge.within(lambda: asyncio.run(scenario()))


# ---- commands and time


def test_a_command_whose_caller_gave_up_is_never_sent(tmp_path: Path) -> None:
    async def scenario(slave: Slave) -> None:
        bench = Bench(rtu(slave.path, timeout=5), [device("meter", 1, at(10, write={}), interval=60)])
        async with bench.running():
            await bench.until(lambda: bool(bench.samples))
            slave.delays = [0.5]
            first = asyncio.create_task(bench.connector.execute(Write("meter", "h10", 1)))
            await bench.until(lambda: slave.requests[-1][1][1] == 6)
            with pytest.raises(TimeoutError):  # as when its time to live ends
                async with asyncio.timeout(0.1):
                    await bench.connector.execute(Write("meter", "h10", 2))
            await first
            assert await bench.connector.execute(Write("meter", "h10", 3, verify=True)) == 3
        written = [int.from_bytes(frame[4:6], "big") for _, frame in slave.requests if frame[1] == 6]
        assert written == [1, 3]

    with Slave(tmp_path) as slave:
        asyncio.run(scenario(slave))


def test_a_clock_that_jumps_moves_no_sample_and_no_poll() -> None:
    async def scenario() -> None:
        clock = VirtualClock()
        bench = Bench(
            {"kind": "modbus-rtu", "port": "/dev/x", "timeout": 0.3, "late_window": 0.05},
            [device("meter", 1, at(10), interval=1)],
            clock,
        )
        hands = Hands()

        def answer(data: bytes) -> None:
            line = bench.connector._line._line
            assert line is not None
            asyncio.get_running_loop().call_later(0.01, line._received, RTU.frame(1, b"\3\2\0\x0a", 0))

        hands.write = answer  # type: ignore[method-assign]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("gateway.connectors.modbus.link._Serial", lambda *_: hands)
            async with bench.running():
                await bench.until(lambda: len(bench.samples) >= 5, 60)
                clock.utc_offset_ms += 40 * 365 * 86_400_000  # the time server answers at last
                await bench.until(lambda: len(bench.samples) >= 10, 60)
                clock.utc_offset_ms -= 3_600_000
                await bench.until(lambda: len(bench.samples) >= 15, 60)
        stamps = [sample.at_ns for sample in bench.samples]
        steps = {round((after - before) / 1e9, 6) for before, after in itertools.pairwise(stamps)}
        assert len(steps - {1.0}) <= 1  # the first read is at once, then there is the grid
        assert max(steps) <= 1.0
        assert min(steps) > 0

    run(scenario())


# ---- ASCII, masks, everybody


@pytest.mark.parametrize("framing", [RTU, ASCII], ids=("rtu", "ascii"))
def test_a_line_is_polled_and_written_in_either_framing(tmp_path: Path, framing: Framing) -> None:
    async def scenario(slave: Slave) -> None:
        kind = "modbus-ascii" if framing is ASCII else "modbus-rtu"
        seven = {"data_bits": 7, "parity": "E"} if framing is ASCII else {}
        points = [
            at(10, type="float32", write={"verify": True}),
            at(3, "coil", write={}),
            at(4, "input"),
            at(60, type="bit", bit=3, write={"fc": 22, "verify": True}),
            {"name": "low", "address": 61, "type": "int8", "write": {"fc": 22}},
            at(70, type="uint32", write={"fc": 23}),
        ]
        bench = Bench(rtu(slave.path, kind=kind, timeout=1, **seven), [device("meter", 1, *points, interval=0.1)])
        async with bench.running():
            await bench.until(lambda: bool(bench.values("meter", "h70")))
            slave.registers |= {(1, 60): 0xFFFF, (1, 61): 0xAB00}
            assert await bench.connector.execute(Write("meter", "h10", 21.1)) == 21.1
            assert await bench.connector.execute(Write("meter", "c3", False)) is None
            assert slave.coils[1, 3] is False
            assert await bench.connector.execute(Write("meter", "h60", 0)) == 0
            assert slave.registers[1, 60] == 0xFFF7
            await bench.connector.execute(Write("meter", "low", -2))
            assert slave.registers[1, 61] == 0xABFE
            assert await bench.connector.execute(Write("meter", "h70", 0x12345678)) == 0x12345678  # it reads back
            await bench.until(lambda: bench.values("meter", "h70")[-1] == 0x12345678)
            assert bench.values("meter", "i4")[0] == 5004
            assert {frame[1] for _, frame in slave.requests} >= {1, 3, 4, 5, 16, 22, 23}
            assert bench.connector.status()["devices"]["meter"]["failed"] == 0

    with Slave(tmp_path, framing=framing) as slave:
        asyncio.run(scenario(slave))


def test_on_an_ascii_line_noise_late_replies_and_echoes_do_no_harm_either(tmp_path: Path) -> None:
    async def scenario(slave: Slave) -> None:
        slave.echo = True
        slave.prefix, slave.suffix = b"\xff:0103\r:01", b"\0"
        slave.delays = [0.0, 0.35]
        points = [at(10), at(200, write={})]
        bench = Bench(
            rtu(slave.path, kind="modbus-ascii", late_window=0.6),
            [device("meter", 1, *points, interval=0.2, max_gap=0)],
        )
        async with bench.running():
            await bench.until(lambda: all(len(bench.values("meter", name)) >= 3 for name in ("h10", "h200")), 60)
            assert bench.connector.status()["local_echo"] is True
            await bench.until(lambda: bench.connector.status()["devices"]["meter"]["late_discarded"] == 1)
            slave.units.clear()
            with pytest.raises(CommandError) as caught:
                await bench.connector.execute(Write("meter", "h200", 1))
            assert caught.value.outcome is Outcome.UNKNOWN  # its echo is no answer
        assert set(bench.values("meter", "h10")) == {10}
        assert set(bench.values("meter", "h200")) == {200}

    with Slave(tmp_path, framing=ASCII) as slave:
        asyncio.run(scenario(slave))


def test_a_broadcast_reaches_every_unit_and_says_that_nobody_confirmed_it(tmp_path: Path) -> None:
    async def scenario(slave: Slave) -> None:
        everybody = device("all", 0, at(10, write={}), at(11, write={"fc": 23}), interval=0.05)
        bench = Bench(rtu(slave.path), [device("meter", 1, at(10), interval=0.05), everybody])
        async with bench.running():
            await bench.until(lambda: len(bench.values("meter", "h10")) >= 2)
            with pytest.raises(CommandError, match="nobody answers a broadcast") as caught:
                await bench.connector.execute(Write("all", "h10", 77))
            assert caught.value.outcome is Outcome.UNKNOWN
            assert {unit: slave.registers[unit, 10] for unit in slave.units} == {1: 77, 2: 77, 3: 77}
            await bench.until(lambda: bench.values("meter", "h10")[-1] == 77)
            with pytest.raises(CommandError) as caught:
                await bench.connector.execute(Write("all", "h11", 7))
            assert caught.value.outcome is Outcome.UNSUPPORTED
        sent = [(when, frame) for when, frame in slave.requests if frame[0] == 0]
        assert [frame[1] for _, frame in sent] == [6]  # once, and never a read
        after = next(when for when, _ in slave.requests if when > sent[0][0])
        assert after - sent[0][0] >= 0.19  # time to carry it out
        assert bench.statuses("all", "h10") == []

    with Slave(tmp_path, units=(1, 2, 3)) as slave:
        asyncio.run(scenario(slave))


def test_a_connection_is_watched_by_the_kernel_too() -> None:
    async def scenario() -> None:
        far = OneAtATime()
        line = Line(
            TcpBus(name="b", kind="modbus-tcp", host="127.0.0.1", tcp_port=await far.listen()), SystemClock(), int
        )
        await line.open()
        assert isinstance(line._medium, _Tcp)
        transport = line._medium._transport
        assert transport is not None
        sock = transport.get_extra_info("socket")
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) <= 30
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) <= 15_000
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        line.close()
        far.server.close()

    asyncio.run(scenario())
