"""What one advertisement costs: `python tests/benchmarks/ble.py` prints microseconds of this process for each step."""

from __future__ import annotations

import time
from collections.abc import Callable

from gateway.connectors.ble import bthome, ruuvi
from gateway.connectors.ble.advertisement import Advertisement
from gateway.connectors.ble.config import BleDevice
from gateway.connectors.ble.sensor import Sensor

ADDRESS = "A4:C1:38:8D:18:B2"
THERMOMETER = bytes.fromhex("4002C40903BF13")
RAW_V2 = bytes.fromhex("0512FC5394C37C0004FFFC040CAC364200CDCBB8334C884F")
ROUNDS = 20_000


def cost_us(step: Callable[[int], object]) -> float:
    best = float("inf")
    for _ in range(3):
        began = time.process_time()
        for number in range(ROUNDS):
            step(number)
        best = min(best, time.process_time() - began)
    return best / ROUNDS * 1e6


def main() -> None:
    sensor = Sensor(BleDevice(name="a", bus="air", address=ADDRESS, min_interval=0.0), lambda *_: None, 0.0)
    repeated = Advertisement(ADDRESS, "", -60, {bthome.UUID: THERMOMETER}, {})

    def fresh(number: int) -> object:
        payload = b"\x40\x02" + (number % 10_000).to_bytes(2, "little")
        return sensor.take(repeated._replace(service_data={bthome.UUID: payload}), float(number), number)

    print(f"decode BTHome, two values      {cost_us(lambda _: bthome.decode(THERMOMETER)):6.1f} us")
    print(f"decode RuuviTag, nine values   {cost_us(lambda _: ruuvi.decode(RAW_V2)):6.1f} us")
    print(f"advertisement to sample        {cost_us(fresh):6.1f} us")


if __name__ == "__main__":
    main()
