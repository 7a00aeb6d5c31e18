"""Characteristics with several fields: laid out as the GATT Specification Supplement says."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.connectors.ble import gatt
from gateway.connectors.ble.measurements import MEASUREMENTS, Field
from gateway.errors import DecodeError
from gateway.model import Status, Value

CASES: list[tuple[int, str, dict[str, Value | None]]] = [
    # flags, FLOAT: mantissa of 24 bits, exponent; 0xFF000173 is 37.1 in the Health Thermometer Service's own example
    (0x2A1C, "00 730100FF", {"temperature": 37.1}),
    (0x2A1C, "01 DA0300FF", {"temperature": 37.0}),  # 98.6 degrees Fahrenheit
    (0x2A1C, "06 6CFEFFFF E4071F0C0A0B0C 02", {"temperature": -40.4}),
    (0x2A1C, "00 05000002", {"temperature": 500.0}),
    (0x2A1C, "00 FFFF7F00", {"temperature": None}),
    (0x2A1E, "00 730100FF", {"temperature": 37.1}),
    (0x2A37, "00 48", {"heart_rate": 72, "contact": None, "energy_expended": None, "rr_interval": None}),
    (0x2A37, "1F 2C01 6400 0004 0002",
     {"heart_rate": 300, "contact": True, "energy_expended": 100, "rr_interval": 0.5}),
    (0x2A37, "04 48", {"heart_rate": 72, "contact": False}),
    (0x2A9D, "00 803E", {"weight": 80.0, "bmi": None}),
    (0x2A9D, "0E 803E E4071F0C0A0B0C 03 FA00 0807", {"weight": 80.0, "user": 3, "bmi": 25.0, "height": 1.8}),
    (0x2A9D, "01 1027", {"weight": 45.359}),  # 100 lb
    (0x2A9D, "00 FFFF", {"weight": None}),
    (0x2A5B, "03 01000000 0004 0200 0002",
     {"wheel_revolutions": 1, "wheel_time": 1.0, "crank_revolutions": 2, "crank_time": 0.5}),
    (0x2A5B, "02 0200 0002", {"wheel_revolutions": None, "crank_revolutions": 2}),
    (0x2A63, "0000 FA00", {"power": 250, "torque": None}),
    (0x2A63, "3500 9CFF 64 4000 01000000 0008 0200 0004",
     {"power": -100, "balance": 50.0, "torque": 2.0, "wheel_revolutions": 1, "wheel_time": 1.0,
      "crank_revolutions": 2, "crank_time": 1.0}),
]  # fmt: skip


@pytest.mark.parametrize(("number", "data", "values"), CASES)
def test_fields_are_read_and_absent_ones_say_nothing(number: int, data: str, values: dict[str, Value | None]) -> None:
    for field, value in values.items():
        said = Field(MEASUREMENTS[number], field).decode(bytes.fromhex(data))
        if value is None:
            assert said in (None, (None, Status.SENSOR_FAULT))
        else:
            assert said == (value, Status.GOOD)


@settings(max_examples=500, deadline=None)
@given(st.sampled_from(sorted(MEASUREMENTS)), st.binary(max_size=24))
def test_random_values_are_read_or_refused(number: int, data: bytes) -> None:
    for field in MEASUREMENTS[number].units:
        try:
            said = Field(MEASUREMENTS[number], field).decode(data)
        except DecodeError:
            continue
        assert said is None or (said[0] is None) == (said[1] is not Status.GOOD)


def test_the_first_field_is_meant_when_none_is_named_and_none_can_be_written() -> None:
    known = gatt.fixed(gatt.full_uuid("2a37") or "")
    assert isinstance(known, Field)
    assert (known.field, known.unit) == ("heart_rate", "1/min")
    with pytest.raises(DecodeError):
        known.encode(60)
    with pytest.raises(ValueError, match="heart_rate, contact"):
        gatt.fixed(gatt.full_uuid("2a37") or "", "pulse")
    with pytest.raises(ValueError, match="no fields"):
        gatt.fixed(gatt.full_uuid("2a19") or "", "level")
