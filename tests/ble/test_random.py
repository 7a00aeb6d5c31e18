"""Whatever is on the air: no exception escapes a decoder, and no value is made up.

A short run stands in the default suite; `--long` is one million advertisements for each decoder. They are not all
noise: most begin as the format begins, so that the deeper branches are reached too.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator

import pytest

from gateway.connectors.ble import atc, bthome, eddystone, govee, ibeacon, ruuvi, switchbot, xiaomi
from gateway.connectors.ble.advertisement import Advertisement, Decoded
from gateway.connectors.ble.cipher import BindKey
from gateway.connectors.ble.decoders import DecoderName, decode
from gateway.errors import DecodeError
from gateway.model import Status

ADDRESS = "A4:C1:38:8D:18:B2"
MAC = bytes.fromhex("A4C1388D18B2")
KEY = BindKey(bytes(range(16)))
Noise = Callable[[random.Random], Advertisement]


def advertisement(
    name: str = "", service: dict[str, bytes] | None = None, maker: dict[int, bytes] | None = None
) -> Advertisement:
    return Advertisement(ADDRESS, name, -60, service or {}, maker or {})


def some(rng: random.Random, most: int = 30) -> bytes:
    return rng.randbytes(rng.randrange(most))


def of_bthome(rng: random.Random) -> Advertisement:
    begin = rng.choice((b"", b"\x40", b"\x41", b"\x44", bytes((0x40, rng.randrange(0x66)))))
    return advertisement(service={bthome.UUID: begin + some(rng)})


def of_ruuvi(rng: random.Random) -> Advertisement:
    kind, size = rng.choice(((3, 13), (5, 23), (6, 19), (0xE1, 39), (rng.randrange(256), rng.randrange(42))))
    return advertisement(maker={ruuvi.COMPANY: bytes((kind,)) + rng.randbytes(size)})


def of_xiaomi(rng: random.Random) -> Advertisement:
    control = (rng.randrange(16) << 12 | rng.randrange(4096)) if rng.random() < 0.3 else 0x5040 | rng.choice((0, 8, 16))
    address = MAC[::-1] if control & 0x10 and rng.random() < 0.9 else b""
    number = rng.choice((*xiaomi.OBJECTS, rng.randrange(65536)))
    size = rng.choice((xiaomi.OBJECTS[number].size if number in xiaomi.OBJECTS else 0, rng.randrange(6)))
    thing = number.to_bytes(2, "little") + bytes((size,)) + rng.randbytes(size)
    data = control.to_bytes(2, "little") + rng.randbytes(3) + address + rng.choice((thing, thing * 2, some(rng)))
    return advertisement(service={xiaomi.UUID: data[: rng.randrange(40)] if rng.random() < 0.2 else data})


def of_atc(rng: random.Random) -> Advertisement:
    begin = rng.choice((MAC, MAC[::-1], b""))
    size = rng.choice((13, 15, 11, 8, rng.randrange(20)))
    return advertisement(service={atc.UUID: (begin + rng.randbytes(20))[:size]})


def of_govee(rng: random.Random) -> Advertisement:
    name = rng.choice(("", "GVH5075_1", "Govee_H5074_1", "GVH5102_1", "GVH5106_1", "Govee_H5179_1", "GVH5108_1"))
    company = rng.choice((govee.COMPANY, govee.COMPANY_H5179, 1))
    return advertisement(name, maker={company: rng.randbytes(rng.choice((6, 7, 9, 31, rng.randrange(12))))})


def of_changing(*names: str) -> Noise:
    def noise(rng: random.Random) -> Advertisement:
        size = rng.choice((4, 5, 7, rng.randrange(10)))
        maker = {rng.choice((rng.randrange(65536), rng.randrange(256) << 8 | 0xC2)): rng.randbytes(size)}
        return advertisement(rng.choice((*names, "other")), maker=maker)

    return noise


def of_switchbot(rng: random.Random) -> Advertisement:
    kind = bytes((rng.choice((*b"TtiwsSdD", rng.randrange(256))),))
    data = kind + rng.randbytes(rng.choice((2, 5, 8, rng.randrange(10))))
    return advertisement(
        service={rng.choice((switchbot.UUID, switchbot.OLD_UUID)): data},
        maker={switchbot.COMPANY: rng.choice((MAC, b"")) + some(rng, 10)},
    )


def of_eddystone(rng: random.Random) -> Advertisement:
    frame = rng.choice((b"\x00", b"\x10", b"\x20\x00", b"\x20", b"\x30", b""))
    size = rng.choice((12, 17, 19, rng.randrange(22)))
    return advertisement(service={eddystone.UUID: frame + bytes(rng.choice((0, 3, 65, 250)) for _ in range(size))})


def of_ibeacon(rng: random.Random) -> Advertisement:
    return advertisement(maker={ibeacon.COMPANY: b"\x02\x15" + rng.randbytes(rng.choice((21, rng.randrange(26))))})


NOISE: dict[DecoderName, Noise] = {
    DecoderName.BTHOME: of_bthome,
    DecoderName.RUUVI: of_ruuvi,
    DecoderName.XIAOMI: of_xiaomi,
    DecoderName.ATC: of_atc,
    DecoderName.GOVEE: of_govee,
    DecoderName.INKBIRD: of_changing("sps", "tps"),
    DecoderName.THERMOPRO: of_changing("TP357 (1)", "TP393"),
    DecoderName.SWITCHBOT: of_switchbot,
    DecoderName.EDDYSTONE: of_eddystone,
    DecoderName.IBEACON: of_ibeacon,
}
BOUNDS = {"humidity": (0, 655.35), "battery": (0, 255), "co2": (0, 65535), "moisture": (0, 655.35)}
"""What the widest format can say; nothing may be beyond."""


def check(decoded: Decoded) -> None:
    assert not (decoded.encrypted and decoded.quantities)
    assert not decoded.sealed, "random bytes are never what a key has sealed"
    points = [quantity.point for quantity in decoded.quantities]
    assert len(points) == len(set(points))
    for quantity in decoded.quantities:
        assert (quantity.value is None) == (quantity.status is not Status.GOOD)
        if isinstance(quantity.value, float):
            assert math.isfinite(quantity.value)
        if quantity.point in BOUNDS and quantity.value is not None and not isinstance(quantity.value, str):
            low, high = BOUNDS[quantity.point]
            assert low <= quantity.value <= high


def pelt(name: DecoderName, rounds: int) -> Iterator[str]:
    rng = random.Random(name.value)
    noise = NOISE[name]
    for _ in range(rounds):
        heard = noise(rng)
        wanted = name if rng.random() < 0.8 else DecoderName.AUTO
        try:
            decoded = decode(wanted, heard, KEY if rng.random() < 0.5 else None)
        except DecodeError:
            yield "refused"
            continue
        if decoded is None:
            yield "nothing"
        else:
            check(decoded)
            yield "encrypted" if decoded.encrypted else "decoded"


def test_there_is_noise_for_every_decoder() -> None:
    assert set(NOISE) == set(DecoderName) - {DecoderName.AUTO}


@pytest.mark.parametrize("name", NOISE)
def test_random_advertisements_are_decoded_or_refused(name: DecoderName) -> None:
    outcomes = set(pelt(name, 3000))
    if name is DecoderName.INKBIRD:
        assert outcomes == {"refused", "nothing"}, "a CRC of 16 bits does not fit by chance in so few"
    else:
        assert {"refused", "decoded"} <= outcomes


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", NOISE)
def test_a_million_random_advertisements_are_decoded_or_refused(name: DecoderName) -> None:
    assert sum(1 for _ in pelt(name, 1_000_000)) == 1_000_000
