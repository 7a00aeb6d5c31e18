"""The packages of the Bluetooth-Devices project, the real ones, through the adapter."""

from __future__ import annotations

import logging
import random

import pytest

from gateway.connectors.ble import bthome, ruuvi, xiaomi
from gateway.connectors.ble.advertisement import Advertisement, Decoded, Nature, uuid16
from gateway.connectors.ble.decoders import DecoderName, decode
from gateway.connectors.ble.foreign import Foreign
from gateway.connectors.ble.sensor import Sensor
from gateway.errors import DecodeError, DeviceError
from gateway.model import DeviceState, Status

from .conftest import FRIDGE, RAW_V2, Rig, Start, device
from .test_random import NOISE

pytest.importorskip("bthome_ble", reason="the extra ble-decoders is not installed")

SEALER = "54:48:E6:8F:80:A5"
SEALED = bytes.fromhex("41a47266c95f730011223378237214")  # https://bthome.io/encryption
KEY = bytes.fromhex("231d39c1d7cc1ab1aee224cd096db932")


def of_bthome(payload: str, address: str = FRIDGE) -> Advertisement:
    return Advertisement(address, "", -60, {bthome.UUID: bytes.fromhex(payload)}, {})


def values(decoded: Decoded | None) -> dict[str, tuple[object, str]]:
    return {q.point: (q.value, q.unit) for q in decoded.quantities} if decoded else {}


@pytest.mark.parametrize(
    ("package", "ours", "heard"),
    [
        ("bthome-ble", "bthome", of_bthome("4002C40903BF130161")),
        ("govee-ble", "govee", Advertisement(FRIDGE, "GVH5075_2762", -60, {}, {0xEC88: bytes.fromhex("000341c26400")})),
        (
            "xiaomi-ble", "xiaomi",
            Advertisement(
                "A4:C1:38:B4:94:4C", "", -60, {xiaomi.UUID: bytes.fromhex("50305b05034c94b438c1a40d10041001ea01")}, {}
            ),
        ),
        ("thermopro-ble", "thermopro", Advertisement(FRIDGE, "TP357 (2142)", -60, {}, {0xF1C2: b"\x00\x1d\x02,"})),
        ("inkbird-ble", "inkbird", Advertisement(FRIDGE, "sps", -60, {}, {2044: b"\xc7\x12\x00\xc8=V\x06"})),
    ],
)  # fmt: skip
def test_a_package_and_our_own_decoder_say_the_same(package: str, ours: str, heard: Advertisement) -> None:
    theirs = values(Foreign(package, None).hear(heard))
    own = values(decode(DecoderName(ours), heard))
    assert theirs
    assert own
    for point, (value, unit) in own.items():
        assert theirs[point] == (value, unit)


def test_ruuvi_agrees_but_for_the_unit_of_acceleration() -> None:
    heard = Advertisement(FRIDGE, "", -60, {}, {ruuvi.COMPANY: RAW_V2})
    theirs = values(Foreign("ruuvitag-ble", None).hear(heard))
    assert theirs["temperature"] == (24.3, "Cel")
    assert theirs["pressure"] == (1000.44, "hPa")


def test_what_was_said_before_is_not_said_again() -> None:
    parser = Foreign("bthome-ble", None)
    assert set(values(parser.hear(of_bthome("4002C409")))) == {"temperature"}
    assert set(values(parser.hear(of_bthome("4003BF13")))) == {"humidity"}
    assert parser.hear(Advertisement(FRIDGE, "", -60, {uuid16(0xFFFF): b"x"}, {})) is None


def test_events_and_states_keep_their_nature() -> None:
    parser = Foreign("bthome-ble", None)
    (event,) = (parser.hear(of_bthome("403A01")) or Decoded("", b"", ())).quantities
    assert (event.value, event.nature) == ("press", Nature.EVENT)
    (door,) = (parser.hear(of_bthome("401A01")) or Decoded("", b"", ())).quantities
    assert (door.value, door.nature) == (True, Nature.STATE)


