"""The serial port over a pseudo-terminal: the kernel's own line discipline, hang-ups and locks."""

from __future__ import annotations

import asyncio
import fcntl
import os
import select
import subprocess
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.connectors.port import Rs485, SerialPort, SerialSettings
from gateway.errors import LinkError
from gateway.settings import read


class Wire:
    """The far end of a pseudo-terminal behind a symlink, as udev makes them."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "port0"
        self.master = -1
        self.plug()

    def plug(self) -> None:
        self.master, self._slave = os.openpty()
        tty.setraw(self._slave)
        os.set_blocking(self.master, False)
        self.path.unlink(missing_ok=True)
        self.path.symlink_to(os.ttyname(self._slave))

    def unplug(self) -> None:
        # as udev does it; a link that stayed would soon lead to the pseudo-terminal of another test
        self.path.unlink(missing_ok=True)
        if self.master >= 0:
            os.close(self.master)
            os.close(self._slave)
            self.master = -1


@pytest.fixture
def wire(tmp_path: Path) -> Iterator[Wire]:
    wire = Wire(tmp_path)
    yield wire
    wire.unplug()


class Seen:
    def __init__(self) -> None:
        self.data = bytearray()
        self.lost: list[LinkError] = []

    def port(self, wire: Wire, **settings: object) -> SerialPort:
        return SerialPort(
            SerialSettings(name="line", kind="serial", port=str(wire.path), **settings),  # type: ignore[arg-type]
            self.data.extend,
            self.lost.append,
        )


async def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 (the far end is another program, not an event)
            await asyncio.sleep(0.002)


def wait_readable(port: SerialPort) -> None:
    """Without the event loop, which would read the bytes: the kernel moves those of a pty by a work queue."""
    assert select.select([port._fd], [], [], 10)[0]


def test_bytes_pass_both_ways_unchanged(wire: Wire) -> None:
    every_byte = bytes(range(256))

    async def scenario() -> None:
        seen = Seen()
        port = seen.port(wire, baud_rate=115200, parity="E")
        port.open()
        os.write(wire.master, every_byte)
        await until(lambda: len(seen.data) == 256)
        assert seen.data == every_byte
        port.write(every_byte)
        assert os.read(wire.master, 512) == every_byte
        port.close()
        assert seen.lost == []

    asyncio.run(scenario())


def test_what_the_kernel_does_not_take_at_once_follows_in_order(wire: Wire) -> None:
    long = bytes(i % 251 for i in range(30_000))

    async def scenario() -> None:
        port = (seen := Seen()).port(wire)
        port.open()
        port.write(long[:20_000])
        port.write(long[20_000:])
        got = bytearray()
        async with asyncio.timeout(10):
            while len(got) < len(long):
                try:
                    got += os.read(wire.master, 4096)
                except BlockingIOError:
                    await asyncio.sleep(0.001)
        assert got == long
        port.close()
        assert seen.lost == []

    asyncio.run(scenario())


def test_a_line_that_stands_still_is_lost_instead_of_hoarded_for(wire: Wire) -> None:
    async def scenario() -> None:
        port = (seen := Seen()).port(wire)
        port.open()
        for _ in range(100):
            port.write(bytes(1024))
        assert len(seen.lost) == 1
        assert not port.is_open

    asyncio.run(scenario())


def test_drain_throws_away_what_waits(wire: Wire) -> None:
    async def scenario() -> None:
        port = (seen := Seen()).port(wire)
        port.open()
        os.write(wire.master, b"stale")
        wait_readable(port)
        port.drain()
        await asyncio.sleep(0.02)
        os.write(wire.master, b"fresh")
        await until(lambda: len(seen.data) >= 5)
        assert seen.data == b"fresh"
        port.close()

    asyncio.run(scenario())


def test_a_read_that_finds_nothing_is_no_hang_up(wire: Wire) -> None:
    async def scenario() -> None:
        port = (seen := Seen()).port(wire)
        port.open()
        os.write(wire.master, b"stale")
        wait_readable(port)
        # the loop has seen that bytes wait, and before it reads them they are drained
        port.drain()
        port._readable()
        assert seen.lost == []
        assert port.is_open
        port.close()

    asyncio.run(scenario())


def test_a_hang_up_closes_at_once_and_is_told_once(wire: Wire) -> None:
    async def scenario() -> None:
        port = (seen := Seen()).port(wire)
        before = set(os.listdir("/proc/self/fd"))
        port.open()
        wire.unplug()
        await until(lambda: bool(seen.lost))
        assert not port.is_open
        assert str(wire.path) in str(seen.lost[0])
        port.write(b"into the void")
        port.drain()
        port.close()
        await asyncio.sleep(0.02)
        assert len(seen.lost) == 1
        assert len(os.listdir("/proc/self/fd")) <= len(before)

    asyncio.run(scenario())


def test_a_replugged_adapter_opens_through_the_same_link(wire: Wire) -> None:
    async def scenario() -> None:
        port = (seen := Seen()).port(wire)
        port.open()
        wire.unplug()
        await until(lambda: bool(seen.lost))
        with pytest.raises(LinkError, match=str(wire.path)):
            port.open()
        wire.plug()
        port.open()
        os.write(wire.master, b"back")
        await until(lambda: seen.data == b"back")
        port.close()

    asyncio.run(scenario())


def test_a_dead_line_costs_no_processor_time(wire: Wire) -> None:
    async def scenario() -> None:
        port = (seen := Seen()).port(wire)
        port.open()
        wire.unplug()
        await until(lambda: bool(seen.lost))
        before = time.process_time()
        await asyncio.sleep(0.3)
        assert time.process_time() - before < 0.05

    asyncio.run(scenario())


def test_a_port_that_is_held_names_its_holder(wire: Wire) -> None:
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import fcntl, sys; f = open({str(wire.path)!r}, 'rb+', buffering=0);"
            "fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); sys.stdin.read()",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        os.close(wire._slave)  # so that the holder is the only one
        wire._slave = os.dup(wire.master)

        async def scenario() -> None:
            with pytest.raises(LinkError, match=rf"in use by .*\(pid {holder.pid}\)"):
                Seen().port(wire).open()

        asyncio.run(scenario())
    finally:
        holder.communicate(timeout=10)


def test_an_open_port_is_exclusive_and_a_closed_one_is_free(wire: Wire) -> None:
    async def scenario() -> None:
        first, second = Seen().port(wire), Seen().port(wire)
        first.open()
        with pytest.raises(LinkError, match="in use"):
            second.open()
        first.close()
        second.open()
        second.close()

    asyncio.run(scenario())


@pytest.mark.skipif(os.geteuid() == 0, reason="root passes TIOCEXCL")
def test_a_pseudo_terminal_whose_owner_was_killed_can_be_opened_again(wire: Wire) -> None:
    program = (
        "import asyncio, sys\n"
        "from gateway.connectors.port import SerialPort, SerialSettings\n"
        "async def hold():\n"
        "    SerialPort(SerialSettings(name='line', kind='serial', port=sys.argv[1]), print, print).open()\n"
        "    print('held', flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(hold())\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", program, wire.path], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    holder.kill()
    holder.communicate(timeout=10)

    async def scenario() -> None:
        port = Seen().port(wire)
        port.open()
        port.close()

    asyncio.run(scenario())


def test_a_serial_port_is_exclusive_for_programs_that_do_not_ask(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    ioctl = fcntl.ioctl

    def noting(fd: int, request: int, *rest: Any) -> Any:
        asked.append(request)
        return ioctl(fd, request, *rest)

    async def scenario() -> None:
        monkeypatch.setattr("gateway.connectors.port.fcntl.ioctl", noting)
        for terminals, exclusive in ((range(136, 144), False), (range(0), True)):
            monkeypatch.setattr("gateway.connectors.port._PSEUDO_TERMINALS", terminals)
            asked.clear()
            port = Seen().port(wire)
            port.open()
            assert (termios.TIOCEXCL in asked) is exclusive
            port.close()

    asyncio.run(scenario())


def test_rs485_that_the_driver_cannot_do_is_refused_with_the_way_out(wire: Wire) -> None:
    async def scenario() -> None:
        port = Seen().port(wire, rs485=Rs485())
        with pytest.raises(LinkError, match="remove `rs485`"):
            port.open()
        assert not port.is_open

    asyncio.run(scenario())


def test_a_driver_that_can_gets_rs485_and_low_latency_as_they_are_said(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    get_rs485, set_rs485, get_serial, set_serial = 0x542E, 0x542F, 0x541E, 0x541F  # asm-generic/ioctls.h
    told: dict[int, list[int]] = {}
    ioctl = fcntl.ioctl

    def driver(fd: int, request: int, *rest: Any) -> Any:
        if request in (get_rs485, get_serial):
            return 0
        if request in (set_rs485, set_serial):
            told[request] = list(rest[0])
            return 0
        return ioctl(fd, request, *rest)

    async def scenario() -> None:
        monkeypatch.setattr("serial.serialposix.fcntl.ioctl", driver)
        rs485 = Rs485(rts_on_send=False, rts_after_send=True, delay_before_send=0.002, delay_after_send=0.005)
        port = Seen().port(wire, rs485=rs485)
        port.open()
        port.close()

    asyncio.run(scenario())
    flags, before_ms, after_ms = told[set_rs485][:3]
    assert flags == 0b101  # linux/serial.h: enabled, RTS after send; not RTS on send
    assert (before_ms, after_ms) == (2, 5)
    assert told[set_serial][4] & 0x2000  # ASYNC_LOW_LATENCY


def test_the_line_is_raw(wire: Wire) -> None:
    async def scenario() -> None:
        port = Seen().port(wire)
        port.open()
        iflag, oflag, _cflag, lflag, *_ = termios.tcgetattr(wire._slave)
        assert not iflag & (termios.ICRNL | termios.IXON | termios.ISTRIP | termios.BRKINT)
        assert not oflag & termios.OPOST
        assert not lflag & (termios.ECHO | termios.ICANON | termios.ISIG)
        port.close()

    asyncio.run(scenario())


def test_a_character_takes_as_long_as_its_bits() -> None:
    def settings(**words: object) -> SerialSettings:
        return SerialSettings(name="line", kind="serial", port="/dev/x", **words)  # type: ignore[arg-type]

    assert settings(baud_rate=9600).character_s == pytest.approx(10 / 9600)
    assert settings(baud_rate=9600, parity="E").character_s == pytest.approx(11 / 9600)
    assert settings(baud_rate=1200, stop_bits=2, data_bits=7).character_s == pytest.approx(10 / 1200)
    assert settings(baud_rate=9600, parity="O", stop_bits=2).character_s == pytest.approx(12 / 9600)


def test_settings_read_the_words_of_the_field() -> None:
    bus = {"name": "line", "kind": "serial"}
    settings, mistakes = read(SerialSettings, {**bus, "port": "/dev/ttyUSB0", "baudrate": 19200, "stopbits": 2})
    assert mistakes == []
    assert settings == SerialSettings(**bus, port="/dev/ttyUSB0", baud_rate=19200, stop_bits=2)
    _, mistakes = read(SerialSettings, {**bus, "port": "ttyUSB0", "parity": "even"})
    assert [m.path for m in mistakes] == [("port",), ("parity",)]
