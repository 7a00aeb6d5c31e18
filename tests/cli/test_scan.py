"""`gateway scan` against real counterparts: what it prints goes through `gateway check`."""

from __future__ import annotations

import asyncio
import fcntl
import itertools
import os
import pty
import re
import shutil
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
import tomllib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from modbus.slave import Slave

from cli.command import BOUND_S, PROGRAM, Done, Running, environment, gateway
from gateway.connectors.ble import bthome
from gateway.demo.machines import Pty, Ruuvi
from gateway.demo.publisher import publisher
from gateway.testing import broker
from gateway.testing.bluez import FakeBluez, PrivateBus
from gateway.testing.broker import Mosquitto

needs_broker = pytest.mark.skipif(broker.program() is None, reason="mosquitto is not installed")
needs_dbus = pytest.mark.skipif(shutil.which("dbus-daemon") is None, reason="dbus-daemon is not installed")


def pasted(folder: Path, done: Done) -> dict[str, Any]:
    """What was printed, after `gateway check` has accepted it as it is."""
    (folder / "found.toml").write_text(done.out)
    checked = gateway("check", folder / "found.toml")
    assert checked.code == 0, checked.err + done.out
    return tomllib.loads(done.out)


# ── Modbus ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_units_on_a_serial_line_are_found_and_nothing_is_written(tmp_path: Path) -> None:
    with Slave(tmp_path, units=(2, 5)) as slave:
        slave.exceptions = [2]
        slave.registers[5, 0] = 99
        settings = ("--baud", 19200, "--parity", "E", "--units", "2-5", "--timeout", 0.5)
        done = gateway("scan", "modbus", slave.path, *settings)
        assert {frame[1] for _, frame in slave.requests} <= {3, 17, 43}
    assert done.code == 0
    assert "asking 4 units at 1 setting for one register, 2 s at most" in done.err
    assert re.search(r"^2 +19200 8E1 +illegal data address", done.err, re.M)
    assert re.search(r"^5 +19200 8E1 +register 0 holds 99", done.err, re.M)
    found = pasted(tmp_path, done)
    assert [(bus["port"], bus["baud_rate"], bus["parity"]) for bus in found["bus"]] == [(str(slave.path), 19200, "E")]
    assert [device["unit_id"] for device in found["device"]] == [2, 5]


