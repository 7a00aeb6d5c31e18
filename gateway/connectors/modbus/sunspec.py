"""Pure: the walk through a SunSpec device: a mark, then models one behind the other, each with its id and length.

SunSpec Device Information Model Specification, part 1: the mark "SunS" stands at 40000, 50000 or 0; a header of two
registers before each model says its id and how many registers follow; id 0xFFFF ends the list. Model 1, the first, says
who made the device.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import NamedTuple

from gateway.connectors.modbus.sweep import Bite

BASES = (40000, 50000, 0)
"""Where the mark may stand, the likeliest first."""
_MARK = [0x5375, 0x6E53]
_END = 0xFFFF
_COMMON = 1
_MODELS_MAX = 100
_TEXTS = ((0, 16), (16, 16), (40, 8), (48, 16))
"""Registers of model 1: manufacturer, model, version, serial number."""

MODELS = {
    1: "common",
    101: "inverter, one phase",
    102: "inverter, split phase",
    103: "inverter, three phases",
    111: "inverter, one phase, floats",
    112: "inverter, split phase, floats",
    113: "inverter, three phases, floats",
    120: "nameplate",
    121: "basic settings",
    122: "measurements and status",
    123: "immediate controls",
    124: "storage",
    160: "MPPT",
    201: "meter, one phase",
    202: "meter, split phase",
    203: "meter, three phases, wye",
    204: "meter, three phases, delta",
    211: "meter, one phase, floats",
    212: "meter, split phase, floats",
    213: "meter, three phases, wye, floats",
    214: "meter, three phases, delta, floats",
    302: "irradiance",
    307: "weather station",
    401: "string combiner",
    701: "DER measurements",
    802: "battery",
}

FLOATS = frozenset((111, 112, 113, 211, 212, 213, 214))
"""Models that have numbers as floats; their integer twins are 10 less."""


class Model(NamedTuple):
    """One model: the address of its first register behind the header."""

    id: int
    address: int
    length: int

    @property
    def name(self) -> str:
        return MODELS.get(self.id, "")


class Found(NamedTuple):
    """What a walk ends with."""

    base: int
    models: tuple[Model, ...]
    texts: tuple[str, ...]
    """Manufacturer, model, version and serial number; none where model 1 could not be read."""


def walk() -> Generator[Bite, list[int] | None, Found | None]:
    """Yields what to read of the holding registers and takes what is there, None for a refusal; returns what it found,
    None where there is no mark."""
    for base in BASES:
        if (yield Bite(base, 2)) != _MARK:
            continue
        models: list[Model] = []
        texts: tuple[str, ...] = ()
        at = base + 2
        while len(models) < _MODELS_MAX and at + 2 <= 65536:
            header = yield Bite(at, 2)
            if header is None or header[0] == _END:
                break
            model = Model(header[0], at + 2, header[1])
            models.append(model)
            if model.id == _COMMON and not texts and model.length >= 64:
                texts = _read_texts((yield Bite(model.address, 64)) or [])
            at = model.address + model.length
        return Found(base, tuple(models), texts)
    return None


def _read_texts(registers: list[int]) -> tuple[str, ...]:
    if len(registers) < 64:
        return ()
    data = b"".join(register.to_bytes(2, "big") for register in registers)
    return tuple(_text(data[2 * at : 2 * (at + size)]) for at, size in _TEXTS)


def _text(data: bytes) -> str:
    return data.split(b"\0", 1)[0].decode("utf-8", "replace").strip()
