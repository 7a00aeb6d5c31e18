"""Pure: what every device and point can say in the configuration, whatever bus it sits on.

A connector's own structs extend these: `class ModbusPoint(Point): address: …`.

What a person says of a point and what the device holds are two things: `raw_of` and `value_of` lead from one to the
other, for every connector alike, so that a write means what a reading says.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from typing import Annotated

from gateway.codec import units
from gateway.codec.linear import Linear
from gateway.model import Lane, Value
from gateway.settings import ID_PATTERN, Duration, Key, Mistake, Table


class WriteLimits(Table, frozen=True, kw_only=True):
    """Makes a point writable from the cloud side. Without this table every write is rejected."""

    min: Annotated[float | None, Key("smallest value that may be written", example="5")] = None
    max: Annotated[float | None, Key("largest value that may be written", example="35")] = None
    step: Annotated[float | None, Key("values must be min + a multiple of this", example="0.5", min=0)] = None
    values: Annotated[
        tuple[str | int | float | bool, ...], Key("the only values that may be written", example='["off", "on"]')
    ] = ()
    verify: Annotated[bool, Key("read the point back after the write and compare")] = False

    def mistakes(self) -> Iterable[Mistake]:
        if self.min is not None and self.max is not None and self.min > self.max:
            yield Mistake(("min",), f"min {self.min:g} is larger than max {self.max:g}")


class Point(Table, frozen=True, kw_only=True):
    """One quantity of a device: value = raw × scale + offset, then unit, limits and deadband."""

    name: Annotated[str, Key("id of the point; readings carry it", pattern=ID_PATTERN)]
    unit: Annotated[
        str, Key("unit of the value, a SenML or UCUM symbol: Cel, %RH, V, kWh, /", alias=("unit_of_measurement",))
    ] = ""
    convert: Annotated[str, Key("unit to convert the value to, from `unit`", alias=("as",))] = ""
    scale: Annotated[float, Key("raw value × scale + offset")] = 1.0
    offset: Annotated[float, Key("added after scaling")] = 0.0
    digits: Annotated[
        int | None, Key("decimal places to round to", example="2", min=0, max=15, alias=("round", "precision"))
    ] = None
    min: Annotated[
        float | None, Key("below this the value is kept and marked uncertain:out_of_range", example="-40")
    ] = None
    max: Annotated[
        float | None, Key("above this the value is kept and marked uncertain:out_of_range", example="85")
    ] = None
    invalid: Annotated[
        tuple[int | float | str, ...],
        Key(
            "raw values by which the device says that it has none; marked bad:sensor_fault",
            example="[-999, 0x8000]",
            alias=("nan_value",),
        ),
    ] = ()
    monotonic: Annotated[
        bool, Key("a counter: a value below the one before is kept and marked uncertain:counter_jump")
    ] = False
    max_rate: Annotated[
        float | None,
        Key("of a counter: the most that it can grow in an hour (of kWh: kW); more is marked too", example="25", min=0),
    ] = None
    enum: Annotated[dict[str, str], Key("raw value → text, for states", example='{ 0 = "off", 1 = "on" }')] = {}  # noqa: RUF012
    deadband: Annotated[float | None, Key("send only changes larger than this", example="0.2", min=0)] = None
    min_interval: Annotated[Duration | None, Key("send at most this often", example='"1s"')] = None
    max_interval: Annotated[
        Duration | None, Key("send at least this often, though within the deadband", example='"10m"')
    ] = None
    expire_after: Annotated[
        Duration | None, Key("without news for this long the point is bad:stale", example='"1h"')
    ] = None
    lane: Annotated[Lane, Key("`alarm` overtakes readings and is committed to disk at once")] = Lane.LIVE
    write: Annotated[WriteLimits | None, Key("allows commands to write this point, within limits")] = None

    def mistakes(self) -> Iterable[Mistake]:
        if self.scale == 0:
            yield Mistake(("scale",), "scale 0 would make every value the same")
        if self.min is not None and self.max is not None and self.min > self.max:
            yield Mistake(("min",), f"min {self.min:g} is larger than max {self.max:g}")
        if self.min_interval is not None and self.max_interval is not None and self.min_interval > self.max_interval:
            yield Mistake(("min_interval",), "min_interval is longer than max_interval")
        if self.max_rate is not None and not self.monotonic:
            yield Mistake(("max_rate",), "max_rate is for counters: say monotonic = true as well")
        if self.convert:
            try:
                # where the source itself names the unit, only the target can be judged
                units.convert(self.unit or self.convert, self.convert)
            except ValueError as error:
                yield Mistake(("convert",), str(error))

    def raw_sentinels(self) -> frozenset[Value]:
        """What of `invalid` can be told from what the connector says; it may have to look for some by itself."""
        return frozenset(self.invalid)

    def states(self) -> dict[Value, str]:
        """`enum` by raw value. TOML keys are text, raw values are not: `1` stands for 1, 1.0, true and "1"."""
        states: dict[Value, str] = {}
        for key, text in self.enum.items():
            states[key] = text
            raw = _raw_state(key)
            if isinstance(raw, bool):
                states.setdefault(raw, text)  # a number that is also said wins
            else:
                states[raw] = text
        return states

    def raw_of(self, value: Value, source_unit: str = "") -> Value:
        """What the device holds when a person says `value`: a state by its name, a number with conversion, offset and
        scale undone. `source_unit` is the device's own, where the configuration names none.

        Raises:
            ValueError: it means nothing for this point.
        """
        if isinstance(value, str):
            if not self.enum:
                return value
            key = next((key for key, text in self.enum.items() if text == value), None)
            if key is None:
                raise ValueError(f"{value!r} is not one of {', '.join(self.enum.values())}")
            return _raw_state(key)
        if isinstance(value, bool):
            return value
        try:
            if not math.isfinite(value):
                raise ValueError(f"{value!r} is not a number that can be written")
            if self.enum:
                return value
            linear = Linear.of(self.scale, self.offset, self.unit or source_unit, self.convert)
            if linear == Linear():
                return value
            raw = (Fraction(repr(value)) * linear.divide - linear.add) / linear.multiply
            # a scale of 1/3 has no exact decimal: 15 digits hide what was cut off
            short = float(f"{float(raw):.15g}")
        except OverflowError as error:
            raise ValueError(f"{value!r} is beyond what this point can hold") from error
        if raw.denominator == 1:
            return int(raw)
        return int(short) if short.is_integer() else short

    def value_of(self, raw: Value | None, source_unit: str = "") -> Value | None:
        """What a person calls this raw value; the normaliser says the same, and judges it too.

        Raises:
            ValueError: `convert` does not fit `source_unit`.
        """
        if self.enum:
            return raw if raw is None else self.states().get(raw, raw)
        if raw is None or isinstance(raw, bool | str):
            return raw
        value = Linear.of(self.scale, self.offset, self.unit or source_unit, self.convert)(raw)
        return round(value, self.digits) if isinstance(value, float) and self.digits is not None else value


class Device(Table, frozen=True, kw_only=True):
    """What sits on a bus."""

    name: Annotated[str, Key("id of the device; readings carry it", pattern=r"[A-Za-z0-9_.:{}-]+")]
    bus: Annotated[str, Key("name of the [[bus]] it sits on")]
    enabled: Annotated[bool, Key("false: checked, but not used")] = True
    profile: Annotated[
        str,
        Key(
            "a ready-made profile, or a [[template]] of this file, that says all that is not said here",
            alias=("template",),
            example='"eastron-sdm630"',
        ),
    ] = ""
    only: Annotated[
        tuple[str, ...], Key("of the profile's points only these; * is any text", example='["power*", "frequency"]')
    ] = ()
    without: Annotated[
        tuple[str, ...], Key("of the profile's points all but these; * is any text", example='["*_l3"]')
    ] = ()
    tags: Annotated[
        dict[str, str], Key("free words that go to the sink with the device", example='{ site = "hall-2" }')
    ] = {}  # noqa: RUF012


class Bus(Table, frozen=True, kw_only=True):
    """A medium: a serial port, a TCP socket, a Bluetooth adapter, a broker. One task owns it."""

    name: Annotated[str, Key("what devices refer to", pattern=ID_PATTERN)]
    kind: Annotated[str, Key("which connector speaks on it")]
    enabled: Annotated[bool, Key("false: checked, but not used")] = True

    def medium(self) -> tuple[str, str] | None:
        """What it has for itself, and the key that says so: no second bus can be there. None where several can."""
        return None


def name_mistakes(points: Sequence[Point]) -> Iterator[Mistake]:
    """Every point of a device after the first of its name."""
    seen: set[str] = set()
    for number, point in enumerate(points):
        if point.name in seen:
            yield Mistake(("points", number, "name"), f"a second point `{point.name}`")
        seen.add(point.name)


_WORDS = {"true": True, "false": False}


def _raw_state(key: str) -> Value:
    """A key of `enum` as the raw value that is meant: a switch, a number (also 0x10), or a word."""
    if key in _WORDS:
        return _WORDS[key]
    for read in (lambda text: int(text, 0), float):
        try:
            return read(key)
        except ValueError:
            continue
    return key
