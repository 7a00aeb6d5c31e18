"""What one advertisement costs: `python tests/benchmarks/ble.py` prints microseconds of this process.

For each format: the bare decoder on the payload, and the whole way from the advertisement to the sample with `auto`,
which tries the formats before it. Then what a decoder package needs for the same, where it is installed, and what a
stranger costs, whose address nobody configured. The two makers that send a measurement where the company belongs need
a packet in between to be news, and it is counted with theirs.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable

from gateway.connectors.ble import (
    atc,
    bthome,
    eddystone,
    govee,
    ibeacon,
    inkbird,
    ruuvi,
    switchbot,
    thermopro,
    xiaomi,
)
from gateway.connectors.ble.advertisement import Advertisement
from gateway.connectors.ble.cipher import BindKey
from gateway.connectors.ble.config import BleDevice
from gateway.connectors.ble.decoders import DecoderName, decode
from gateway.connectors.ble.foreign import Foreign
from gateway.connectors.ble.identity import Identities
from gateway.connectors.ble.sensor import Sensor

ADDRESS = "A4:C1:38:02:83:F4"
SEALER = "54:48:E6:8F:80:A5"
KEY = BindKey(bytes.fromhex("231d39c1d7cc1ab1aee224cd096db932"))
ROUNDS = 20_000


def heard(
    service: dict[str, str] | None = None, maker: dict[int, str] | None = None, name: str = "", address: str = ADDRESS
) -> Advertisement:
    services = {uuid: bytes.fromhex(data) for uuid, data in (service or {}).items()}
    makers = {company: bytes.fromhex(data) for company, data in (maker or {}).items()}
    return Advertisement(address, name, -60, services, makers)


Bare = Callable[[Advertisement], object]
FORMATS: dict[str, tuple[Bare, Advertisement]] = {
    "BTHome, two values": (
        lambda each: bthome.decode(each.service_data[bthome.UUID]), heard({bthome.UUID: "4002C40903BF13"}),
    ),
    "BTHome, encrypted": (
        lambda each: bthome.decode(each.service_data[bthome.UUID], SEALER, KEY),
        heard({bthome.UUID: "41a47266c95f730011223378237214"}, address=SEALER),
    ),
    "Ruuvi 5, ten values": (
        lambda each: ruuvi.decode(each.manufacturer_data[ruuvi.COMPANY]),
        heard(maker={ruuvi.COMPANY: "0512FC5394C37C0004FFFC040CAC364200CDCBB8334C884F"}),
    ),
    "Ruuvi E1, thirteen values": (
        lambda each: ruuvi.decode(each.manufacturer_data[ruuvi.COMPANY]),
        heard(
            maker={ruuvi.COMPANY: "E1170C5668C79E0065007004BD11CA00C90A0213E0ACFFFFFFDECDEE01FFFFFFFFFFCBB8334C884F"}
        ),
    ),
    "MiBeacon, two values": (
        lambda each: xiaomi.decode(each.service_data[xiaomi.UUID], ADDRESS),
        heard({xiaomi.UUID: "50305b0503f4830238c1a40d10041001ea01"}),
    ),
    "ATC custom": (
        lambda each: atc.decode(each.service_data[atc.UUID], ADDRESS),
        heard({atc.UUID: "f4830238c1a4a9066911b60b58f70d"}),
    ),
    "Govee H5075": (
        lambda each: govee.hear(each, None), heard(maker={govee.COMPANY: "0003215d6400"}, name="GVH5075_1"),
    ),
    "Inkbird, with its CRC": (
        lambda each: inkbird.decode(bytes.fromhex("9c08f41000ba4e6408"), True),
        heard(maker={0x089C: "f41000ba4e6408"}, name="sps"),
    ),
    "ThermoPro": (
        lambda each: thermopro.decode(bytes.fromhex("c2170127022cbc")),
        heard(maker={0x17C2: "0127022cbc"}, name="TP357"),
    ),
    "SwitchBot meter": (
        lambda each: switchbot.decode(each.service_data[switchbot.UUID], b"", ADDRESS),
        heard({switchbot.UUID: "690064009826"}),
    ),
    "Eddystone TLM": (
        lambda each: eddystone.decode(each.service_data[eddystone.UUID]),
        heard({eddystone.UUID: "20000bb8158000000064000003e8"}),
    ),
    "iBeacon": (
        lambda each: ibeacon.decode(each.manufacturer_data[ibeacon.COMPANY], -60),
        heard(maker={ibeacon.COMPANY: "0215" + "fda50693a4e24fb1afcfc6eb07647825" + "27b75d25c5"}),
    ),
}  # fmt: skip
PACKAGES = {
    "bthome-ble": "BTHome, two values", "ruuvitag-ble": "Ruuvi 5, ten values", "xiaomi-ble": "MiBeacon, two values",
    "govee-ble": "Govee H5075",
}  # fmt: skip


def decoder_us(bare: Bare, advertisement: Advertisement, rounds: int = ROUNDS) -> float:
    return cost_us(lambda _: bare(advertisement), rounds)


def cost_us(step: Callable[[int], object], rounds: int = ROUNDS) -> float:
    best = float("inf")
    for _ in range(3):
        began = time.process_time()
        for number in range(rounds):
            step(number)
        best = min(best, time.process_time() - began)
    return best / rounds * 1e6


def way_us(advertisement: Advertisement) -> float:
    """Advertisement to sample, each one news: nothing is thinned out, for a second passes between them."""
    beacon = ibeacon.COMPANY in advertisement.manufacturer_data
    decoder = DecoderName.IBEACON if beacon else DecoderName.AUTO
    device = BleDevice(name="a", bus="air", address=advertisement.address, decoder=decoder, min_interval=0.0)
    sensor = Sensor(device, lambda *_: None, 0.0)
    keyed = advertisement.address == SEALER
    sensor.equip(lambda each: decode(decoder, each, KEY if keyed else None), keyed, "")
    other = advertisement._replace(manufacturer_data={})

    def step(number: int) -> object:
        if len(advertisement.manufacturer_data) == 1 and advertisement.name:
            sensor.take(other, number * 100.0, number)  # else nothing would have changed
        return sensor.take(advertisement, number * 100.0, number)

    assert step(0) is not None
    return cost_us(step)


def main() -> None:
    print(f"{'':28}{'decoder':>9}{'to sample':>11}")
    for name, (bare, advertisement) in FORMATS.items():
        print(f"{name:28}{decoder_us(bare, advertisement):9.1f}{way_us(advertisement):11.1f}")
    print()
    for package, name in PACKAGES.items():
        if importlib.util.find_spec(package.replace("-", "_")) is None:
            print(f"{package:28}  not installed")
            continue
        parser, (_, advertisement) = Foreign(package, None), FORMATS[name]
        print(f"{package:28}{decoder_us(parser.hear, advertisement, 2000):9.1f}   {name}")
    print()
    identities, devices = Identities({}), {ADDRESS: 1}
    print(f"{'a stranger':28}{cost_us(lambda _: devices.get(identities.of('11:22:33:44:55:66'))):9.1f}")


if __name__ == "__main__":
    main()
