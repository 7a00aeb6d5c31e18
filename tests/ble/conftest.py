"""A connector with unmodified bleak on a private D-Bus, where a fake bluetoothd answers."""

from __future__ import annotations

import asyncio
import random
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from bleak.backends.bluezdbus.version import BlueZFeatures

from gateway.clock import SystemClock
from gateway.connectors.base import Tools
from gateway.connectors.ble import bthome
from gateway.connectors.ble.config import BleBus, BleDevice
from gateway.connectors.ble.connector import BleConnector
from gateway.connectors.ble.link import BleakRadio
from gateway.errors import LinkError
from gateway.model import DeviceState, Sample, Status, Value
from gateway.settings import read
from gateway.testing.bluez import FakeBluez, PrivateBus

BOUND_S = 20.0
"""Until a condition must have come true on a slow machine; nothing waits that long when all is well."""

FRIDGE = "A4:C1:38:8D:18:B2"
TAG = "CB:B8:33:4C:88:4F"
PROBE = "F0:F1:F2:F3:F4:F5"
THERMOMETER = bytes.fromhex("4002C40903BF13")  # https://bthome.io/format: 25.00 °C, 50.55 %
RAW_V2 = bytes.fromhex("0512FC5394C37C0004FFFC040CAC364200CDCBB8334C884F")
TEMPERATURE = "00002a6e-0000-1000-8000-00805f9b34fb"
LED = "0000ff01-0000-1000-8000-00805f9b34fb"
GATT = {
    TEMPERATURE: (bytes.fromhex("C409"), ["read", "notify"]),
    LED: (b"\x00", ["read", "write"]),
}
POINTS = [
    {"name": "temperature", "characteristic": "2a6e"},
    {"name": "led", "characteristic": "0xFF01", "type": "uint8", "write": {}},
]


class Ledger:
    def seen(self, _: object) -> bool:
        return False

    def settled(self, _: object) -> bool:
        return False

    def whole(self, _: object) -> bool:
        return True

    def forget(self, _: object) -> None: ...


class Rig:
    """One running connector and what came out of it."""

    def __init__(self, dbus: PrivateBus, bluez: FakeBluez, build: Callable[[Rig], BleConnector]) -> None:
        self.dbus = dbus
        self.bluez = bluez
        self.build = build
        self.samples: list[Sample] = []
        self.reports: list[tuple[str, DeviceState, str]] = []
        self.connector: BleConnector
        self.running: asyncio.Task[None]

    async def emit(self, samples: Sequence[Sample], *, settled: Callable[[], None] | None = None) -> None:
        self.samples += samples

    def tools(self) -> Tools:
        return Tools(SystemClock(), Ledger(), lambda _: None, lambda *said: self.reports.append(said))

    def values(self, device: str, point: str) -> list[Value | None]:
        return [s.values[s.points.index(point)] for s in self.samples if s.device == device and point in s.points]

    def statuses(self, device: str, point: str) -> list[Status]:
        return [
            s.status[s.points.index(point)] if s.status else Status.GOOD
            for s in self.samples
            if s.device == device and point in s.points
        ]

    async def until(self, condition: Callable[[], Any], nudge: Callable[[], Any] | None = None) -> None:
        """Waits for a condition; `nudge` is done again and again meanwhile (a sensor repeats itself)."""
        async with asyncio.timeout(BOUND_S):
            while not condition():
                if self.running.done():
                    self.running.result()
                if nudge is not None:
                    await nudge()
                await asyncio.sleep(0.01)

    async def link_error(self) -> LinkError:
        async with asyncio.timeout(BOUND_S):
            with pytest.raises(LinkError) as caught:
                await self.running
        return caught.value


def bus(**keys: Any) -> BleBus:
    table, mistakes = read(BleBus, {"name": "air", "kind": "ble", "scan_mode": "active", **keys})
    assert table is not None, mistakes
    return table


def device(name: str, address: str, **keys: Any) -> BleDevice:
    table, mistakes = read(BleDevice, {"name": name, "bus": "air", "address": address, **keys})
    assert table is not None, mistakes
    return table


Start = Callable[..., AbstractAsyncContextManager[Rig]]


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short enough for a socket, whatever the name of the test."""
    with tempfile.TemporaryDirectory(prefix="ble") as path:
        yield Path(path)


def install_bluetoothctl(folder: Path, monkeypatch: pytest.MonkeyPatch, version: str | None) -> None:
    """bleak asks `bluetoothctl --version` once per process; here each test has its own answer, or no such program."""
    programs = folder / "bin"
    programs.mkdir()
    if version is not None:
        script = programs / "bluetoothctl"
        script.write_text(f"#!/bin/sh\necho 'bluetoothctl: {version}'\n")
        script.chmod(0o755)
    daemon = shutil.which("dbus-daemon")
    if daemon is not None:
        (programs / "dbus-daemon").symlink_to(daemon)
    monkeypatch.setenv("PATH", str(programs))
    for name, value in (("checked_bluez_version", False), ("supported_version", True), ("_check_bluez_event", None)):
        monkeypatch.setattr(BlueZFeatures, name, value)


@pytest.fixture
def start(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    @asynccontextmanager
    async def run(
        devices: Sequence[BleDevice],
        settings: BleBus | None = None,
        *,
        spacing_s: float = 60.0,
        prepare: Callable[[FakeBluez], Any] = lambda _: None,
        service: bool = True,
        bluetoothctl: str | None = "5.66",
        **bluez_keys: Any,
    ) -> AsyncIterator[Rig]:
        install_bluetoothctl(folder, monkeypatch, bluetoothctl)
        async with PrivateBus(folder) as dbus:
            monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", dbus.address)
            bluez = FakeBluez(dbus.address, **bluez_keys)
            if service:
                await bluez.start()
            prepare(bluez)
            chosen, rng = settings or bus(), random.Random(7)
            rig = Rig(
                dbus,
                bluez,
                lambda rig: BleConnector(chosen, devices, rig.tools(), BleakRadio(chosen.adapter, rng), rng, spacing_s),
            )
            rig.connector = rig.build(rig)
            rig.running = asyncio.create_task(rig.connector.run(rig.emit))
            try:
                yield rig
            finally:
                rig.running.cancel()
                await asyncio.wait({rig.running})
                await bluez.stop()

    return run


def advertise(rig: Rig, objects: str = "02C40903BF13", address: str = FRIDGE) -> partial[object]:
    return partial(rig.bluez.advertise, address, service_data={bthome.UUID: bytes.fromhex("40" + objects)})


async def show_probe(rig: Rig) -> None:
    """The device to connect to comes into reach."""
    rig.bluez.give_gatt(PROBE, GATT)
    await rig.until(lambda: rig.bluez.scanning)
    await rig.bluez.advertise(PROBE, name="probe", address_type="random")
