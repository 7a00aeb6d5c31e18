"""The whole way: fake bluetoothd, D-Bus, unmodified bleak, connector, samples."""

from __future__ import annotations

import asyncio
from functools import partial

from gateway.connectors.ble import bthome, ruuvi
from gateway.model import Status

from .conftest import Start, bus, device

FRIDGE = "A4:C1:38:8D:18:B2"
TAG = "CB:B8:33:4C:88:4F"
THERMOMETER = bytes.fromhex("4002C40903BF13")  # https://bthome.io/format: 25.00 °C, 50.55 %
RAW_V2 = bytes.fromhex("0512FC5394C37C0004FFFC040CAC364200CDCBB8334C884F")


def test_advertisements_of_two_sensors_become_samples(start: Start) -> None:
    async def main() -> None:
        async with start([device("fridge", FRIDGE), device("tag", TAG)]) as rig:
            await rig.until(lambda: rig.bluez.scanning)
            await rig.bluez.advertise(FRIDGE, service_data={bthome.UUID: THERMOMETER})
            await rig.bluez.advertise(TAG, manufacturer_data={ruuvi.COMPANY: RAW_V2}, address_type="random")
            await rig.until(lambda: len(rig.samples) == 2)
            fridge, tag = sorted(rig.samples, key=lambda sample: sample.device)
            assert (fridge.device, fridge.points, fridge.values) == ("fridge", ("temperature", "humidity"), (25.0, 50.55))
            assert fridge.units == ("Cel", "%RH")
            assert tag.device == "tag"
            assert tag.values[tag.points.index("pressure")] == 100044

    asyncio.run(main())
