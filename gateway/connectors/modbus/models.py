"""Pure: points that say in which SunSpec model they are, and not where that model begins: every device has its own
order of models, and the walk through it is the only way to know.

Until the walk has ended a `Walk` stands in the schedule for the reads of all these points; then they are points like
any other, with addresses. What a device does not have is no point of it: it is said once and never asked for.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from gateway.connectors.modbus.config import ModbusDevice, ModbusPoint, spot
from gateway.connectors.modbus.planner import Read, Table
from gateway.connectors.modbus.sunspec import Found, Model, walk
from gateway.connectors.modbus.values import Block

_HEADER = 2
"""Registers before the first one of a model that `Model.address` counts from: its id and its length."""


class Placed(NamedTuple):
    """What a walk makes of the points of a device."""

    points: tuple[ModbusPoint, ...]
    """With addresses as they travel."""
    missing: tuple[str, ...]
    """Names of the points whose model is not there, or is too short."""


class Walk(Block):
    """Finds the models of one device, one read after the other: ask `read`, hand what came to `step`."""

    def __init__(self, device: ModbusDevice) -> None:
        self.device = device
        self._items = tuple(spot("", device, point).item for point in device.points)
        self._begin()

    def _begin(self) -> None:
        self._steps = walk()
        self._ask(*next(self._steps))

    def _ask(self, address: int, quantity: int) -> None:
        super().__init__(Read(Table.HOLDING, address, quantity, self._items))

    def step(self, data: bytes | None) -> tuple[bool, Found | None]:
        """Takes the answer, None for a refusal. True when the walk is over, and what it found; then it begins anew."""
        registers = None if data is None else list(struct.unpack(f">{len(data) // 2}H", data))
        try:
            self._ask(*self._steps.send(registers))
        except StopIteration as end:
            found: Found | None = end.value
            self._begin()
            return True, found
        return False, None


def at_once(device: ModbusDevice) -> ModbusDevice:
    """The device with the points whose places are known."""
    return msgspec.structs.replace(device, points=tuple(point for point in device.points if not point.model))


def by_model(device: ModbusDevice) -> ModbusDevice:
    """The device with the points that have to be found."""
    return msgspec.structs.replace(device, points=tuple(point for point in device.points if point.model))


def placed(device: ModbusDevice, models: Sequence[Model]) -> Placed:
    """Gives every point its place in the first of its models that the device has."""
    points: list[ModbusPoint] = []
    missing: list[str] = []
    for point in device.points:
        end = spot("", device, point).item.end
        model = next((each for each in models if each.id in point.model and end <= _HEADER + each.length), None)
        if model is None:
            missing.append(point.name)
            continue
        start = model.address - _HEADER
        scale = point.scale_register
        points.append(
            msgspec.structs.replace(
                point,
                model=(),
                address=start + int(point.address),
                scale_register=None if scale is None else start + int(scale),
            )
        )
    return Placed(tuple(points), tuple(missing))
