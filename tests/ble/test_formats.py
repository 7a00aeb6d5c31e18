"""Vectors of the formats, each named with the public place where it stands."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.connectors.ble import atc, bthome, eddystone, govee, ibeacon, inkbird, ruuvi, switchbot, thermopro, xiaomi
from gateway.connectors.ble.advertisement import Advertisement, Decoded, Key
from gateway.connectors.ble.cipher import BindKey
from gateway.connectors.ble.decoders import DecoderName, decode
from gateway.errors import DecodeError
from gateway.model import Status

ADDRESS = "A4:C1:38:8D:18:B2"


def heard(
    *,
    address: str = ADDRESS,
    name: str = "",
    service: dict[str, str] | None = None,
    maker: dict[int, str] | None = None,
) -> Advertisement:
    services = {uuid: bytes.fromhex(data) for uuid, data in (service or {}).items()}
    makers = {company: bytes.fromhex(data) for company, data in (maker or {}).items()}
    return Advertisement(address, name, -60, services, makers)


def key(digits: str) -> Key:
    return BindKey(bytes.fromhex(digits))


def said(decoded: Decoded | None) -> dict[str, Any]:
    assert decoded is not None
    return {quantity.point: quantity.value for quantity in decoded.quantities}


def glued(payload: str) -> str:
    """With the iBeacon that some Govee models send in the same breath."""
    return payload + "4c000215494e54454c4c495f524f434b535f48575075f2ff0c"


# ── Ruuvi: the test vectors of https://docs.ruuvi.com/communication/bluetooth-advertisements ─────────────────────────

F3, F6, E1 = (
    ("temperature", "humidity", "pressure", "acceleration_x", "acceleration_y", "acceleration_z", "battery_voltage"),
    ("temperature", "humidity", "pressure", "pm2_5", "co2", "voc_index", "nox_index", "illuminance",
     "measurement_sequence", "calibrating"),
    ("temperature", "humidity", "pressure", "pm1", "pm2_5", "pm4", "pm10", "co2", "voc_index", "nox_index",
     "illuminance", "measurement_sequence", "calibrating"),
)  # fmt: skip
RUUVI = {
    "3 valid": ("03291A1ECE1EFC18F94202CA0B53", F3, (26.3, 20.5, 102766, -1.0, -1.726, 0.714, 2.899)),
    "3 maximum": ("03FF7F63FFFF7FFF7FFF7FFFFFFF", F3, (127.99, 127.5, 115535, 32.767, 32.767, 32.767, 65.535)),
    "3 minimum": ("0300FF6300008001800180010000", F3, (-127.99, 0.0, 50000, -32.767, -32.767, -32.767, 0.0)),
    "6 valid": (
        "06170C5668C79E007000C90501D9FFCD004C884F", F6,
        (29.5, 55.3, 101102, 11.2, 201, 10, 2, 13026.67, 205, False),
    ),
    "6 maximum": (
        "067FFF9C40FFFE27109C40FAFAFEFFFF074C8F4F", F6,
        (163.835, 100.0, 115534, 1000.0, 40000, 500, 500, 65535.0, 255, True),
    ),
    "6 minimum": (
        "0680010000000000000000000000FF00004C884F", F6, (-163.835, 0.0, 50000, 0.0, 0, 0, 0, 0.0, 0, False)
    ),
    "6 invalid": ("068000FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF", F6, (*(None,) * 8, 255, True)),
    "E1 valid": (
        "E1170C5668C79E0065007004BD11CA00C90A0213E0ACFFFFFFDECDEE01FFFFFFFFFFCBB8334C884F", E1,
        (29.5, 55.3, 101102, 10.1, 11.2, 121.3, 455.4, 201, 20, 4, 13027.0, 14601710, True),
    ),
    "E1 maximum": (
        "E17FFF9C40FFFE27102710271027109C40FAFADC28F0FFFFFFFFFFFE3FFFFFFFFFFFCBB8334C884F", E1,
        (163.835, 100.0, 115534, 1000.0, 1000.0, 1000.0, 1000.0, 40000, 500, 500, 144284.0, 16777214, True),
    ),
    "E1 minimum": (
        "E1800100000000000000000000000000000000000000FFFFFF00000000FFFFFFFFFFCBB8334C884F", E1,
        (-163.835, 0.0, 50000, 0.0, 0.0, 0.0, 0.0, 0, 0, 0, 0.0, 0, False),
    ),
    "E1 invalid": (
        "E18000FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEFFFFFFFFFFFFFFFFFFFFFF", E1,
        (*(None,) * 12, False),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("payload", "points", "values"), RUUVI.values(), ids=RUUVI)
def test_ruuvi(payload: str, points: tuple[str, ...], values: tuple[object, ...]) -> None:
    decoded = ruuvi.decode(bytes.fromhex(payload))
    assert said(decoded) == dict(zip(points, values, strict=True))
    assert all((q.value is None) == (q.status is Status.SENSOR_FAULT) for q in decoded.quantities)


# ── encrypted BTHome: https://bthome.io/encryption ───────────────────────────────────────────────────────────────────


def test_bthome_encrypted() -> None:
    sealed = heard(address="54:48:E6:8F:80:A5", service={bthome.UUID: "41a47266c95f730011223378237214"})
    decoded = bthome.hear(sealed, key("231d39c1d7cc1ab1aee224cd096db932"))
    assert said(decoded) == {"temperature": 25.06, "humidity": 50.55}
    assert decoded is not None
    assert decoded.counter == 0x33221100
    for other in (None, key("00" * 16)):
        locked = bthome.hear(sealed, other)
        assert locked is not None
        assert (locked.encrypted, locked.quantities) == (True, ())


# ── Xiaomi: the tests of xiaomi-ble (https://github.com/Bluetooth-Devices/xiaomi-ble) and the examples of
#    https://github.com/pvvx/ATC_MiThermometer/tree/master/python-interface ────────────────────────────────────────────

XIAOMI = {
    "LYWSDCGQ": (
        "58:2D:34:3B:2E:BF", "5020aa01a3bf2e3b342d580d1004b4009502", "", {"temperature": 18.0, "humidity": 66.1},
    ),
    "LYWSD03MMC": (
        "A4:C1:38:B4:94:4C", "50305b05034c94b438c1a40d10041001ea01", "", {"temperature": 27.2, "humidity": 49.0},
    ),
    "HHCCJCY01 temperature": ("C4:7C:8D:6B:4F:F3", "7120980012f34f6b8d7cc40d041002c400", "", {"temperature": 19.6}),
    "HHCCJCY01 illuminance": ("C4:7C:8D:6A:3E:7A", "71209800667a3e6a8d7cc40d071003000000", "", {"illuminance": 0}),
    "HHCCJCY01 conductivity": ("C4:7C:8D:6A:3E:7A", "71209800687a3e6a8d7cc40d0910025702", "", {"conductivity": 599}),
    "HHCCJCY01 moisture": ("C4:7C:8D:6A:3E:7A", "71209800477a3e6a8d7cc40d08100140", "", {"moisture": 64}),
    "HHCCPOT002": (
        "C4:7C:8D:00:01:5D", "71205d01015d01008d7cc40d081001400910025702", "", {"moisture": 64, "conductivity": 599},
    ),
    "JQJCY01YM": ("C4:7C:8D:00:02:DF", "5040df0201df02008d7cc41010027d00", "", {"formaldehyde": 1.25}),
    "WX08ZM": ("C4:7C:8D:00:04:0A", "50400a04010a04008d7cc41310015a", "", {"consumable": 90}),
    "mi_like": (
        "A4:C1:38:AA:BB:CC", "50585b051bccbbaa38c1a40d1004be000002", "", {"temperature": 19.0, "humidity": 51.2},
    ),
    "mi_like battery": ("A4:C1:38:AA:BB:CC", "50585b0522ccbbaa38c1a40a10014f", "", {"battery": 79}),
    "mi_like_enc temperature": (
        "A4:C1:38:AA:BB:CC", "58585b05f4ccbbaa38c1a413df92a81cb30000acc46fda", "aa" * 16, {"temperature": 19.0},
    ),
    "LYWSD03MMC encrypted": (
        "A4:C1:38:02:83:F4", "58585b0550f4830238c1a495ef58763c26000097e2abb5", "e9ea895fac7cca6d30532432a516f3a8",
        {"humidity": 46.7},
    ),
    "JTYJGD03MI smoke": (
        "54:EF:44:E3:9C:BC", "5859970966bc9ce344ef5401081205000000715ebe90", "5b51a7c91cde6707c9ef18dfda143a58",
        {"smoke": "alarm"},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("address", "payload", "secret", "values"), XIAOMI.values(), ids=XIAOMI)
def test_xiaomi(address: str, payload: str, secret: str, values: dict[str, object]) -> None:
    advertisement = heard(address=address, service={xiaomi.UUID: payload})
    assert said(xiaomi.hear(advertisement, key(secret) if secret else None)) == values
    if secret:
        for other in (None, key("00" * 16)):
            locked = xiaomi.hear(advertisement, other)
            assert locked is not None
            assert (locked.encrypted, locked.quantities) == (True, ())


def test_xiaomi_says_nothing_without_an_object_and_refuses_what_cannot_be_checked() -> None:
    assert (
        xiaomi.hear(heard(address="A4:C1:38:D4:3C:48", service={xiaomi.UUID: "30585b0502483cd438c1a408"}), None) is None
    )
    for payload in (
        "5830b603d28b98c54124f8c3491476757e00000099",  # version 3, encrypted: the tests of xiaomi-ble
        "50305b05034c94b438c1a40d10041001ea",  # cut short
        "50305b05034c94b438c1a40610020110",  # another address than it comes from, humidity of 4097
        "",
    ):
        with pytest.raises(DecodeError):
            xiaomi.hear(heard(address="F8:24:41:C5:98:8B", service={xiaomi.UUID: payload}), key("00" * 16))


# ── atc1441 and custom: the tests of Passive BLE Monitor, and the examples of
#    https://github.com/pvvx/ATC_MiThermometer/tree/master/python-interface ────────────────────────────────────────────

ATC = {
    "atc1441": (
        "A4:C1:38:02:83:F4", "a4c1380283f400a22f5f0bf819", "",
        {"temperature": 16.2, "humidity": 47, "battery": 95, "battery_voltage": 3.064},
    ),
    "custom": (
        "A4:C1:38:02:83:F4", "f4830238c1a4a9066911b60b58f70d", "",
        {"temperature": 17.05, "humidity": 44.57, "battery": 88, "battery_voltage": 2.998, "reed_input": True,
         "gpio_output": False},
    ),
    "custom encrypted": (
        "A4:C1:38:8D:18:B2", "11d603fbfa7b6dfb1e26fd", "b9ea895fac7eea6d30532432a516f3a3",
        {"temperature": 23.45, "humidity": 41.73, "battery": 61},
    ),
    "custom_enc": ("A4:C1:38:AA:BB:CC", "bd86c53ffab900c1515859", "aa" * 16, {"temperature": 19.0}),
    "atc1441_enc": ("A4:C1:38:AA:BB:CC", "bde9b75db856f303", "aa" * 16, {"temperature": 19.0}),
}  # fmt: skip


@pytest.mark.parametrize(("address", "payload", "secret", "values"), ATC.values(), ids=ATC)
def test_atc(address: str, payload: str, secret: str, values: dict[str, object]) -> None:
    advertisement = heard(address=address, service={atc.UUID: payload})
    values_said = said(atc.hear(advertisement, key(secret) if secret else None))
    assert {point: value for point, value in values_said.items() if point in values} == values
    if secret:
        locked = atc.hear(advertisement, key("01" * 16))
        assert locked is not None
        assert (locked.encrypted, locked.quantities) == (True, ())
    else:
        with pytest.raises(DecodeError, match="it says to come from"):
            atc.hear(advertisement._replace(address=ADDRESS), None)


# ── Govee: the tests of Passive BLE Monitor and of govee-ble (https://github.com/Bluetooth-Devices/govee-ble) ─────────

GOVEE = {
    "H5074": ("Govee_H5074_5FF4", govee.COMPANY, "0088078c116402", (19.28, 44.92, 100)),
    "H5075": ("GVH5075_CB9B", govee.COMPANY, "0003215d6400", (20.5, 14.9, 100)),
    "H5075 below zero": ("GVH5075_CB9B", govee.COMPANY, "0081c2896400", (-11.5, 33.7, 100)),
    "H5075 glued": ("GVH5075_2762", govee.COMPANY, glued("000341c26400"), (21.3, 44.2, 100)),
    "H5072 without a name": ("", govee.COMPANY, "00034db26400", (21.6, 49.8, 100)),
    "H5102": ("GVH5102_CB9B", 1, "010103cb0164", (24.8, 57.7, 100)),
    "H5179": ("Govee_H5179_3CD5", govee.COMPANY_H5179, "ec000101a00aa2175b", (27.2, 60.5, 91)),
}  # fmt: skip


@pytest.mark.parametrize(("name", "company", "payload", "values"), GOVEE.values(), ids=GOVEE)
def test_govee(name: str, company: int, payload: str, values: tuple[float, ...]) -> None:
    decoded = govee.hear(heard(name=name, maker={0x4C: "0215494e54454c4c49", company: payload}), None)
    assert said(decoded) == dict(zip(("temperature", "humidity", "battery"), values, strict=True))


@pytest.mark.parametrize(("payload", "values"), [("01010deeaa6f", (23.3, 74.5, 7)), ("010181867cd8", (-2.5, 59.1, 0))])
def test_govee_air_monitor(payload: str, values: tuple[float, ...]) -> None:
    """H5106; the tests of Passive BLE Monitor and of govee-ble."""
    decoded = govee.hear(heard(name="GVH5106_4C99", maker={1: payload}), None)
    assert said(decoded) == dict(zip(("temperature", "humidity", "pm2_5"), values, strict=True))


def test_govee_says_that_its_sensor_failed_and_guesses_nothing() -> None:
    failed = govee.hear(heard(name="GVH5075_2762", maker={govee.COMPANY: "000341c2e400"}), None)
    assert said(failed) == {"temperature": None, "humidity": None, "battery": 100}
    assert govee.hear(heard(maker={1: "010103cb0164"}), None) is None, "without a name it may be anybody's"
    assert govee.hear(heard(name="GVH5108_1", maker={1: "010103cb0164"}), None) is None
    for payload in ("00bc00043e27", "0003215d6500", "0003215d64", ""):
        with pytest.raises(DecodeError):
            govee.hear(heard(name="GVH5075_2762", maker={govee.COMPANY: payload}), None)


# ── Inkbird: the tests of Passive BLE Monitor and of inkbird-ble ─────────────────────────────────────────────────────

INKBIRD = {
    "IBS-TH": ("sps", "9c08f41000ba4e6408", {"temperature": 22.04, "humidity": 43.4, "battery": 100}),
    "IBS-TH outside": ("sps", "3b0af815018cbc6408", {"probe_temperature": 26.19, "humidity": 56.24, "battery": 100}),
    "IBS-TH2": ("tps", "ff0700000031603306", {"temperature": 20.47, "battery": 51}),
    "IBS-TH2 below zero": ("tps", "9ef8000000bcbc6406", {"temperature": -18.9, "battery": 100}),
    "inkbird-ble": ("sps", "fc07c71200c83d5606", {"temperature": 20.44, "humidity": 48.07, "battery": 86}),
}


@pytest.mark.parametrize(("name", "wire", "values"), INKBIRD.values(), ids=INKBIRD)
def test_inkbird(name: str, wire: str, values: dict[str, float]) -> None:
    data = bytes.fromhex(wire)
    maker = {int.from_bytes(data[:2], "little"): data[2:].hex()}
    assert said(inkbird.hear(heard(name=name, maker=maker), None)) == values
    assert inkbird.hear(heard(name="other", maker=maker), None) is None
    for bit in range(40, 56):
        with pytest.raises(DecodeError, match="CRC"):
            inkbird.decode((int.from_bytes(data, "little") ^ 1 << bit).to_bytes(9, "little"), name == "sps")


# ── ThermoPro: the tests of Passive BLE Monitor, Theengs Decoder and thermopro-ble ───────────────────────────────────

THERMOPRO = {
    "TP357": ("TP357 (2801)", "c2170127022cbc", (27.9, 39)),
    "TP357 Theengs": ("TP357", "c2100147022c", (27.2, 71)),
    "TP357S": ("TP357S", "c2d60043220b01", (21.4, 67)),
    "TP359": ("TP359 (0C87)", "c2ff0035012c", (25.5, 53)),
    "TP393": ("TP393", "c2d40037022c", (21.2, 55)),
    "TP357S has none": ("TP357S (3C62)", "c2ffffff220b01", (None, None)),
}


@pytest.mark.parametrize(("name", "wire", "values"), THERMOPRO.values(), ids=THERMOPRO)
def test_thermopro(name: str, wire: str, values: tuple[float | None, ...]) -> None:
    data = bytes.fromhex(wire)
    maker = {int.from_bytes(data[:2], "little"): data[2:].hex()}
    decoded = thermopro.hear(heard(name=name, maker=maker), None)
    assert said(decoded) == dict(zip(("temperature", "humidity"), values, strict=True))


def test_where_a_measurement_stands_in_the_company_only_what_changed_counts() -> None:
    """BlueZ keeps every identifier; thermopro-ble has such a list in its tests."""
    old = {0xF2C2: "0028022c", 0xF1C2: "0028022c", 0xF0C2: "0029022c"}
    both = heard(name="TP393 (9376)", maker=old)
    assert thermopro.hear(both, None) is None, "nobody knows which of them is new"
    assert thermopro.hear(both._replace(changed=frozenset()), None) is None
    newest = thermopro.hear(both._replace(changed=frozenset({0xF0C2})), None)
    assert said(newest) == {"temperature": 24.0, "humidity": 41}


# ── SwitchBot: the documents of the maker, Theengs Decoder's tests, Passive BLE Monitor's ────────────────────────────

SWITCHBOT = {
    "meter": (switchbot.OLD_UUID, "54006400990e", "", {"temperature": 25.0, "humidity": 14, "battery": 100}),
    "meter of 0D00": (switchbot.OLD_UUID, "540054459938", "", {"temperature": 25.5, "humidity": 56, "battery": 84}),
    "meter plus": (switchbot.UUID, "690064009826", "", {"temperature": 24.0, "humidity": 38, "battery": 100}),
    "meter plus below zero": (
        switchbot.UUID, "6900ba031938", "", {"temperature": -25.3, "humidity": 56, "battery": 58},
    ),
    "outdoor": (switchbot.UUID, "770064", "8b0305993200", {"temperature": 25.5, "humidity": 50, "battery": 100}),
    "outdoor below zero": (
        switchbot.UUID, "770041", "e30f090f2a00", {"temperature": -15.9, "humidity": 42, "battery": 65},
    ),
    "motion": (switchbot.UUID, "7340d50000f2", "", {"motion": True, "light": True, "battery": 85}),
    "contact closed": (
        switchbot.OLD_UUID, "64c05c010000000000", "",
        {"opening": False, "left_open": False, "motion": True, "light": True, "button_counter": 0, "battery": 92},
    ),
    "contact open": (
        switchbot.OLD_UUID, "6480d7020000000000", "",
        {"opening": True, "left_open": False, "motion": False, "light": False, "button_counter": 0, "battery": 87},
    ),
    "contact left open": (
        switchbot.UUID, "6440c1050000000000", "",
        {"opening": True, "left_open": True, "motion": True, "light": True, "button_counter": 0, "battery": 65},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("uuid", "payload", "more", "values"), SWITCHBOT.values(), ids=SWITCHBOT)
def test_switchbot(uuid: str, payload: str, more: str, values: dict[str, object]) -> None:
    maker = {switchbot.COMPANY: ADDRESS.replace(":", "") + more} if more else {}
    assert said(switchbot.hear(heard(service={uuid: payload}, maker=maker), None)) == values


def test_the_example_of_the_outdoor_meter_in_the_documents_of_the_maker() -> None:
    maker = {switchbot.COMPANY: ADDRESS.replace(":", "") + "360302963700"}
    outdoor = switchbot.hear(heard(service={switchbot.UUID: "770064"}, maker=maker), None)
    assert said(outdoor) == {"temperature": 22.2, "humidity": 55, "battery": 100}
    assert switchbot.hear(heard(service={switchbot.UUID: "770064"}), None) is None, "half of it"


# ── Eddystone: https://github.com/google/eddystone; iBeacon: Apple's Proximity Beacon Specification ──────────────────

EDDYSTONE = {
    "TLM": (
        "20000bb8158000000064000003e8",
        {"battery_voltage": 3.0, "temperature": 21.5, "advertisements": 100, "uptime": 100.0},
    ),
    "TLM with nothing supported": ("2000000080000000000000000000", {"advertisements": 0, "uptime": 0.0}),
    "URL https://goo.gl/S6zT6P": (
        "10ee03676f6f2e676c2f53367a543650", {"url": "https://goo.gl/S6zT6P", "tx_power": -18},
    ),
    "URL with endings": ("1012006578616d706c65006107", {"url": "http://www.example.com/a.com", "tx_power": 18}),
    "UID": (
        "00ee000102030405060708090a0b0c0d0e0f0000",
        {"namespace": "00010203040506070809", "instance": "0a0b0c0d0e0f", "tx_power": -18},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("payload", "values"), EDDYSTONE.values(), ids=EDDYSTONE)
def test_eddystone(payload: str, values: dict[str, object]) -> None:
    assert said(eddystone.hear(heard(service={eddystone.UUID: payload}), None)) == values


def test_eddystone_frames_that_are_not_for_us() -> None:
    sealed = eddystone.decode(bytes.fromhex("2001" + "00" * 16))
    assert sealed is not None
    assert sealed.encrypted
    assert eddystone.decode(bytes.fromhex("30ee" + "00" * 8)) is None
    for payload in ("", "40", "2000", "10ee04aabb", "10ee0380", "00ee"):
        with pytest.raises(DecodeError):
            eddystone.decode(bytes.fromhex(payload))


def test_ibeacon_is_read_when_it_is_asked_for() -> None:
    beacon = heard(maker={ibeacon.COMPANY: "0215" + "fda50693a4e24fb1afcfc6eb07647825" + "27b75d25c5"})
    assert said(decode(DecoderName.IBEACON, beacon)) == {
        "uuid": "fda50693-a4e2-4fb1-afcf-c6eb07647825",
        "major": 0x27B7,
        "minor": 0x5D25,
        "measured_power": -59,
        "rssi": -60,
    }
    assert decode(DecoderName.AUTO, beacon) is None
    assert decode(DecoderName.IBEACON, heard(maker={ibeacon.COMPANY: "1005"})) is None


def test_auto_finds_every_format() -> None:
    found = [
        heard(service={bthome.UUID: "4002C409"}),
        heard(maker={ruuvi.COMPANY: RUUVI["3 valid"][0]}),
        heard(service={xiaomi.UUID: "40305b05030a10014f"}),
        heard(address="A4:C1:38:02:83:F4", service={atc.UUID: ATC["custom"][1]}),
        heard(maker={govee.COMPANY: "0003215d6400"}),
        heard(name="sps", maker={0x089C: "f41000ba4e6408"}),
        heard(name="TP357 (2801)", maker={0x17C2: "0127022c"}),
        heard(service={switchbot.UUID: "690064009826"}),
        heard(service={eddystone.UUID: EDDYSTONE["TLM"][0]}),
    ]
    decoded = [decode(DecoderName.AUTO, each) for each in found]
    assert [each.decoder for each in decoded if each] == [
        name.value for name in DecoderName if name not in (DecoderName.AUTO, DecoderName.IBEACON)
    ]


def test_auto_looks_past_a_format_that_makes_no_sense() -> None:
    both = heard(service={bthome.UUID: "2001", eddystone.UUID: EDDYSTONE["TLM"][0]})
    decoded = decode(DecoderName.AUTO, both)
    assert decoded is not None
    assert decoded.decoder == "eddystone"
    with pytest.raises(DecodeError):
        decode(DecoderName.AUTO, heard(service={bthome.UUID: "2001"}))


def test_a_single_entry_is_of_this_packet_whether_it_changed_or_not() -> None:
    alone = heard(name="TP393", maker={0x4C: "1005", 0xF0C2: "0029022c"})
    for changed in (None, frozenset[int](), frozenset({0xF0C2})):
        assert said(thermopro.hear(alone._replace(changed=changed), None)) == {"temperature": 24.0, "humidity": 41}
