"""Scale, offset and conversion in whole numbers."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.codec.linear import Linear

TENTHS = st.integers(-10_000, 10_000).map(lambda n: n / 10)


@pytest.mark.parametrize(
    ("scale", "offset", "unit", "convert", "raw", "value"),
    [
        (0.1, 0, "", "", 217, 21.7),  # 217 * 0.1 is 21.700000000000003
        (0.001, 0, "", "", 1234567, 1234.567),
        (0.01, -40, "", "", 6553, 25.53),
        (1, 0, "degF", "Cel", 212, 100.0),
        (0.1, 0, "degF", "°C", 986, 37.0),
        (10, 5, "", "", 3, 35),
        (1, 0, "kWh", "Wh", 12, 12_000),
        (1, 0, "", "", 21.5, 21.5),
        (1, 0, "K", "Cel", 300.0, 26.85),
    ],
)
def test_the_result_is_what_one_would_write_by_hand(
    scale: float, offset: float, unit: str, convert: str, raw: float, value: float
) -> None:
    result = Linear.of(scale, offset, unit, convert)(raw)
    assert result == value
    assert type(result) is type(value)


@given(st.integers(-(2**63), 2**64 - 1), st.integers(-1000, 1000), st.integers(-(10**6), 10**6))
def test_whole_scales_keep_integers_exact(raw: int, scale: int, offset: int) -> None:
    assert Linear.of(float(scale), float(offset))(raw) == raw * scale + offset


@given(st.integers(-(2**63), 2**64 - 1), TENTHS, TENTHS)
def test_a_scaled_integer_is_the_float_nearest_to_the_true_result(raw: int, scale: float, offset: float) -> None:
    true = raw * Decimal(repr(scale)) + Decimal(repr(offset))
    value = Linear.of(scale, offset)(raw)
    assert value == (true if isinstance(value, int) else float(true))


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown unit"):
        Linear.of(1, 0, "fathoms per fortnight", "m/s")
    with pytest.raises(ValueError, match="nan"):
        Linear.of(float("nan"), 0)
