"""Pure: unit symbols, the other spellings that people and devices use, and conversion between them.

A unit travels as the symbol of SenML (RFC 8428, RFC 8798) where that has one, else as the plain word of the trade. Two
symbols that SenML defines are read as what a sensor means by them: `C` is a degree Celsius and not a coulomb, `F` a
degree Fahrenheit and not a farad.

Nothing is ever converted unless the configuration asks for it, and a symbol that is not known here travels as it came.
"""

from __future__ import annotations

import difflib
from fractions import Fraction
from typing import NamedTuple

_ONE = Fraction(1)
_HOUR = 3600
_LB = Fraction("0.45359237")  # international pound, exact
_INCH = Fraction("0.0254")  # exact
_FOOT = 12 * _INCH
_MILE = 5280 * _FOOT
_GALLON = 231 * _INCH**3  # US liquid, exact
_G = Fraction("9.80665")  # standard gravity, exact
_MM_HG = Fraction("133.322387415")
_MM_H2O = _G  # 1 mm of water at 1000 kg/m3
_BTU = Fraction("1055.05585262")  # international table
_DEGREE = Fraction("0.0174532925199432957692")  # pi / 180, to more digits than a float has

_DIMENSIONS: dict[str, dict[str, Fraction | int | str]] = {
    "length": {"m": 1, "km": 1000, "cm": "1e-2", "mm": "1e-3", "um": "1e-6", "in": _INCH, "ft": _FOOT, "mi": _MILE},
    "area": {"m2": 1, "cm2": "1e-4", "mm2": "1e-6", "ha": 10_000},
    "volume": {"m3": 1, "l": "1e-3", "ml": "1e-6", "ft3": _FOOT**3, "gal": _GALLON},
    "mass": {"kg": 1, "g": "1e-3", "mg": "1e-6", "t": 1000, "lb": _LB, "oz": _LB / 16},
    "time": {"s": 1, "ms": "1e-3", "us": "1e-6", "min": 60, "h": _HOUR, "d": 24 * _HOUR},
    "speed": {
        "m/s": 1,
        "km/h": Fraction(1000, _HOUR),
        "m/h": Fraction(1, _HOUR),
        "mm/s": "1e-3",
        "mm/h": Fraction(1, 1000 * _HOUR),
        "mph": _MILE / _HOUR,
        "kn": Fraction(1852, _HOUR),
        "ft/min": _FOOT / 60,
    },
    "acceleration": {"m/s2": 1, "gn": _G},
    "frequency": {"Hz": 1, "kHz": 1000, "MHz": 10**6, "1/s": 1, "1/min": Fraction(1, 60)},
    "angle": {"rad": 1, "deg": _DEGREE},
    "pressure": {
        "Pa": 1,
        "hPa": 100,
        "kPa": 1000,
        "MPa": 10**6,
        "mbar": 100,
        "bar": 100_000,
        "psi": _LB * _G / _INCH**2,
        "mmHg": _MM_HG,
        "inHg": Fraction("25.4") * _MM_HG,
        "mmH2O": _MM_H2O,
        "inH2O": Fraction("25.4") * _MM_H2O,
        "atm": 101_325,
    },
    "force": {"N": 1, "kN": 1000},
    "energy": {
        "J": 1,
        "kJ": 1000,
        "MJ": 10**6,
        "GJ": 10**9,
        "Wh": _HOUR,
        "kWh": 1000 * _HOUR,
        "MWh": 10**6 * _HOUR,
        "BTU": _BTU,
        "kcal": Fraction("4186.8"),
    },
    "power": {
        "W": 1,
        "mW": "1e-3",
        "kW": 1000,
        "MW": 10**6,
        "hp": 550 * _FOOT * _LB * _G,
        "BTU/h": _BTU / _HOUR,
    },
    "apparent power": {"VA": 1, "kVA": 1000, "MVA": 10**6},
    "reactive power": {"var": 1, "kvar": 1000, "Mvar": 10**6},
    "apparent energy": {"VAh": 1, "kVAh": 1000},
    "reactive energy": {"varh": 1, "kvarh": 1000},
    "voltage": {"V": 1, "mV": "1e-3", "uV": "1e-6", "kV": 1000},
    "current": {"A": 1, "mA": "1e-3", "uA": "1e-6", "kA": 1000},
    "charge": {"Ah": 1, "mAh": "1e-3"},
    "resistance": {"Ohm": 1, "kOhm": 1000, "MOhm": 10**6, "mOhm": "1e-3"},
    "conductivity": {"S/m": 1, "mS/cm": "0.1", "uS/cm": "1e-4"},
    "volume flow": {
        "m3/s": 1,
        "m3/h": Fraction(1, _HOUR),
        "l/s": "1e-3",
        "l/min": Fraction(1, 60_000),
        "l/h": Fraction(1, 1000 * _HOUR),
        "gal/min": _GALLON / 60,
    },
    "mass flow": {"kg/s": 1, "kg/h": Fraction(1, _HOUR), "t/h": Fraction(1000, _HOUR)},
    "mass concentration": {"kg/m3": 1, "g/l": 1, "g/m3": "1e-3", "mg/l": "1e-3", "mg/m3": "1e-6", "ug/m3": "1e-9"},
    "ratio": {"/": 1, "%": "1e-2", "/1000": "1e-3", "ppm": "1e-6", "ppb": "1e-9"},
    "data": {"B": 1, "kB": 1000, "KiB": 1024, "MB": 10**6, "MiB": 1024**2, "GB": 10**9, "GiB": 1024**3},
}
"""Dimension → symbol → how many of the dimension's first unit it is."""

