"""The serial connector over real pseudo-terminals."""

from __future__ import annotations

import asyncio
import logging
import os
import tty
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from gateway.clock import SystemClock
from gateway.connectors.base import Tools
from gateway.connectors.serial.config import SerialBus, SerialDevice
from gateway.connectors.serial.connector import SerialConnector
from gateway.connectors.serial.scan import Setting, listen
from gateway.errors import CommandError, LinkError
from gateway.model import DeviceState, Outcome, Sample, Status, Write
from gateway.settings import read

GGA = b"$GPGGA,123519,4807.038,N,01131.000,E,1,08,0.9,545.4,M,46.9,M,,*47\r\n"


class Wire:
    """A pseudo-terminal behind a symlink, as udev makes them; the test holds the far end."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "port0"
        self._master = self._slave = -1
        self.plug()

    def plug(self) -> None:
        self._master, self._slave = os.openpty()
        tty.setraw(self._slave)
        os.set_blocking(self._master, False)
        self.path.unlink(missing_ok=True)
        self.path.symlink_to(os.ttyname(self._slave))

    def unplug(self) -> None:
        if self._master >= 0:
            os.close(self._master)
            os.close(self._slave)
            self._master = -1

    async def send(self, data: bytes) -> None:
        """All of it, as fast as the line takes it."""
        async with asyncio.timeout(20):
            while data:
                try:
                    data = data[os.write(self._master, data) :]
                except BlockingIOError:
                    await asyncio.sleep(0.001)

    async def received(self, size: int) -> bytes:
        data = b""
        async with asyncio.timeout(10):
            while len(data) < size:
                try:
                    data += os.read(self._master, 1024)
                except BlockingIOError:
                    await asyncio.sleep(0.001)
        return data


@pytest.fixture
def wire(tmp_path: Path) -> Iterator[Wire]:
    wire = Wire(tmp_path)
    yield wire
    wire.unplug()


class NoLedger:
    """A line does not redeliver."""

    def seen(self, origin: Any) -> bool:
        raise AssertionError

    def settled(self, origin: Any) -> bool:
        raise AssertionError

    def whole(self, session: bytes) -> bool:
        raise AssertionError

    def forget(self, origins: Any) -> None:
        raise AssertionError


class Bench:
    """One connector, built as the supervisor builds it, and what it said."""

    def __init__(self, wire: Wire, devices: Sequence[dict[str, Any]], **bus: Any) -> None:
        self.samples: list[Sample] = []
        self.states: list[tuple[str, DeviceState]] = []
        self.beats = 0
        self.room = asyncio.Event()
        self.room.set()
        settings, mistakes = read(SerialBus, {"name": "b", "kind": "serial", "port": str(wire.path), **bus})
        assert settings is not None, mistakes
        kinds = [read(SerialDevice, {"bus": "b", **device}) for device in devices]
        assert not any(mistakes for _, mistakes in kinds), kinds
        tools = Tools(SystemClock(), NoLedger(), self._beat, self._report)
        self.connector = SerialConnector(settings, [device for device, _ in kinds if device], tools)

    def _beat(self, seconds: float) -> None:
        self.beats += 1

    def _report(self, device: str, state: DeviceState, why: str) -> None:
        if (device, state) not in self.states[-1:]:
            self.states.append((device, state))

    async def emit(self, samples: Sequence[Sample], *, settled: Callable[[], None] | None = None) -> None:
        await self.room.wait()
        self.samples += samples

    @asynccontextmanager
    async def running(self) -> AsyncIterator[asyncio.Task[None]]:
        task = asyncio.create_task(self.connector.run(self.emit), name="serial")
        try:
            await until(lambda: self.connector.status()["open"] or task.done())
            yield task
        finally:
            task.cancel()
            await asyncio.wait([task])

    def told(self) -> list[tuple[str, dict[str, Any]]]:
        return [(s.device, dict(zip(s.points, s.values, strict=True))) for s in self.samples]


async def until(condition: Callable[[], Any], seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 (the far end is a terminal, not an event)
            await asyncio.sleep(0.002)


TEXT = {"name": "room", "format": "regex", "pattern": r"T=(?P<t>[-\d.]+) H=(?P<h>\d+)"}


def test_lines_become_samples_stamped_when_they_came(wire: Wire) -> None:
    async def scenario() -> None:
        bench = Bench(wire, [TEXT])
        async with bench.running():
            before = SystemClock().boot_ns()
            await wire.send(b"5 H=40\r\nT=21.5 H=41\r\nT=2")
            await until(lambda: len(bench.samples) == 1)
            await wire.send(b"1.6 H=42\nnobody knows this\n\nT=21.7 H=43\n")
            await until(lambda: len(bench.samples) == 3)
            after = SystemClock().boot_ns()
        assert bench.told() == [("room", {"t": t, "h": h}) for t, h in ((21.5, 41), (21.6, 42), (21.7, 43))]
        stamps = [sample.at_ns for sample in bench.samples]
        assert before < stamps[0] <= stamps[1] <= stamps[2] < after
        assert bench.states == [("room", DeviceState.ONLINE)]
        assert bench.connector.status()["unowned"] == 1
        assert bench.beats > 0

    asyncio.run(scenario())


def test_several_devices_share_a_line_in_three_formats(wire: Wire) -> None:
    async def scenario() -> None:
        devices = [{"name": "gps", "format": "nmea", "match": r"^\$"}, TEXT, {"name": "box", "format": "json"}]
        bench = Bench(wire, devices)
        async with bench.running():
            await wire.send(b"\n" + GGA + b'T=1 H=2\n{"u": 230.1, "on": true}\n')
            await until(lambda: len(bench.samples) == 3)
        (gps, position), *rest = bench.told()
        assert (gps, position["latitude"], position["satellites"]) == ("gps", 48.1173, 8)
        assert rest == [("room", {"t": 1, "h": 2}), ("box", {"u": 230.1, "on": True})]

    asyncio.run(scenario())


def test_sentences_with_a_wrong_checksum_are_rejected_and_counted_and_tell_when_it_is_more_than_noise(
    wire: Wire,
) -> None:
    async def scenario() -> None:
        bench = Bench(wire, [{"name": "gps", "format": "nmea"}])
        async with bench.running():
            broken = GGA.replace(b"545.4", b"545.5")
            await wire.send(b"\n" + GGA + broken + GGA)
            await until(lambda: len(bench.samples) == 2)
            status = bench.connector.status()["devices"]["gps"]
            assert (status["frames"], status["rejected"]) == (2, 1)
            assert bench.states == [("gps", DeviceState.ONLINE)]
            await wire.send(broken * 3)
            await until(lambda: bench.connector.status()["devices"]["gps"]["rejected"] == 4)
            assert bench.states[-1] == ("gps", DeviceState.FAILING)
            await wire.send(GGA)
            await until(lambda: len(bench.samples) == 3)
            assert bench.states[-1] == ("gps", DeviceState.ONLINE)
        assert all(sample.values[5] == 545.4 for sample in bench.samples)

    asyncio.run(scenario())


def test_a_line_that_never_ends_and_bytes_that_are_no_text_harm_nobody(wire: Wire) -> None:
    async def scenario() -> None:
        bench = Bench(wire, [TEXT], frame={"max_length": 100})
        async with bench.running():
            await wire.send(b"\nT=1 H=1\n" + b"x" * 200_000 + b"\n\xff\xfe\xfd\nT=2 H=2\n")
            await until(lambda: len(bench.samples) == 2)
            status = bench.connector.status()
        assert (status["overlong"], status["undecodable"]) == (1, 1)
        assert bench.told() == [("room", {"t": 1, "h": 1}), ("room", {"t": 2, "h": 2})]

    asyncio.run(scenario())


def test_noise_before_the_start_is_cut_off_and_silence_ends_a_frame(wire: Wire) -> None:
    async def scenario() -> None:
        bench = Bench(wire, [TEXT], frame={"start": "T=", "idle_flush": "30ms", "delimiter": "\u0003"})
        async with bench.running():
            await asyncio.sleep(0.05)  # a line that was silent: what follows is whole
            await wire.send(b"..#T=5 H=6")
            await until(lambda: len(bench.samples) == 1)
            await wire.send(b"no start here")
            await until(lambda: bench.connector.status()["undecodable"] == 1)
        assert bench.told() == [("room", {"t": 5, "h": 6})]

    asyncio.run(scenario())


def test_an_unplugged_adapter_is_a_lost_link_and_a_new_connector_finds_it_again(wire: Wire) -> None:
    async def scenario() -> None:
        bench = Bench(wire, [TEXT, {"name": "never", "format": "json", "points": [{"name": "x"}], "match": "x"}])
        async with bench.running() as task:
            await wire.send(b"\nT=1 H=1\n")
            await until(lambda: len(bench.samples) == 1)
            wire.unplug()
            await until(task.done)
            with pytest.raises(LinkError, match="port0"):
                await task
        offline = [(s.device, s.points, s.values, s.status) for s in bench.samples[1:]]
        assert offline == [
            ("room", ("t", "h"), (None, None), (Status.DEVICE_OFFLINE,) * 2),
            ("never", ("x",), (None,), (Status.DEVICE_OFFLINE,)),
        ]
        assert bench.states[-2:] == [("room", DeviceState.OFFLINE), ("never", DeviceState.OFFLINE)]
        absent = Bench(wire, [TEXT])
        with pytest.raises(LinkError, match="cannot open"):
            await absent.connector.run(absent.emit)
        assert absent.samples[0].status == (Status.DEVICE_OFFLINE,) * 2
        wire.plug()
        again = Bench(wire, [TEXT])
        async with again.running():
            await wire.send(b"\nT=3 H=3\n")
            await until(lambda: len(again.samples) == 1)
        assert again.told() == [("room", {"t": 3, "h": 3})]

    asyncio.run(scenario())


def test_cancelling_closes_the_port(wire: Wire) -> None:
    async def scenario() -> None:
        bench = Bench(wire, [TEXT])
        for _ in range(3):
            async with bench.running() as task:
                pass
            assert task.cancelled()
            assert bench.connector.status()["open"] is False

    asyncio.run(scenario())


def test_a_gateway_without_room_loses_the_oldest_frames_and_says_so_once(
    wire: Wire, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        bench = Bench(wire, [TEXT])
        async with bench.running():
            bench.room.clear()
            lines = b"".join(b"T=%d H=0\n" % i for i in range(3000))
            await wire.send(b"\n" + lines)
            await until(lambda: bench.connector.status()["bytes"] == 1 + len(lines))
            bench.room.set()
            await until(lambda: bench.samples and bench.samples[-1].values[0] == 2999)
            overrun = bench.connector.status()["overrun"]
        values = [sample.values[0] for sample in bench.samples]
        assert values == sorted(values)  # type: ignore[type-var]
        assert len(values) == 3000 - overrun
        assert overrun >= 3000 - 1000 - 100 - 100

    with caplog.at_level(logging.WARNING):
        asyncio.run(scenario())
    assert len(caplog.records) == 1


def test_a_line_that_never_falls_silent_does_not_keep_the_loop_from_saying_that_it_lives(wire: Wire) -> None:
    async def scenario() -> None:
        bench = Bench(wire, [TEXT])
        beats: list[int] = []
        done = asyncio.Event()

        async def emit(samples: Sequence[Sample], *, settled: Callable[[], None] | None = None) -> None:
            beats.append(bench.beats)
            known = bench.connector.status()["bytes"]
            await wire.send(b"T=1 H=1\n")
            await until(lambda: bench.connector.status()["bytes"] > known)  # the next frame is there before we return
            if len(beats) == 10:
                done.set()

        task = asyncio.create_task(bench.connector.run(emit))
        await until(lambda: bench.connector.status()["open"])
        await wire.send(b"\nT=0 H=0\n")
        async with asyncio.timeout(20):
            await done.wait()
        task.cancel()
        await asyncio.wait([task])
        assert beats == sorted(set(beats))

    asyncio.run(scenario())


WRITABLE = {
    "name": "heater",
    "format": "regex",
    "pattern": r"^S=(?P<setpoint>\d+)",
    "points": [
        {
            "name": "setpoint",
            "scale": 0.1,
            "command": "SET {value}\n",
            "reply": "^OK$",
            "write": {"min": 5, "max": 30},
        },
        {"name": "mode", "command": "MODE {value}\n", "enum": {"0": "off", "1": "on"}, "write": {}},
        {"name": "fixed", "group": "setpoint"},
    ],
}


def test_a_write_is_ok_when_its_reply_came_and_readings_go_on_meanwhile(wire: Wire) -> None:
    async def scenario() -> None:
        bench = Bench(wire, [WRITABLE])
        async with bench.running():
            write = asyncio.create_task(bench.connector.execute(Write("heater", "setpoint", 21.5)))
            assert await wire.received(8) == b"SET 215\n"
            await wire.send(b"\nS=210\n")
            await until(lambda: len(bench.samples) == 1)
            assert not write.done()
            bench.room.clear()  # a reply does not wait for the buffer
            await wire.send(b"S=215\nOK\n")
            assert await write is None
            bench.room.set()

    asyncio.run(scenario())


def test_a_write_without_a_reply_is_unknown(wire: Wire) -> None:
    async def scenario() -> None:
        bench = Bench(wire, [WRITABLE], reply_timeout="50ms")
        async with bench.running():
            with pytest.raises(CommandError, match="no reply") as first:
                await bench.connector.execute(Write("heater", "setpoint", 20))
            assert first.value.outcome is Outcome.UNKNOWN
            assert await wire.received(8) == b"SET 200\n"
            with pytest.raises(CommandError, match="confirms nothing") as second:
                await bench.connector.execute(Write("heater", "mode", "on"))
            assert second.value.outcome is Outcome.UNKNOWN
            assert await wire.received(7) == b"MODE 1\n"
            with pytest.raises(CommandError, match="no reply"):  # the late window passed: the next one is sent
                await bench.connector.execute(Write("heater", "setpoint", 21))
            assert await wire.received(8) == b"SET 210\n"

    asyncio.run(scenario())


def test_the_late_reply_to_one_write_never_confirms_the_next(wire: Wire) -> None:
    async def scenario() -> None:
        bench = Bench(wire, [WRITABLE], write_timeout="1s")
        async with bench.running():
            await wire.send(b"\n")
            given_up = asyncio.create_task(bench.connector.execute(Write("heater", "setpoint", 20)))
            assert await wire.received(8) == b"SET 200\n"
            given_up.cancel()
            await asyncio.wait([given_up])
            second = asyncio.create_task(bench.connector.execute(Write("heater", "setpoint", 22)))
            await asyncio.sleep(0)
            await wire.send(b"OK\n")
            assert await wire.received(8) == b"SET 220\n", "sent as soon as the late reply had come"
            with pytest.raises(CommandError, match="no reply"):
                await second

    asyncio.run(scenario())


def test_what_cannot_be_written_is_said_before_anything_is_sent(wire: Wire) -> None:
    async def scenario() -> None:
        bench = Bench(wire, [WRITABLE])
        for point, value, outcome in [
            ("fixed", 1, Outcome.UNSUPPORTED),
            ("missing", 1, Outcome.UNSUPPORTED),
            ("mode", "on\nSET 999", Outcome.REJECTED),
            ("mode", "\ud800", Outcome.REJECTED),
            ("setpoint", 20, Outcome.UNAVAILABLE),
        ]:
            with pytest.raises(CommandError) as refused:
                await bench.connector.execute(Write("heater", point, value))
            assert refused.value.outcome is outcome, point

    asyncio.run(scenario())


def test_a_line_that_is_lost_under_a_write_leaves_it_unknown(wire: Wire) -> None:
    async def scenario() -> None:
        bench = Bench(wire, [WRITABLE])
        async with bench.running():
            write = asyncio.create_task(bench.connector.execute(Write("heater", "setpoint", 20)))
            await wire.received(8)
            wire.unplug()
            with pytest.raises(CommandError, match="lost") as lost:
                await write
            assert lost.value.outcome is Outcome.UNKNOWN

    asyncio.run(scenario())


def test_a_scan_listens_says_what_it_heard_and_sends_nothing(wire: Wire) -> None:
    async def scenario() -> None:
        scan = asyncio.create_task(listen(str(wire.path), [Setting(9600), Setting(4800)], seconds=1))
        while not scan.done():
            await wire.send(GGA)
            await asyncio.wait([scan], timeout=0.02)
        heard = await scan
        assert [each.setting.baud_rate for each in heard] == [9600], "checksums were right: nothing can be better"
        assert heard[0].guess.format == "nmea"
        assert 'format = "nmea"' in heard[0].toml
        silent = await listen(str(wire.path), [Setting(9600), Setting(4800)], seconds=0.05)
        assert [(each.guess.format, each.toml) for each in silent] == [("silence", "")] * 2
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await wire.received(1)
        wire.unplug()
        with pytest.raises(LinkError):
            await listen(str(wire.path))

    asyncio.run(scenario())
