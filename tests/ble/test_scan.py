"""`gateway scan ble` through unmodified bleak."""

from __future__ import annotations

import asyncio
import tomllib
from pathlib import Path
from typing import Any

import pytest

from gateway.connectors.ble import atc, bthome, eddystone, govee, ibeacon, ruuvi, switchbot, xiaomi
from gateway.connectors.ble.advertisement import Advertisement
from gateway.connectors.ble.config import BleBus, BleDevice
from gateway.connectors.ble.link import BleakRadio
from gateway.connectors.ble.scan import Found, _heard_again, rows, scan, to_toml
from gateway.connectors.ble.sensor import Sensor
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


ADDRESS = "A4:C1:38:02:83:F4"
SENSORS: list[tuple[str, dict[str, Any]]] = [
    ("bthome", {"service_data": {bthome.UUID: bytes.fromhex("4002C409")}}),
    ("ruuvi", {"manufacturer_data": {ruuvi.COMPANY: RAW_V2}}),
    ("xiaomi", {"service_data": {xiaomi.UUID: bytes.fromhex("40305b05030a10014f")}}),
    ("atc", {"service_data": {atc.UUID: bytes.fromhex("f4830238c1a4a9066911b60b58f70d")}, "address": ADDRESS}),
    ("govee", {"manufacturer_data": {govee.COMPANY: bytes.fromhex("0003215d6400")}, "name": "GVH5075_CB9B"}),
    ("inkbird", {"manufacturer_data": {0x089C: bytes.fromhex("f41000ba4e6408")}, "name": "sps"}),
    ("thermopro", {"manufacturer_data": {0x17C2: bytes.fromhex("0127022c")}, "name": "TP357 (2801)"}),
    ("switchbot", {"service_data": {switchbot.UUID: bytes.fromhex("690064009826")}}),
    ("eddystone", {"service_data": {eddystone.UUID: bytes.fromhex("20000bb8158000000064000003e8")}}),
    ("ibeacon", {"manufacturer_data": {ibeacon.COMPANY: bytes.fromhex("0215" + "00" * 16 + "00010002c5")}}),
]


def test_every_format_is_recognised_and_what_is_printed_is_accepted_and_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with PrivateBus(folder) as dbus:
            monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", dbus.address)
            bluez = FakeBluez(dbus.address)
            await bluez.start()

            async def air() -> None:
                await bluez.scan_began.wait()
                for number, (_, keys) in enumerate(SENSORS):
                    await bluez.advertise(**({"address": f"C4:7C:8D:00:00:{number:02X}"} | keys))

            async with asyncio.TaskGroup() as group:
                group.create_task(air())
                found = await scan(BleakRadio(""), 0.8)
            await bluez.stop()
        assert {each.decoded.decoder for each in found if each.decoded} == {name for name, _ in SENSORS}
        pasted = tomllib.loads(to_toml(found))
        for table, each in zip(pasted["device"], found, strict=True):
            device, mistakes = read(BleDevice, table)
            assert device is not None, mistakes
            sample = Sensor(device, lambda *_: None, 0.0).take(each.heard, 1.0, 1)
            assert sample is not None, table
        row = next(row for row in rows(found) if row[3] == "inkbird")
        assert row[4] == "temperature 22.04 Cel, humidity 43.4 %RH, battery 100 %EL"

    asyncio.run(main())


def test_quantities_that_are_told_one_at_a_time_are_shown_together() -> None:
    heard = Advertisement("A4:C1:38:B4:94:4C", "", -60, {xiaomi.UUID: bytes.fromhex("40305b05030a10014f")}, {})
    first = _heard_again(None, heard)
    second = heard._replace(service_data={xiaomi.UUID: bytes.fromhex("40305b0504041002c400")})
    both = _heard_again(first, second)
    assert both.decoded is not None
    assert [quantity.point for quantity in both.decoded.quantities] == ["battery", "temperature"]
    beacon = second._replace(service_data={}, manufacturer_data=dict(SENSORS[-1][1]["manufacturer_data"]))
    assert _heard_again(both, beacon).decoded == both.decoded
