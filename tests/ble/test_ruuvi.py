"""RuuviTag data format 5 (RAWv2): the test vectors of the specification at https://docs.ruuvi.com."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.connectors.ble import ruuvi
from gateway.errors import DecodeError
from gateway.model import Status

POINTS = (
    "temperature", "humidity", "pressure", "acceleration_x", "acceleration_y", "acceleration_z", "battery_voltage",
    "tx_power", "movement_counter", "measurement_sequence",
)  # fmt: skip
VECTORS = {
    "valid": (
        "0512FC5394C37C0004FFFC040CAC364200CDCBB8334C884F",
        (24.3, 53.49, 100044, 0.004, -0.004, 1.036, 2.977, 4, 66, 205),
    ),
    "maximum": (
        "057FFFFFFEFFFE7FFF7FFF7FFFFFDEFEFFFECBB8334C884F",
        (163.835, 163.8350, 115534, 32.767, 32.767, 32.767, 3.646, 20, 254, 65534),
    ),
    "minimum": (
        "058001000000008001800180010000000000CBB8334C884F",
        (-163.835, 0, 50000, -32.767, -32.767, -32.767, 1.6, -40, 0, 0),
    ),
    "invalid": ("058000FFFFFFFF800080008000FFFFFFFFFFFFFFFFFFFFFF", (None,) * 10),
}


@pytest.mark.parametrize(("payload", "values"), VECTORS.values(), ids=VECTORS)
def test_the_vectors_of_the_specification(payload: str, values: tuple[object, ...]) -> None:
    decoded = ruuvi.decode(bytes.fromhex(payload))
    assert tuple(quantity.point for quantity in decoded.quantities) == POINTS
    assert tuple(quantity.value for quantity in decoded.quantities) == values
    assert all((q.value is None) == (q.status is Status.SENSOR_FAULT) for q in decoded.quantities)
    assert decoded.numbered == (payload != VECTORS["invalid"][0])


@pytest.mark.parametrize(
    "payload", ["", "05", "0512FC5394C37C0004FFFC040CAC364200CDCBB8334C88", "03291A1ECE1EFC18F94202CA0B"]
)
def test_other_formats_and_lengths_are_refused(payload: str) -> None:
    with pytest.raises(DecodeError):
        ruuvi.decode(bytes.fromhex(payload))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=30) | st.binary(min_size=23, max_size=23).map(lambda rest: b"\x05" + rest))
def test_random_payloads_decode_or_are_refused(payload: bytes) -> None:
    try:
        decoded = ruuvi.decode(payload)
    except DecodeError:
        return
    assert all((q.value is None) == (q.status is not Status.GOOD) for q in decoded.quantities)
