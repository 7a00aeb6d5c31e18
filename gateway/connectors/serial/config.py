"""Pure: what can be said of a serial line: how it is cut into frames, and which device a frame belongs to.

The entry point names `SERIAL` at the end.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Literal

from gateway.codec.path import Path
from gateway.connectors.base import Connect, Kind
from gateway.connectors.port import SerialSettings
from gateway.points import Device, Point, name_mistakes
from gateway.settings import Duration, Key, Mistake, Table

MAX_AUTO_POINTS = 50


class Frame(Table, frozen=True, kw_only=True):
    """What one message is. Everything longer is dropped up to the next delimiter, and counted."""

    delimiter: Annotated[str, Key('ends a frame; "\\n" takes "\\r\\n" too', pattern=r"(?s).{1,16}")] = "\n"
    max_length: Annotated[int, Key("bytes of the longest frame", min=1, max=65_536)] = 4096
    idle_flush: Annotated[
        Duration | None, Key("silence of this length ends a frame too", min=0.001, max=60, example='"50ms"')
    ] = None
    start: Annotated[str, Key("regular expression: what stands before it is noise; a frame without it is rejected")] = (
        ""
    )

    def mistakes(self) -> Iterable[Mistake]:
        yield from _expression("start", self.start)


class SerialBus(SerialSettings, frozen=True, kw_only=True):
    """A serial line on which devices talk of their own accord."""

    frame: Annotated[Frame, Key("how the line is cut into frames")] = Frame()
    encoding: Annotated[str, Key("of the text on the line")] = "utf-8"
    write_timeout: Annotated[
        Duration, Key("a write is `unknown` when its reply has not come after", min=0.01, alias=("reply_timeout",))
    ] = 2.0

    def mistakes(self) -> Iterable[Mistake]:
        try:
            codecs.lookup(self.encoding)
            self.frame.delimiter.encode(self.encoding)
        except (LookupError, UnicodeError):
            yield Mistake(("encoding",), f"`{self.encoding}` is no encoding that can write the delimiter")


class SerialPoint(Point, frozen=True, kw_only=True):
    """One value of a frame."""

    group: Annotated[str, Key("regex: the named group; default: the point's name")] = ""
    path: Annotated[str, Key("json: where it sits, as AM2301.Temperature or phases[1].v; default: name")] = ""
    sentence: Annotated[str, Key("nmea: kind of sentence, with or without talker: MTW, GPGGA", example='"XDR"')] = ""
    field: Annotated[int, Key("nmea: field of the sentence, counted from 1 as the standard does", min=0, max=80)] = 0
    command: Annotated[
        str, Key("write: the text that is sent, {value} filled in, delimiter included", example='"SET T {value}\\r\\n"')
    ] = ""
    reply: Annotated[str, Key("write: regular expression of the frame that confirms it", example='"^OK"')] = ""

    def mistakes(self) -> Iterable[Mistake]:
        yield from super().mistakes()
        yield from _expression("reply", self.reply)
        if self.path:
            try:
                Path.of(self.path)
            except ValueError as error:
                yield Mistake(("path",), str(error))
        if self.write is not None and "{value}" not in self.command:
            yield Mistake(("write",), "a point that can be written needs a `command` with {value}")
        if self.write is not None and self.write.verify:
            yield Mistake(("write", "verify"), "a line cannot be read back; `reply` says what confirms a write")


class SerialDevice(Device, frozen=True, kw_only=True):
    """What talks on the line. A frame belongs to the first device that it fits."""

    format: Annotated[Literal["regex", "json", "nmea"], Key("how frames are read")]
    match: Annotated[str, Key("regular expression: only frames in which it is found are this device's")] = ""
    pattern: Annotated[
        str, Key("regex: named groups are the values", example="'T=(?P<temperature>[-0-9.]+) H=(?P<humidity>[0-9.]+)'")
    ] = ""
    checksum: Annotated[bool, Key("nmea: sentences without a checksum are rejected")] = True
    points: Annotated[
        Literal["auto"] | tuple[SerialPoint, ...],
        Key(f"auto: every named group, every number of the JSON (at most {MAX_AUTO_POINTS}), the usual NMEA sentences"),
    ] = "auto"

    @property
    def named(self) -> tuple[SerialPoint, ...]:
        """The points that the configuration names; none with `auto`."""
        return () if self.points == "auto" else self.points

    def mistakes(self) -> Iterator[Mistake]:
        yield from _expression("match", self.match)
        broken = list(_expression("pattern", self.pattern))
        yield from broken
        if (self.format == "regex") != bool(self.pattern):
            yield Mistake(("pattern",), "`pattern` and format regex belong together")
        elif self.pattern and not broken:
            yield from self._groups(set(re.compile(self.pattern).groupindex))
        yield from name_mistakes(self.named)
        for i, point in enumerate(self.named):
            if self.format == "nmea" and bool(point.sentence) != bool(point.field):
                yield Mistake(("points", i), "`sentence` and `field` belong together")

    def _groups(self, groups: set[str]) -> Iterator[Mistake]:
        if not groups:
            yield Mistake(("pattern",), "no named group, as (?P<temperature>[-0-9.]+)")
        for i, point in enumerate(self.named):
            if (point.group or point.name) not in groups and not point.command:
                yield Mistake(("points", i), f"`pattern` has no group {point.group or point.name!r}")


def _expression(key: str, text: str) -> Iterator[Mistake]:
    try:
        re.compile(text)
    except re.error as error:
        yield Mistake((key,), f"not a regular expression: {error}")


def _load() -> Connect[SerialBus, SerialDevice]:
    from gateway.connectors.serial.connector import SerialConnector

    return SerialConnector


def _check(bus: SerialBus, devices: Sequence[SerialDevice]) -> list[str]:
    found = []
    for number, device in enumerate(devices[:-1]):
        if not device.match and device.format != "regex":
            others = ", ".join(each.name for each in devices[number + 1 :])
            found.append(f"{device.name} takes every frame, nothing is left for {others}; give it a `match`")
    for device in devices:
        for point in device.named:
            if point.write is not None and not point.reply:
                found.append(f"{device.name}.{point.name}: without `reply` the outcome of every write is `unknown`")
    return found


def _plan(bus: SerialBus, devices: Sequence[SerialDevice]) -> list[str]:
    line = f"{bus.baud_rate} {bus.data_bits}{bus.parity}{bus.stop_bits}"
    lines = [f"listen on {bus.port} at {line}, frames end with {bus.frame.delimiter!r}"]
    for device in devices:
        points = "auto" if device.points == "auto" else ", ".join(point.name for point in device.points)
        lines.append(f"{device.name}: {device.format}, points {points}")
    return lines


SERIAL: Kind[SerialBus, SerialDevice] = Kind("serial", SerialBus, SerialDevice, _load, _check, _plan)
