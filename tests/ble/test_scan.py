"""`gateway scan ble` through unmodified bleak."""

from __future__ import annotations

import asyncio
import tomllib
from pathlib import Path

import pytest

from gateway.connectors.ble import bthome, ruuvi
from gateway.connectors.ble.config import BleBus, BleDevice
from gateway.connectors.ble.link import BleakRadio
from gateway.connectors.ble.scan import Found, rows, scan, to_toml
from gateway.errors import LinkError
from gateway.settings import read
from gateway.testing.bluez import FakeBluez, PrivateBus

RAW_V2 = bytes.fromhex("0512FC5394C37C0004FFFC040CAC364200CDCBB8334C884F")


async def look(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[tuple[Found, ...], list[tuple[float, int]]]:
    shown: list[tuple[float, int]] = []
    async with PrivateBus(folder) as dbus:
        monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", dbus.address)
        bluez = FakeBluez(dbus.address)
        await bluez.start()

        async def air() -> None:
            await bluez.scan_began.wait()
            plain, locked = bytes.fromhex("4002C40903BF13"), bytes.fromhex("41a47266c95f730011223378237214")
            await bluez.advertise("A4:C1:38:8D:18:B2", name="Kühl\x1b", rssi=-80, service_data={bthome.UUID: plain})
            await bluez.advertise("A4:C1:38:8D:18:B3", rssi=-50, service_data={bthome.UUID: locked})
            await bluez.advertise(
                "CB:B8:33:4C:88:4F", rssi=-70, manufacturer_data={ruuvi.COMPANY: RAW_V2}, address_type="random"
            )
            await bluez.advertise(
                "5A:00:00:00:00:01", rssi=-40, manufacturer_data={0x004C: b"\x10\x05"}, address_type="random"
            )

        async with asyncio.TaskGroup() as group:
            group.create_task(air())
            found = await scan(BleakRadio(""), 0.8, lambda share, devices: shown.append((share, devices)))
        await bluez.stop()
    return found, shown


def test_what_is_heard_is_shown_and_can_be_pasted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, shown = asyncio.run(look(folder, monkeypatch))
    table = rows(found)
    assert [row[0] for row in table] == [
        "A4:C1:38:8D:18:B3",
        "CB:B8:33:4C:88:4F",
        "A4:C1:38:8D:18:B2",
        "5A:00:00:00:00:01 (not stable)",
    ]
    assert table[0][4] == "encrypted"
    assert table[2] == ("A4:C1:38:8D:18:B2", "Kühl?", "-80 dBm", "bthome", "temperature 25.0 Cel, humidity 50.55 %RH")
    assert table[3][4] == "company 0x004C: 1005"
    assert shown[-1] == (1.0, 4)
    pasted = tomllib.loads(to_toml(found, "hci0"))
    assert [read(BleBus, table)[1] for table in pasted["bus"]] == [[]]
    assert [read(BleDevice, table)[1] for table in pasted["device"]] == [[], [], []]
    assert {table["name"] for table in pasted["device"]} == {"ble-18b3", "ble-884f", "k-hl"}


def test_a_scan_without_bluetooth_says_what_is_missing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with PrivateBus(folder) as dbus:
            monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", dbus.address)
            with pytest.raises(LinkError, match=r"bluetooth\.service"):
                await scan(BleakRadio(""), 1.0)

    asyncio.run(main())


def test_nothing_to_paste_is_said() -> None:
    assert to_toml(()).startswith("# nothing")