@pytest.mark.parametrize(("secret", "value"), [(KEY, 25.06), (bytes(16), None), (None, None)])
def test_a_key_opens_and_without_the_right_one_it_is_encrypted(secret: bytes | None, value: float | None) -> None:
    decoded = Foreign("bthome-ble", secret).hear(of_bthome(SEALED.hex(), SEALER))
    assert decoded is not None
    assert decoded.encrypted == (value is None)
    assert values(decoded).get("temperature", (None,))[0] == value


def test_a_package_that_logs_every_packet_logs_once(caplog: pytest.LogCaptureFixture) -> None:
    """bthome-ble warns of objects out of order, with every advertisement."""
    parser = Foreign("bthome-ble", None)
    for logger in [logging.getLogger("bthome_ble.parser")]:
        for known in logger.filters:
            known._said.clear()  # type: ignore[union-attr]
    with caplog.at_level(logging.INFO):
        for last in range(1000):
            parser.hear(of_bthome(f"4003BF1302C4{last % 256:02x}"))
    assert len([record for record in caplog.records if record.name.startswith("bthome_ble")]) == 1


FORMATS = {
    "bthome-ble": DecoderName.BTHOME, "ruuvitag-ble": DecoderName.RUUVI, "xiaomi-ble": DecoderName.XIAOMI,
    "govee-ble": DecoderName.GOVEE, "inkbird-ble": DecoderName.INKBIRD, "thermopro-ble": DecoderName.THERMOPRO,
}  # fmt: skip


def pelt(package: str, rounds: int) -> None:
    rng = random.Random(package)
    parser = Foreign(package, None)
    for _ in range(rounds):
        try:
            decoded = parser.hear(NOISE[FORMATS[package]](rng))
        except DecodeError:
            continue
        if decoded is not None:
            assert not (decoded.encrypted and decoded.quantities)
            assert all(q.value is not None and q.status is Status.GOOD for q in decoded.quantities)


@pytest.mark.parametrize("package", FORMATS)
def test_whatever_a_package_does_with_noise_only_a_decode_error_escapes(package: str) -> None:
    pelt(package, 500)


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("package", FORMATS)
def test_a_million_random_advertisements_do_not_break_out_of_a_package(package: str) -> None:
    pelt(package, 1_000_000)


def test_a_package_that_raises_is_a_decode_error() -> None:
    parser = Foreign("bthome-ble", None)

    class Breaks:
        def clear(self) -> None: ...

        def update(self, _: object) -> None:
            raise KeyError("0x99")

        _sensor_values_updates = _binary_sensor_values_updates = property(lambda self: self)

    parser._data = Breaks()
    with pytest.raises(DecodeError, match="0x99"):
        parser.hear(of_bthome("4002C409"))


@pytest.mark.parametrize("package", ["no-such-package", "msgspec"])
def test_a_package_that_is_missing_or_none_of_them_says_so(package: str) -> None:
    with pytest.raises(DeviceError, match=package) as caught:
        Foreign(package, None)
    assert caught.value.status is Status.CONFIG


def test_a_device_whose_package_is_missing_tells_and_its_neighbour_goes_on(start: Start) -> None:
    import asyncio

    async def main() -> None:
        devices = [device("odd", SEALER, package="no-such-package"), device("fridge", FRIDGE, package="bthome-ble")]
        async with start(devices) as rig:
            await listen(rig)
            said = [(state, why) for name, state, why in rig.reports if name == "odd"]
            assert said[0][0] is DeviceState.FAILING
            assert "no-such-package" in said[0][1]
            assert rig.connector.status()["devices"]["fridge"]["decoder"] == "bthome-ble"

    async def listen(rig: Rig) -> None:
        await rig.until(lambda: rig.bluez.scanning)
        await rig.bluez.advertise(FRIDGE, service_data={bthome.UUID: bytes.fromhex("4002C409")})
        await rig.until(lambda: rig.values("fridge", "temperature") == [25.0])

    asyncio.run(main())


def test_the_same_packet_is_thinned_out_as_ever() -> None:
    sensor = Sensor(device("fridge", FRIDGE), lambda *_: None, 0.0)
    sensor.equip(Foreign("bthome-ble", None).hear, False, "")
    samples = [sensor.take(of_bthome("4002C409"), at / 10, at) for at in range(8)]
    assert [sample is not None for sample in samples] == [True] + [False] * 7