def test_a_server_that_does_not_look_at_the_unit_is_one_device(tmp_path: Path) -> None:
    program = Path(__file__).parents[1] / "modbus" / "pymodbus_server.py"
    server = subprocess.Popen([sys.executable, str(program), "tcp"], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        port = server.stdout.readline().strip()
        done = gateway("scan", "modbus", f"127.0.0.1:{port}", "--units", "0-20,247,255", "--timeout", 5)
    finally:
        server.kill()
        server.communicate()
    assert done.code == 0
    assert f"Every unit id is answered: 127.0.0.1:{port} is one device that does not look at it." in done.err
    found = pasted(tmp_path, done)
    assert [(bus["kind"], bus["tcp_port"]) for bus in found["bus"]] == [("modbus-tcp", int(port))]
    assert [device["unit_id"] for device in found["device"]] == [1]


def test_a_silent_line_says_what_to_look_at(tmp_path: Path) -> None:
    with Slave(tmp_path, units=()) as slave:
        done = gateway("scan", "modbus", slave.path, "--baud", 9600, "--parity", "N", "--units", "1,2")
    assert (done.code, done.out) == (1, "")
    assert "Are A and B swapped" in done.err
    assert "--baud, --parity" in done.err


def test_a_port_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    done = gateway("scan", "modbus", tmp_path / "no")
    assert (done.code, done.out) == (1, "")
    assert done.err.splitlines()[-1] == f"cannot open {tmp_path / 'no'}: No such file or directory"


@pytest.mark.parametrize("stdout", ["pipe", "terminal"])
def test_a_terminal_sees_a_bar_and_an_interrupted_scan_prints_what_it_found(tmp_path: Path, stdout: str) -> None:
    shown = bytearray()
    near, far = pty.openpty()
    reader = threading.Thread(target=_drain, args=(near, shown))
    with Slave(tmp_path, units=(1,)) as slave:
        command = [*PROGRAM, "scan", "modbus", str(slave.path), "--baud", "9600", "--parity", "N"]
        command += ["--timeout", "0.3"]
        scan = subprocess.Popen(
            command,
            stdout=subprocess.PIPE if stdout == "pipe" else far,
            stderr=far,
            env=environment({"TERM": "xterm-256color", "COLUMNS": "100"}),
        )
        reader.start()
        give_up = time.monotonic() + BOUND_S
        while len({frame[0] for _, frame in slave.requests}) < 5 or b"1 found" not in shown:
            assert time.monotonic() < give_up, shown
            time.sleep(0.02)
        scan.send_signal(signal.SIGINT)
        out, _ = scan.communicate(timeout=BOUND_S)
    os.close(far)
    reader.join()
    os.close(near)
    text = shown.decode()
    assert scan.returncode == 130
    assert re.search(r"9600 8N1, unit \d+, 1 found", text)
    if stdout == "pipe":
        assert [device["unit_id"] for device in tomllib.loads(out.decode())["device"]] == [1]
    else:
        assert text.index("register 0 holds 0") < text.index("To paste into the configuration") < text.index("[[bus]]")


def _drain(descriptor: int, into: bytearray) -> None:
    try:
        while data := os.read(descriptor, 65536):
            into += data
    except OSError:
        return  # the other end is closed


# ── serial ───────────────────────────────────────────────────────────────────────────────────────────────────────────


class Talker:
    """Somebody who talks on a port, from a thread of his own."""

    def __init__(self, *lines: bytes) -> None:
        self._pty = Pty()
        self._lines = lines
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._talk)
        self.port = self._pty.path
        self.heard = 0
        """Lines that somebody has read."""

    def _talk(self) -> None:
        for line in itertools.cycle(self._lines):
            self._pty.write(line)
            if self._stop.wait(0.02):
                return
            waiting = fcntl.ioctl(self._pty._far, termios.FIONREAD, b"\0\0\0\0")
            self.heard += not any(waiting)

    def __enter__(self) -> Talker:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        for descriptor in (self._pty.fd, self._pty._far):
            os.close(descriptor)


def test_what_talks_on_a_line_is_heard_and_read_with_what_was_printed(tmp_path: Path) -> None:
    with Talker(b"$WIMTW,18.2,C*" + _checksum(b"WIMTW,18.2,C") + b"\r\n") as talker:
        done = gateway("scan", "serial", "--listen", talker.port, "--seconds", "0.5")
    assert done.code == 0
    assert re.search(r"^9600 +nmea +\$WIMTW,18\.2,C", done.err, re.M)
    found = pasted(tmp_path, done)
    assert [(bus["port"], bus["baud_rate"]) for bus in found["bus"]] == [(talker.port, 9600)]
    assert [device["format"] for device in found["device"]] == ["nmea"]


def _checksum(body: bytes) -> bytes:
    total = 0
    for byte in body:
        total ^= byte
    return b"%02X" % total


def test_an_interrupted_listener_prints_what_it_heard(tmp_path: Path) -> None:
    with (
        Talker(b'{"t": 21.5}\n') as talker,
        Running(tmp_path, "scan", "serial", "--listen", talker.port, "--seconds", 60) as scan,
    ):
        scan.until(lambda: talker.heard > 10, "it listens")
        done = scan.end(signal.SIGINT)
    assert done.code == 130
    assert [device["format"] for device in pasted(tmp_path, done)["device"]] == ["json"]


def test_noise_and_silence_say_what_to_look_at() -> None:
    with Talker(bytes(range(128, 256))) as talker:
        done = gateway("scan", "serial", "--listen", talker.port, "--seconds", "0.3", "--baud", 9600, 4800)
    assert (done.code, done.out) == (1, "")
    assert "Bytes come, but no text: another baud rate or parity" in done.err
    with Talker(b"") as talker:
        done = gateway("scan", "serial", "--listen", talker.port, "--seconds", "0.1")
    assert (done.code, done.out) == (1, "")
    assert "Does the device speak of its own accord" in done.err
    assert "Bytes come" not in done.err


