"""BTHome v2: vectors of the specification, https://bthome.io/format (tables of sensor data, states and events)."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.connectors.ble import bthome
from gateway.connectors.ble.advertisement import Nature, Quantity
from gateway.errors import DecodeError
from gateway.model import Status

# object as written in the specification's table → point, value, unit
NUMBERS = [
    ("518756", "acceleration", 22.151, "m/s2"),
    ("630057D0FF", "acceleration", -3.123456, "m/s2"),
    ("0161", "battery", 97, "%EL"),
    ("6001", "channel", 1, ""),
    ("12E204", "co2", 1250, "ppm"),
    ("56E803", "conductivity", 1000, "uS/cm"),
    ("0960", "count", 96, ""),
    ("3D0960", "count", 24585, ""),
    ("3E2A2C0960", "count", 1611213866, ""),
    ("59EA", "count", -22, ""),
    ("5AEAEA", "count", -5398, ""),
    ("5BEA0234EA", "count", -365690134, ""),
    ("434E34", "current", 13.39, "A"),
    ("5D02EA", "current", -5.63, "A"),
    ("08CA06", "dewpoint", 17.38, "Cel"),
    ("5E9F8C", "direction", 359.99, "deg"),
    ("400C00", "distance", 12, "mm"),
    ("414E00", "distance", 7.8, "m"),
    ("424E3400", "duration", 13.390, "s"),
    ("4d12138a14", "energy", 344593.170, "kWh"),
    ("0A138A14", "energy", 1346.067, "kWh"),
    ("4B138A14", "gas", 1346.067, "m3"),
    ("4C41018A01", "gas", 25821.505, "m3"),
    ("528756", "gyroscope", 22.151, "deg/s"),
    ("03BF13", "humidity", 50.55, "%RH"),
    ("2E23", "humidity", 35, "%RH"),
    ("05138A14", "illuminance", 13460.67, "lx"),
    ("6402", "light_level", "bright", ""),
    ("065E1F", "mass", 80.3, "kg"),
    ("073E1D", "mass", 74.86, "lb"),
    ("14020C", "moisture", 30.74, "%"),
    ("2F23", "moisture", 35, "%"),
    ("0D120C", "pm2_5", 3090, "ug/m3"),
    ("0E021C", "pm10", 7170, "ug/m3"),
    ("0B021B00", "power", 69.14, "W"),
    ("5C02FBFFFF", "power", -12.78, "W"),
    ("5FA00F", "precipitation", 400.0, "mm"),
    ("04138A01", "pressure", 1008.83, "hPa"),
    ("540C48656C6C6F20576F726C6421", "raw", "48656c6c6f20576f726c6421", ""),
    ("3F020C", "rotation", 307.4, "deg"),
    ("61AC0D", "rotational_speed", 3500, "1/min"),
    ("6503", "settings_revision", 3, ""),
    ("444E34", "speed", 133.90, "m/s"),
    ("624099DFFF", "speed", -2.123456, "m/s"),
    ("57EA", "temperature", -22, "Cel"),
    ("58EA", "temperature", -7.7, "Cel"),
    ("451101", "temperature", 27.3, "Cel"),
    ("02CA09", "temperature", 25.06, "Cel"),
    ("530C48656C6C6F20576F726C6421", "text", "Hello World!", ""),
    ("505d396164", "timestamp", 1684093277, "s"),
    ("133301", "tvoc", 307, "ug/m3"),
    ("0C020C", "voltage", 3.074, "V"),
    ("4A020C", "voltage", 307.4, "V"),
    ("4E87562A01", "volume", 19551.879, "l"),
    ("478756", "volume", 2215.1, "l"),
    ("48DC87", "volume", 34780, "ml"),
    ("5587562A01", "volume_storage", 19551.879, "l"),
    ("49DC87", "volume_flow_rate", 34.780, "m3/h"),
    ("4632", "uv_index", 5.0, ""),
    ("4F87562A01", "water", 19551.879, "l"),
]


def said(objects: str) -> tuple[Quantity, ...]:
    return bthome.decode(bytes.fromhex("40" + objects)).quantities


@pytest.mark.parametrize(("objects", "point", "value", "unit"), NUMBERS, ids=[row[0][:2] for row in NUMBERS])
def test_every_object_of_the_specification_gives_its_result(objects: str, point: str, value: object, unit: str) -> None:
    (quantity,) = said(objects)
    assert (quantity.point, quantity.value, quantity.unit) == (point, value, unit)
    assert type(quantity.value) is type(value)
    assert quantity.status is Status.GOOD


def test_the_table_of_vectors_covers_every_number_of_the_specification() -> None:
    assert {int(row[0][:2], 16) for row in NUMBERS} == {*bthome.NUMBERS, 0x53, 0x54, 0x64}


STATES = [
    ("1501", "battery_low", True),
    ("1601", "battery_charging", True),
    ("1700", "carbon_monoxide", False),
    ("1801", "cold", True),
    ("1900", "connectivity", False),
    ("1A00", "door", False),
    ("1B01", "garage_door", True),
    ("1C01", "gas_detected", True),
    ("0F01", "generic", True),
    ("1D00", "heat", False),
    ("1E01", "light", True),
    ("1F01", "unlocked", True),
    ("2001", "moisture_detected", True),
    ("2100", "motion", False),
    ("2201", "moving", True),
    ("2301", "occupancy", True),
    ("1100", "opening", False),
    ("2400", "plug", False),
    ("1001", "power_on", True),
    ("2500", "presence", False),
    ("2601", "problem", True),
    ("2701", "running", True),
    ("2800", "safety", False),
    ("2901", "smoke", True),
    ("2A00", "sound", False),
    ("2B00", "tamper", False),
    ("2C01", "vibration", True),
    ("2D01", "window", True),
]


@pytest.mark.parametrize(("objects", "point", "value"), STATES, ids=[row[0][:2] for row in STATES])
def test_every_binary_state_of_the_specification_is_a_boolean(objects: str, point: str, value: bool) -> None:
    (quantity,) = said(objects)
    assert (quantity.point, quantity.value, quantity.nature) == (point, value, Nature.STATE)


def test_the_table_of_states_covers_the_specification() -> None:
    assert {int(row[0][:2], 16) for row in STATES} == set(bthome.STATES)


def test_a_state_that_is_neither_on_nor_off_is_no_value() -> None:
    (quantity,) = said("1A02")
    assert (quantity.value, quantity.status) == (None, Status.DECODE)


@pytest.mark.parametrize(
    ("objects", "values"),
    [
        ("3A00", {}),
        ("3A01", {"button": "press"}),
        ("3A02", {"button": "double_press"}),
        ("3A03", {"button": "triple_press"}),
        ("3A04", {"button": "long_press"}),
        ("3A05", {"button": "long_double_press"}),
        ("3A06", {"button": "long_triple_press"}),
        ("3A80", {"button": "hold_press"}),
        ("3A003A01", {"button_2": "press"}),  # no event for the first button, a press of the second
        ("3B0000", {"command": "off"}),
        ("3B0001", {"command": "on"}),
        ("3B0002", {"command": "toggle"}),
        ("3B010305", {"command": "step_up", "command_steps": 5}),
        ("3B010405", {"command": "step_down", "command_steps": 5}),
        ("3BE10305", {"command": "step_up", "command_steps": 5}),  # the high three bits of the length are reserved
        ("3B027FAABB", {"command": "0x7f"}),  # a manufacturer's own
        ("3C0000", {}),
        ("3C0103", {"dimmer": "rotate_left", "dimmer_steps": 3}),
        ("3C020A", {"dimmer": "rotate_right", "dimmer_steps": 10}),
    ],
)
def test_events_of_the_specification(objects: str, values: dict[str, object]) -> None:
    quantities = said(objects)
    assert {quantity.point: quantity.value for quantity in quantities} == values
    assert all(quantity.nature is Nature.EVENT for quantity in quantities)


def test_several_objects_of_one_property_are_numbered_in_their_order() -> None:
    quantities = said("02CA094511010161")
    assert [(q.point, q.value) for q in quantities] == [
        ("temperature_1", 25.06),
        ("temperature_2", 27.3),
        ("battery", 97),
    ]


def test_packet_id_and_device_information_are_not_measurements() -> None:
    decoded = bthome.decode(bytes.fromhex("40000902CA09F00100F100010204F2000106"))
    assert decoded.numbered
    assert [quantity.point for quantity in decoded.quantities] == ["temperature"]


def test_ids_out_of_order_are_tolerated() -> None:
    assert [quantity.point for quantity in said("03BF1302C4090009")] == ["humidity", "temperature"]


def test_an_unknown_id_ends_the_payload_and_what_came_before_counts() -> None:
    assert [quantity.point for quantity in said("02CA09EE0103BF13")] == ["temperature"]


@pytest.mark.parametrize(
    "objects", [objects for objects, *_ in NUMBERS + STATES] + ["3A01", "3C0103", "3B010305", "0009"]
)
def test_an_object_that_is_cut_short_is_an_error(objects: str) -> None:
    whole = bytes.fromhex("40" + objects)
    for end in range(2, len(whole)):
        with pytest.raises(DecodeError):
            bthome.decode(whole[:end])


def test_an_encrypted_payload_says_nothing_but_that() -> None:
    # https://bthome.io/encryption: temperature and humidity under the key 231d39c1d7cc1ab1aee224cd096db932
    decoded = bthome.decode(bytes.fromhex("41a47266c95f730011223378237214"))
    assert decoded.encrypted
    assert decoded.quantities == ()


@pytest.mark.parametrize("payload", ["", "20", "0002CA09", "6002CA09"])
def test_another_version_is_an_error(payload: str) -> None:
    with pytest.raises(DecodeError):
        bthome.decode(bytes.fromhex(payload))


def test_text_that_is_not_utf8_is_no_value() -> None:
    (quantity,) = said("5302FFFE")
    assert (quantity.value, quantity.status) == (None, Status.DECODE)


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=40))
def test_random_payloads_decode_or_are_refused_and_never_invent_a_value(objects: bytes) -> None:
    """Every value is a function of bytes that are there: what is decoded from a prefix stays when more follows."""
    try:
        whole = bthome.decode(b"\x40" + objects)
    except DecodeError:
        return
    for quantity in whole.quantities:
        assert (quantity.value is None) == (quantity.status is not Status.GOOD)
    assert len(whole.quantities) <= len(objects)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from([row[0] for row in NUMBERS + STATES]), max_size=8))
def test_any_sequence_of_known_objects_gives_exactly_their_values(objects: list[str]) -> None:
    known = {row[0]: row[2] for row in NUMBERS + STATES}
    assert [quantity.value for quantity in said("".join(objects))] == [known[each] for each in objects]
