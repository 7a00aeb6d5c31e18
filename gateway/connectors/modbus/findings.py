"""Pure: what was found on a bus, as TOML to paste into the configuration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from gateway.codec.words import Order
from gateway.connectors.modbus.config import AnyBus, RtuBus
from gateway.connectors.modbus.guess import Guess, explain
from gateway.connectors.modbus.planner import Table
from gateway.connectors.modbus.plausibility import Layout
from gateway.connectors.modbus.sunspec import FLOATS
from gateway.connectors.modbus.sunspec import Found as SunSpec
from gateway.settings import toml

INPUT = "input register 0"
"""What an answer begins with that holding registers had none of."""


class Finding(NamedTuple):
    """A unit that answered."""

    bus: AnyBus
    unit: int
    answer: str
    identity: str = ""
    sunspec: SunSpec | None = None


def bus_toml(bus: AnyBus, name: str) -> list[str]:
    """The table of a bus, as far as it was found out."""
    keys: tuple[str, ...] = ("host", "tcp_port")
    if isinstance(bus, RtuBus):
        keys = ("port", "baud_rate", "parity", "stop_bits", *(["data_bits"] if bus.data_bits != 8 else []))
    lines = ["[[bus]]", f"name = {toml(name)}", f"kind = {toml(bus.kind)}"]
    return [*lines, *(f"{key} = {toml(getattr(bus, key))}" for key in keys)]


def paste(findings: Sequence[Finding]) -> str:
    """The findings as tables of the configuration; what the registers mean `gateway read` helps to find out."""
    lines: list[str] = []
    buses = list(dict.fromkeys(finding.bus for finding in findings))
    for number, bus in enumerate(buses, start=1):
        name = bus.name if number == 1 else f"{bus.name}-{number}"
        lines += bus_toml(bus, name)
        for finding in findings:
            if finding.bus == bus:
                lines += ["", *_device(finding, name, number)]
        lines.append("")
    return "\n".join(lines)


def _device(finding: Finding, bus: str, number: int) -> list[str]:
    name = f"unit-{finding.unit}" if number == 1 else f"unit-{finding.unit}-{number}"
    said = [f"# {_plain(finding.identity)}"] if finding.identity else []
    if finding.sunspec is not None:
        said.append(f"# SunSpec at {finding.sunspec.base}:")
        said += [f"#   model {each.id} at {each.address} {each.name}".rstrip() for each in finding.sunspec.models]
    register = "input" if finding.answer.startswith(INPUT) else "holding"
    what = f'points = [ {{ name = "register-0", register = "{register}", address = 0 }} ]'
    if finding.sunspec is not None and finding.sunspec.models:
        floats = not FLOATS.isdisjoint(each.id for each in finding.sunspec.models)
        what = f'profile = "{"sunspec-float" if floats else "sunspec"}"'
    return [
        *said,
        f"# {finding.answer}",
        "[[device]]",
        f"name = {toml(name)}",
        f"bus = {toml(bus)}",
        f"unit_id = {finding.unit}",
        what,
    ]


def _plain(text: str) -> str:
    """What a device says may be in a comment."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


class Chosen(NamedTuple):
    """A point as it is to be read."""

    address: int
    type: str
    said: str = ""
    length: int = 0


def chosen(found: Guess) -> tuple[list[Chosen], Order]:
    """What is marked, and the byte order of the device."""
    points = []
    for mark in found.marks:
        value = mark.values[-1] if mark.values else None
        said = "; ".join(filter(None, (_plain(str(value)), explain(mark), "" if mark.sure else "perhaps")))
        text = mark.layout is Layout.TEXT
        points.append(Chosen(mark.address, "string" if text else mark.layout.value, said, 2 * mark.registers * text))
    return points, found.order if found.order_matters else Order.BIG


def paste_points(unit: int, bus: str, table: Table, points: Sequence[Chosen], order: Order) -> str:
    """One device with these points; names are for a person to better."""
    lines = ["[[device]]", f"name = {toml(f'unit-{unit}')}", f"bus = {toml(bus)}", f"unit_id = {unit}"]
    if order is not Order.BIG:
        lines.append(f"byte_order = {toml(order.value)}")
    lines.append("points = [")
    for point in points:
        name = f"{table.value}-{point.address}"
        words = f"name = {toml(name)}, register = {toml(table.value)}, address = {point.address}"
        words += "" if table.bits else f", type = {toml(point.type)}"
        words += f", length = {point.length}" if point.length else ""
        lines.append(f"  {{ {words} }},{f'  # {point.said}' if point.said else ''}")
    return "\n".join([*lines, "]", ""])
