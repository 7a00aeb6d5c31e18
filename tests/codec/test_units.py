"""Unit symbols and conversions."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.codec import units
from gateway.codec.units import convert, symbol

SPELLINGS = [
    ("°C", "Cel"),
    (" degC ", "Cel"),
    ("C", "Cel"),
    ("Cel", "Cel"),
    ("°F", "degF"),
    ("%", "%"),
    ("%RH", "%RH"),
    ("% RH", "%RH"),
    ("kPa", "kPa"),
    ("µg/m³", "ug/m3"),
    ("μg/m³", "ug/m3"),
    ("m^3/h", "m3/h"),
    ("m³", "m3"),
    ("kΩ", "kOhm"),
    ("KWh", "kWh"),
    ("rpm", "1/min"),
    ("lux", "lx"),
    ("L/min", "l/min"),
    ("VAr", "var"),
    ("", ""),
    ("widgets", "widgets"),
]


@pytest.mark.parametrize(("text", "meant"), SPELLINGS)
def test_a_spelling_becomes_the_symbol_and_the_unknown_stays_as_it_came(text: str, meant: str) -> None:
    assert symbol(text) == meant


# Reference values computed from the definitions in NIST SP 811 (appendix B.8).
CONVERSIONS = [
    ("degF", "Cel", 212, 100.0),
    ("degF", "Cel", -40, -40.0),
    ("Cel", "degF", 37, 98.6),
    ("Cel", "K", 0, 273.15),
    ("K", "Cel", 0, -273.15),
    ("psi", "kPa", 1, 6.894757293168361),
    ("mmHg", "Pa", 1, 133.322387415),
    ("inHg", "Pa", 1, 3386.388640341),
    ("bar", "Pa", 1, 1e5),
    ("mbar", "hPa", 1013.25, 1013.25),
    ("Wh", "kWh", 1234, 1.234),
    ("kWh", "MJ", 1, 3.6),
    ("BTU", "J", 1, 1055.05585262),
    ("hp", "W", 1, 745.6998715822702),
    ("kn", "m/s", 1, 0.5144444444444445),
    ("mph", "km/h", 60, 96.56064),
    ("gal/min", "l/min", 1, 3.785411784),
    ("ft", "m", 1, 0.3048),
    ("lb", "kg", 1, 0.45359237),
    ("1/min", "Hz", 3000, 50.0),
    ("deg", "rad", 180, 3.141592653589793),
    ("%", "/", 45, 0.45),
    ("ppm", "%", 10_000, 1.0),
    ("uS/cm", "S/m", 500, 0.05),
    ("KiB", "B", 1, 1024.0),
    ("°C", "°F", 100, 212.0),
]


@pytest.mark.parametrize(("source", "target", "value", "expected"), CONVERSIONS)
def test_conversions_agree_with_the_reference(source: str, target: str, value: float, expected: float) -> None:
    factor, offset = convert(source, target)
    assert float(Fraction(value) * factor + offset) == pytest.approx(expected, rel=1e-8, abs=1e-12)


@given(st.sampled_from(sorted(units._UNITS)), st.data(), st.integers(-(10**6), 10**6))
def test_there_and_back_again_is_exact(source: str, data: st.DataObject, value: int) -> None:
    kin = [name for name, unit in units._UNITS.items() if unit.dimension == units._UNITS[source].dimension]
    target = data.draw(st.sampled_from(kin))
    there, back = convert(source, target), convert(target, source)
    assert (value * there.factor + there.offset) * back.factor + back.offset == value


@pytest.mark.parametrize(
    ("source", "target", "says"),
    [
        ("kPas", "kPa", "unknown unit `kPas`; the nearest known one is `kPa`"),
        ("degF", "celcius", "unknown unit `celcius`; the nearest known one is `celsius`"),
        ("Cel", "kWh", "`Cel` cannot become `kWh`; it can become K, degF"),
        ("%RH", "%", "`%RH` cannot become `%`; nothing converts it"),
        ("", "Cel", "unknown unit ``"),
    ],
)
def test_what_cannot_be_converted_is_refused_with_a_hint(source: str, target: str, says: str) -> None:
    with pytest.raises(ValueError, match=f"^{says}") as refused:
        convert(source, target)
    assert str(refused.value).startswith(says)


def test_every_alias_leads_to_a_known_symbol_and_hides_none() -> None:
    assert set(units._ALIASES.values()) <= set(units._UNITS)
    assert not set(units._ALIASES) & set(units._UNITS)
