"""Pure: from a frame to the values of a device.

A frame belongs to the first device that it fits: by its `match`, and for `regex` by its `pattern` too. What is there
becomes a value; what a partial frame does not hold is left out; what the device leaves empty is `None`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from gateway.codec.document import decode_json
from gateway.codec.path import ABSENT, Path, Step, leaves, text_of
from gateway.connectors.serial import nmea
from gateway.connectors.serial.config import MAX_AUTO_POINTS, SerialDevice
from gateway.connectors.serial.scalars import scalar
from gateway.errors import DecodeError
from gateway.model import Json, Value

_NOT_IN_ID = re.compile(r"[^A-Za-z0-9_.:-]+")


class Values(NamedTuple):
    """What one frame says of one device."""

    points: tuple[str, ...]
    values: tuple[Value | None, ...]
    units: tuple[str, ...] | None = None


class Reader:
    """Reads the frames of one device."""

    def __init__(self, device: SerialDevice) -> None:
        self.device = device
        self._match = re.compile(device.match) if device.match else None
        self._pattern = re.compile(device.pattern)
        self._auto = device.points == "auto"
        self._points = device.named
        self._ready_names = {point.name for point in self._points if not point.sentence}
        self._paths = [(point.name, Path.of(point.path or _quoted(point.name))) for point in self._points]
        self._names: dict[tuple[Step, ...], str] = {}
        self._read = {"regex": self._regex, "json": self._json, "nmea": self._nmea}[device.format]

    @property
    def known(self) -> tuple[str, ...]:
        """Points that are known before anything was heard. A point that is only written is not read."""
        groups = self._pattern.groupindex
        if self._auto:
            return tuple(groups)
        return tuple(p.name for p in self._points if self.device.format != "regex" or (p.group or p.name) in groups)

    def fits(self, text: str) -> bool:
        if self._match is not None and not self._match.search(text):
            return False
        return self.device.format != "regex" or self._match is not None or self._pattern.search(text) is not None

    def read(self, text: str) -> Values | None:
        """None: the frame is sound, but holds nothing that was asked for. Raises DecodeError."""
        found = self._read(text)
        if not found:
            return None
        points, values, units = zip(*found, strict=True)
        return Values(points, values, units if any(units) else None)

    def _regex(self, text: str) -> list[tuple[str, Value | None, str]]:
        match = self._pattern.search(text)
        if match is None:
            raise DecodeError("the pattern is not found")
        groups = match.groupdict()
        names = [(p.name, p.group or p.name) for p in self._points] if not self._auto else [(g, g) for g in groups]
        # a group that took no part is not in this frame; one that took nothing is a value that the device has not
        taken = [(name, groups[group]) for name, group in names if groups.get(group) is not None]
        return [(name, scalar(piece) if piece.strip() else None, "") for name, piece in taken]

    def _json(self, text: str) -> list[tuple[str, Value | None, str]]:
        document = decode_json(text.encode("utf-8", "replace"))
        if self._auto:
            return self._leaves(document)
        taken = [(name, path.find(document)) for name, path in self._paths]
        if any(isinstance(value, dict | list) for _, value in taken):
            raise DecodeError("a path leads to an object or a list, not to a value")
        return [(name, value, "") for name, value in taken if value is not ABSENT]

    def _leaves(self, document: Json) -> list[tuple[str, Value | None, str]]:
        """The numbers and switches of a document; the first that were ever seen keep their place among the 50."""
        found: dict[str, Value] = {}
        for steps, value in leaves(document):
            if not isinstance(value, int | float):
                continue
            name = self._names.get(steps)
            if name is None and len(self._names) < MAX_AUTO_POINTS:
                name = self._names[steps] = _id(steps)
            if name is not None:
                found.setdefault(name, value)
        return [(name, value, "") for name, value in found.items()]

    def _nmea(self, text: str) -> list[tuple[str, Value | None, str]]:
        sentence = nmea.parse(text, self.device.checksum)
        ready = nmea.ready_made(sentence) if nmea.known(sentence.kind) else []
        if self._auto:
            return ready
        found = [each for each in ready if each[0] in self._ready_names]
        for point in self._points:
            if point.sentence in (sentence.kind, sentence.fields[0]):
                found.append((point.name, nmea.measured(sentence, point.field), ""))
        return found


def owner(readers: Sequence[Reader], text: str) -> Reader | None:
    """The first device that the frame fits."""
    return next((reader for reader in readers if reader.fits(text)), None)


def _quoted(name: str) -> str:
    """A point's name as the path of one key, though it holds dots."""
    return text_of((name,)) if "." in name else name


def _id(steps: Sequence[Step]) -> str:
    """`phases[1].v` becomes `phases.1.v`."""
    return _NOT_IN_ID.sub("_", ".".join(str(step) for step in steps)).strip("_.:-")[:128] or "value"