def test_what_a_line_says_cannot_act_on_the_terminal() -> None:
    with Talker(b"[red]21.5\r\n", b"[/bold] 22\r\n") as talker:
        done = gateway("scan", "serial", "--listen", talker.port, "--seconds", "0.3", "--baud", 9600)
    assert done.code == 0
    assert re.search(r"lines +\[(red\]21\.5|/bold\] 22)", done.err)


def test_the_ports_of_this_machine_are_listed() -> None:
    done = gateway("scan", "serial")
    assert "serial ports of this machine:" in done.err
    tomllib.loads(done.out)
    assert done.code == (0 if done.out else 1)
    assert all(line.startswith("# ") for line in done.out.splitlines())


# ── MQTT ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@needs_broker
def test_what_is_published_is_found_and_a_password_stays_in_its_file(tmp_path: Path) -> None:
    with Mosquitto(tmp_path) as mosquitto, publisher(mosquitto.port) as sensor:
        (tmp_path / "secret").write_text("hunter2\n")
        (tmp_path / "secret").chmod(0o600)
        words = ("--port", mosquitto.port, "--username", "me", "--password-file", tmp_path / "secret", "--seconds", 60)
        with Running(tmp_path, "scan", "mqtt", *words, "--topic", "zigbee2mqtt/#", "--topic", "plant/+") as scan:
            while "SUBACK" not in mosquitto.log():
                assert scan.process.poll() is None, scan.err
                time.sleep(0.02)
            sensor.publish("zigbee2mqtt/office", b'{"temperature": 21.5, "linkquality": 80}')
            sensor.publish("plant/level", b"17")
            sensor.publish("elsewhere", b"1")
            give_up = time.monotonic() + BOUND_S
            while mosquitto.log().count("Sending PUBLISH to gateway-scan") < 2:
                assert time.monotonic() < give_up
                time.sleep(0.02)
            done = scan.end(signal.SIGINT)
    assert done.code == 130
    assert re.search(
        r"^office +zigbee2mqtt +zigbee2mqtt/office +\S+/s +temperature 21\.5 Cel, linkquality", done.err, re.M
    )
    found = pasted(tmp_path, done)
    (bus,) = found["bus"]
    assert (bus["host"], bus["tcp_port"], bus["username"]) == ("127.0.0.1", mosquitto.port, "me")
    assert bus["password_file"] == str(tmp_path / "secret")
    assert {device["topic"] for device in found["device"]} == {"zigbee2mqtt/office", "plant/level"}
    assert "hunter2" not in done.out + done.err


@needs_broker
def test_a_quiet_broker_and_none_at_all_say_what_to_look_at(tmp_path: Path) -> None:
    with Mosquitto(tmp_path) as mosquitto:
        done = gateway("scan", "mqtt", "--port", mosquitto.port, "--seconds", "0.3")
        assert (done.code, done.out) == (1, "")
        assert "No reading was heard. Does anything publish?" in done.err
    done = gateway("scan", "mqtt", "--port", mosquitto.port)
    assert (done.code, done.out) == (1, "")
    assert f"127.0.0.1:{mosquitto.port}" in done.err.splitlines()[-1]
    done = gateway("scan", "mqtt", "--username", "me", "--password-file", tmp_path / "none")
    assert (done.code, done.out) == (1, "")
    assert "No such file or directory" in done.err


