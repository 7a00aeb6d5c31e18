"""Characteristics of the GATT Specification Supplement: value, resolution and the reserved "value is not known"."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.connectors.ble import gatt
from gateway.errors import DecodeError
from gateway.model import Status


@pytest.mark.parametrize(
    ("uuid", "data", "value", "unit"),
    [
        ("2a19", "64", 100, "%EL"),
        ("2a6c", "39ADFF", -211.91, "m"),
        ("2a6d", "C5760F00", 101344.5, "Pa"),
        ("2a6e", "C409", 25.0, "Cel"),
        ("2a6e", "18FC", -10.0, "Cel"),
        ("2a6f", "BF13", 50.55, "%RH"),
        ("2a70", "D204", 12.34, "m/s"),
        ("2a71", "9F8C", 359.99, "deg"),
        ("2a76", "0B", 11, ""),
        ("2a77", "A00F", 400.0, "W/m2"),
        ("2a78", "2C01", 300, "mm"),
        ("2a7b", "F6", -10, "Cel"),
        ("2afb", "138A14", 13460.67, "lx"),
        ("2b18", "C000", 3.0, "V"),
    ],
)
def test_vectors_of_the_supplement(uuid: str, data: str, value: float, unit: str) -> None:
    known = gatt.standard(gatt.full_uuid(uuid) or "")
    assert known is not None
    assert known.decode(bytes.fromhex(data)) == (value, Status.GOOD)
    assert known.unit == unit
    assert known.encode(value) == bytes.fromhex(data)


@pytest.mark.parametrize(("uuid", "data"), [("2a6e", "0080"), ("2a6f", "FFFF"), ("2afb", "FFFFFF"), ("2b8c", "FFFF")])
def test_value_is_not_known_is_a_sensor_fault(uuid: str, data: str) -> None:
    known = gatt.standard(gatt.full_uuid(uuid) or "")
    assert known is not None
    assert known.decode(bytes.fromhex(data)) == (None, Status.SENSOR_FAULT)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(gatt.STANDARD)), st.binary(max_size=6))
def test_random_bytes_decode_or_are_refused_and_encode_to_the_same_bytes(number: int, data: bytes) -> None:
    known = gatt.STANDARD[number]
    try:
        value, status = known.decode(data)
    except DecodeError:
        assert len(data) != known.size
        return
    if status is Status.GOOD:
        assert value is not None
        assert known.encode(value) == data
    else:
        assert value is None


@pytest.mark.parametrize("value", ["warm", 1e9, float("nan"), float("inf"), -327.68])
def test_a_value_that_does_not_fit_is_not_encoded(value: float | str) -> None:
    with pytest.raises(DecodeError):
        gatt.STANDARD[0x2A6E].encode(value)


def test_ways_to_write_a_uuid() -> None:
    full = "00002a6e-0000-1000-8000-00805f9b34fb"
    assert {gatt.full_uuid(text) for text in ("2a6e", "2A6E", "0x2a6e", "00002A6E", full.upper())} == {full}
    assert gatt.full_uuid("temperature") is None
    assert gatt.standard("00002a6e-1111-1000-8000-00805f9b34fb") is None


def test_custom_types_have_exactly_their_size() -> None:
    word = gatt.custom("uint16", "little")
    assert word.decode(b"\x34\x12") == (0x1234, Status.GOOD)
    assert word.encode(0x1234) == b"\x34\x12"
    for data in (b"", b"\x34", b"\x34\x12\x00"):
        with pytest.raises(DecodeError):
            word.decode(data)
    for value in (70000, "x", 1.5):
        with pytest.raises(DecodeError):
            word.encode(value)


def test_custom_text_is_as_long_as_it_is() -> None:
    text = gatt.custom("string", "little")
    assert text.decode(b"hello") == ("hello", Status.GOOD)
    assert text.encode("hello") == b"hello"


def test_a_custom_float_that_is_nan_is_a_sensor_fault() -> None:
    assert gatt.custom("float32", "little").decode(b"\x00\x00\xc0\x7f") == (None, Status.SENSOR_FAULT)
