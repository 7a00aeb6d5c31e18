"""How good the marks are: of `guess` against devices whose map is known. `python -m modbus.grade [DEVICES]`.

Two kinds of device: those of `shuffled`, whose maps are made up, and the profiles that ship with the gateway, whose
maps are their vendors'. The latter know nothing of how guessing works.
"""

from __future__ import annotations

import math
import random
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import gateway.profiles
from gateway.codec.words import Family, Word, parse, parse_order
from gateway.connectors.modbus.guess import Guess, Mark, guess

from .shuffled import Shuffled, Truth


class Grade(NamedTuple):
    """Counts over devices."""

    points: int = 0
    marks: int = 0
    right: int = 0
    """Marks at the address of a point, as wide, in its byte order, with the value that it has."""
    strict: int = 0
    """Of these, with its very type: a number that was never negative may be signed or not."""
    sure: int = 0
    sure_right: int = 0
    orders: int = 0
    orders_right: int = 0

    def __add__(self, other: Grade) -> Grade:  # type: ignore[override]
        return Grade(*(one + two for one, two in zip(self, other, strict=True)))

    def __str__(self) -> str:
        return (
            f"{self.points} points, {self.marks} marks: precision {self.right / max(1, self.marks):.1%}, "
            f"recall {self.right / max(1, self.points):.1%}, very type {self.strict / max(1, self.right):.1%} of the "
            f"right; sure {self.sure}, of these right {self.sure_right / max(1, self.sure):.1%}; "
            f"byte order {self.orders_right} of {self.orders} devices"
        )


def grade(truths: Iterable[Truth], found: Guess) -> Grade:
    by_address = {truth.address: truth for truth in truths}
    matters = any(truth.word.size > 2 for truth in by_address.values())
    order = next(iter(by_address.values())).order
    right = [mark for mark in found.marks if is_right(mark, by_address.get(mark.address))]
    return Grade(
        len(by_address),
        len(found.marks),
        len(right),
        sum(mark.layout.value == by_address[mark.address].type for mark in right),
        sum(mark.sure for mark in found.marks),
        sum(mark.sure for mark in right),
        matters,
        matters and found.order is order,
    )


def is_right(mark: Mark, truth: Truth | None) -> bool:
    if truth is None or mark.layout.value == "text":
        return False
    mine, told = mark.word(), truth.word
    return (
        mine.size == told.size
        and mine.integral == told.integral
        and mine.order.places(mine.size) == told.order.places(told.size)
    )


def devices(seeds: Iterable[int], looks: int) -> Grade:
    total = Grade()
    for seed in seeds:
        device = Shuffled(seed)
        total += grade(device.points, guess([device.registers(2.0 * look) for look in range(looks)]))
    return total


def vendors(seeds: Iterable[int], looks: int, unused: str) -> Grade:
    """The shipped profiles as devices; `unused`: what lies between the points is "refused" or "zero"."""
    total = Grade()
    for path in sorted(Path(gateway.profiles.__file__).parent.glob("*.toml")):
        device = tomllib.loads(path.read_text())["device"]
        for seed in seeds:
            for truths, times in _tables(device, random.Random(f"{path.name}{seed}"), looks):
                if unused == "zero":
                    span = range(min(times[0]), max(times[0]) + 1)
                    times = [{**dict.fromkeys(span, 0), **held} for held in times]
                total += grade(truths, guess(times))
    return total


def _tables(
    device: Mapping[str, Any], pick: random.Random, looks: int
) -> Iterator[tuple[list[Truth], list[dict[int, int]]]]:
    order = parse_order(device.get("byte_order", "") or device.get("swap", ""))
    points: dict[str, list[tuple[Truth, list[float], Word]]] = {}
    for point in device["points"]:
        kind = point.get("type", "uint16")
        if not isinstance(point.get("address"), int) or kind in ("string", "bool", "bit") or "model" in point:
            continue
        own = parse_order(point.get("byte_order", "") or point.get("swap", "") or order.value)
        word = parse(kind, own.value)
        mean = _realistic(point.get("unit", ""), point["name"], pick) / point.get("scale", 1)
        move = 0.0 if not point.get("unit") else 0.001 if "h" in point["unit"] else 0.01
        values = [
            mean * (1 + move * (look if "h" in point.get("unit", "") else pick.gauss(0, 1))) for look in range(looks)
        ]
        truth = Truth(point["name"], point["address"], kind, own, point.get("scale", 1))
        points.setdefault(point.get("register", "holding"), []).append((truth, values, word))
    for table in points.values():
        times: list[dict[int, int]] = []
        for look in range(looks):
            held: dict[int, int] = {}
            for truth, values, word in table:
                data = word.encode(_fitting(values[look], word))
                registers = (int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data), 2))
                held.update(enumerate(registers, truth.address))
            times.append(held)
        yield [truth for truth, _, _ in table], times


def _realistic(unit: str, name: str, pick: random.Random) -> float:
    if unit == "V":
        if "pv" in name or "dc" in name:
            return pick.uniform(200, 700)
        return pick.gauss(52, 2) if "batt" in name else pick.gauss(399 if "l1_l2" in name or "ll" in name else 230, 3)
    if unit in ("W", "VA", "var"):
        return math.exp(pick.gauss(6, 1.5)) * (-1 if unit != "VA" and pick.random() < 0.15 else 1)
    if unit in ("kWh", "kvarh", "Ah"):
        return math.exp(pick.gauss(7, 1.5))
    sizes = {
        "A": (math.exp(pick.gauss(1.2, 1.2)), 0.0),
        "Wh": (1000 * math.exp(pick.gauss(7, 1.5)), 0.0),
        "Hz": (50.0, 0.02),
        "Cel": (25.0, 9.0),
        "/": (0.9, 0.06),
        "%": (50.0, 25.0),
        "%RH": (50.0, 15.0),
    }
    mean, spread = sizes.get(unit, (float(pick.randint(0, 5)), 0.0))
    return pick.gauss(mean, spread)


def _fitting(value: float, word: Word) -> float:
    if word.family is Family.FLOAT:
        return value
    low = -(1 << 8 * word.size - 1) if word.family is Family.INT else 0
    return min(max(round(value), low), low + (1 << 8 * word.size) - 1)


if __name__ == "__main__":
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    for looks in (1, 3, 10):
        print(f"{number} shuffled devices, looked at {looks} times: {devices(range(number), looks)}")
    for unused in ("refused", "zero"):
        print(f"vendors' maps, the unused {unused}, looked at 3 times: {vendors(range(3), 3, unused)}")