def test_a_scan_that_is_still_connecting_ends_at_once_when_told(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        port = mute.getsockname()[1]
        with Running(tmp_path, "scan", "mqtt", "--port", port) as scan:
            mute.accept()[0].recv(1)
            scan.process.send_signal(signal.SIGINT)
            done = scan.end(signal.SIGINT)
    assert (done.code, done.out) == (130, "")


# ── Bluetooth ────────────────────────────────────────────────────────────────────────────────────────────────────────


@asynccontextmanager
async def air(folder: Path, advertise: Callable[[FakeBluez], Awaitable[None]]) -> AsyncIterator[dict[str, str]]:
    """A simulated BlueZ on a private D-Bus; yields the environment that leads there."""
    async with PrivateBus(folder) as dbus:
        bluez = FakeBluez(dbus.address)
        await bluez.start()

        async def talk() -> None:
            await bluez.scan_began.wait()
            while True:
                await advertise(bluez)
                await asyncio.sleep(0.05)

        talking = asyncio.create_task(talk())
        try:
            yield {"DBUS_SYSTEM_BUS_ADDRESS": dbus.address}
        finally:
            talking.cancel()
            await asyncio.wait([talking])
            await bluez.stop()


@needs_dbus
def test_sensors_in_the_air_are_found(folder: Path) -> None:
    tag = Ruuvi()

    async def advertise(bluez: FakeBluez) -> None:
        await bluez.advertise(tag.address, manufacturer_data={tag.company: tag.step()})
        plain = bytes.fromhex("4002C40903BF13")
        await bluez.advertise("A4:C1:38:8D:18:B2", name="Kühl\x1b[2J", service_data={bthome.UUID: plain})

    async def story() -> Done:
        async with air(folder, advertise) as env:
            return await asyncio.to_thread(gateway, "scan", "ble", "--seconds", 1, "--adapter", "hci0", env=env)

    done = asyncio.run(story())
    assert done.code == 0
    assert "\x1b" not in done.err + done.out
    assert "temperature 25.0 Cel, humidity 50.55 %RH" in done.err
    found = pasted(folder, done)
    assert {(device["address"], device["decoder"]) for device in found["device"]} == {
        (tag.address, "ruuvi"),
        ("A4:C1:38:8D:18:B2", "bthome"),
    }


@needs_dbus
def test_an_interrupted_bluetooth_scan_prints_what_it_heard(folder: Path) -> None:
    tag = Ruuvi()

    async def advertise(bluez: FakeBluez) -> None:
        await bluez.advertise(tag.address, manufacturer_data={tag.company: tag.step()})

    def person(env: dict[str, str]) -> Done:
        with Running(folder, "scan", "ble", "--seconds", 60, env=env) as scan:
            scan.until(lambda: tag.produced > 20, "it is heard")
            return scan.end(signal.SIGINT)

    async def story() -> Done:
        async with air(folder, advertise) as env:
            return await asyncio.to_thread(person, env)

    done = asyncio.run(story())
    assert done.code == 130
    assert [device["address"] for device in pasted(folder, done)["device"]] == [tag.address]


@needs_dbus
def test_an_air_without_sensors_says_what_to_look_at(folder: Path) -> None:
    async def advertise(bluez: FakeBluez) -> None:
        await bluez.advertise("5A:00:00:00:00:01", manufacturer_data={0x004C: b"\x10\x05"}, address_type="random")

    async def story() -> Done:
        async with air(folder, advertise) as env:
            return await asyncio.to_thread(gateway, "scan", "ble", "--seconds", 0.5, env=env)

    done = asyncio.run(story())
    assert (done.code, done.out) == (1, "")
    assert "company 0x004C" in done.err
    assert "None of these speaks a format that is known here" in done.err
    assert "Is the sensor close" in done.err


@needs_dbus
def test_no_bluetooth_at_all_is_one_line(folder: Path) -> None:
    done = gateway("scan", "ble", env={"DBUS_SYSTEM_BUS_ADDRESS": f"unix:path={folder / 'none'}"})
    assert (done.code, done.out) == (1, "")
    assert done.err.splitlines()[-1].startswith("no system D-Bus")


@needs_dbus
def test_a_user_who_may_not_use_bluetooth_is_told_how(folder: Path) -> None:
    async def story() -> Done:
        async with PrivateBus(folder) as dbus:
            bluez = FakeBluez(dbus.address)
            await bluez.start()
            bluez.fail("GetManagedObjects", "AccessDenied", times=9)
            try:
                env = {"DBUS_SYSTEM_BUS_ADDRESS": dbus.address}
                return await asyncio.to_thread(gateway, "scan", "ble", env=env)
            finally:
                await bluez.stop()

    done = asyncio.run(story())
    assert (done.code, done.out) == (1, "")
    assert done.err.splitlines()[-1] == ("this user may not speak to BlueZ: add it to the group bluetooth, or try sudo")