_ALONE = ("%RH", "lx", "W/m2", "dB", "dBm", "pH", "mol", "cd", "lm", "T", "H", "lat", "lon", "NTU", "count", "%EL")
"""Symbols that nothing else converts to."""

_ALIASES = {
    "degC": "Cel", "C": "Cel", "°C": "Cel", "℃": "Cel", "celsius": "Cel", "deg_c": "Cel",
    "F": "degF", "°F": "degF", "℉": "degF", "fahrenheit": "degF", "deg_f": "degF", "[degF]": "degF",
    "°K": "K", "kelvin": "K",
    "%rh": "%RH", "% RH": "%RH", "% rh": "%RH", "rH": "%RH", "percent": "%", "pct": "%",
    "volt": "V", "volts": "V", "amp": "A", "amps": "A", "ampere": "A", "watt": "W", "watts": "W",
    "VAr": "var", "VAR": "var", "kVAr": "kvar", "kVAR": "kvar", "kVArh": "kvarh", "VArh": "varh", "KW": "kW",
    "KWh": "kWh", "KWH": "kWh", "kwh": "kWh", "hz": "Hz", "HZ": "Hz",
    "ohm": "Ohm", "Ω": "Ohm", "kohm": "kOhm", "kΩ": "kOhm", "MΩ": "MOhm", "mΩ": "mOhm",
    "lux": "lx", "Lux": "lx", "rpm": "1/min", "RPM": "1/min", "r/min": "1/min",
    "°": "deg", "degrees": "deg", "knots": "kn", "kt": "kn", "kmh": "km/h", "kph": "km/h", "mi/h": "mph",
    "L": "l", "litre": "l", "liter": "l", "mL": "ml", "L/min": "l/min", "lpm": "l/min", "L/h": "l/h", "L/s": "l/s",
    "gpm": "gal/min", "cbm": "m3", "cf": "ft3", "ft/m": "ft/min",
    "sec": "s", "second": "s", "seconds": "s", "minute": "min", "minutes": "min", "hour": "h", "hours": "h",
    "day": "d", "days": "d", "inch": "in", "feet": "ft", "meter": "m", "metre": "m",
    "mg/L": "mg/l", "g/L": "g/l", "millibar": "mbar", "PSI": "psi", "pascal": "Pa", "torr": "mmHg",
    "uS": "uS/cm", "ratio": "/", "1": "/",
}  # fmt: skip

_TYPOGRAPHY = str.maketrans({"²": "2", "³": "3", "µ": "u", "μ": "u", "⁻": "-", "·": "", "^": ""})


class _Unit(NamedTuple):
    """base = value x factor + offset."""

    dimension: str
    factor: Fraction
    offset: Fraction = Fraction(0)


_UNITS: dict[str, _Unit] = {
    symbol: _Unit(dimension, Fraction(factor))
    for dimension, symbols in _DIMENSIONS.items()
    for symbol, factor in symbols.items()
} | {symbol: _Unit(symbol, _ONE) for symbol in _ALONE}
_UNITS |= {
    "K": _Unit("temperature", _ONE),
    "Cel": _Unit("temperature", _ONE, Fraction("273.15")),
    "degF": _Unit("temperature", Fraction(5, 9), Fraction("459.67") * Fraction(5, 9)),
}


class Conversion(NamedTuple):
    """value in the new unit = value x factor + offset, exactly."""

    factor: Fraction
    offset: Fraction


def symbol(text: str) -> str:
    """The symbol that is meant by a spelling: `°C` → `Cel`. What is not known is given back as it came."""
    text = text.strip()
    if text in _UNITS:
        return text
    if text in _ALIASES:
        return _ALIASES[text]
    plain = text.translate(_TYPOGRAPHY)
    if plain in _UNITS:
        return plain
    return _ALIASES.get(plain, text)


def convert(source: str, target: str) -> Conversion:
    """How a value in `source` becomes one in `target`; both may be any known spelling.

    Raises:
        ValueError: a unit is not known (names the nearest that is), or the two measure different things (names what
            `source` can become).
    """
    a, b = _known(source), _known(target)
    if a.dimension != b.dimension:
        kin = sorted(name for name, unit in _UNITS.items() if unit.dimension == a.dimension and name != symbol(source))
        instead = f"it can become {', '.join(kin)}" if kin else "nothing converts it"
        raise ValueError(f"`{source}` cannot become `{target}`; {instead}")
    return Conversion(a.factor / b.factor, (a.offset - b.offset) / b.factor)


def _known(text: str) -> _Unit:
    unit = _UNITS.get(symbol(text))
    if unit is None:
        nearest = difflib.get_close_matches(text, [*_UNITS, *_ALIASES], n=1, cutoff=0.0)[0]
        raise ValueError(f"unknown unit `{text}`; the nearest known one is `{nearest}`")
    return unit
