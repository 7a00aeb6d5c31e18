"""What `gateway read` has found, as a person and as a program wants it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec
from rich.table import Table as RichTable
from rich.text import Text

from gateway.cli.arguments import count
from gateway.cli.registers import REFERENCES, Cell, headings, lines, without_nonsense
from gateway.cli.terminal import printable
from gateway.codec.words import Order, Word
from gateway.connectors.modbus.config import AnyBus
from gateway.connectors.modbus.findings import Chosen, bus_toml, chosen, paste_points
from gateway.connectors.modbus.guess import SURE, Guess, explain, guess
from gateway.connectors.modbus.plausibility import Layout, sense
from gateway.connectors.modbus.reading import Reading

if TYPE_CHECKING:
    from rich.console import Console

_ALL_UP_TO = 40
"""Registers that are shown in every byte order unless one is asked for."""


class Show:
    """One block that was looked at."""

    def __init__(
        self, arguments: argparse.Namespace, reading: Reading, looks: Sequence[Mapping[int, int]], console: Console
    ) -> None:
        self._arguments = arguments
        self._reading = reading
        self._looks = looks
        self._values = {**reading.values, **looks[-1]}
        self._console = console
        self._found: Guess | None = None if reading.table.bits else guess(looks)

    def json(self) -> str:
        """Everything, for a program."""
        found = self._found
        document = {
            "unit": self._arguments.unit,
            "register": self._reading.table.value,
            "values": {str(address): value for address, value in sorted(self._values.items())},
            "missing": self._reading.missing,
            "ended": self._reading.ended,
            "looks": len(self._looks),
            "orders": {order.value: round(share, 4) for order, share in found.orders} if found else {},
            "marks": [
                {
                    "address": mark.address,
                    "type": mark.layout.value if mark.layout is not Layout.TEXT else "string",
                    "byte_order": mark.order.value,
                    "registers": mark.registers,
                    "value": mark.values[-1],
                    "share": round(mark.share, 4),
                    "why": explain(mark),
                }
                for mark in (found.marks if found else ())
            ],
        }
        return msgspec.json.format(msgspec.json.encode(document)).decode()

    def print(self, bus: AnyBus, named: str, word: Word | None) -> None:
        """Tables to stderr, TOML to stdout."""
        order = Order.BIG
        if self._found is None:
            points = [Chosen(address, "bool") for address in sorted(self._values)]
            self._bits()
        elif word is not None:
            points, order = self._one(word), word.order
        else:
            self._every(self._found)
            points, order = chosen(self._found)
        self._remarks()
        if points:
            table = paste_points(self._arguments.unit, named or bus.name, self._reading.table, points, order)
            if sys.stdout.isatty():
                self._console.print("\nTo paste into the configuration:\n", style="bold")
            head = "" if named else "\n".join([*bus_toml(bus, bus.name), "", ""])
            print(head + table.rstrip("\n"))

    def _every(self, found: Guess) -> None:
        wanted = [order for order, _ in found.orders]
        clear = bool(found.marks) and (found.orders[0][1] > SURE or not found.order_matters)
        if self._arguments.how != "all" and (clear or len(self._values) > _ALL_UP_TO):
            wanted = wanted[:1]
        left: list[str] = []
        for number, order in enumerate(wanted):
            if len(wanted) > 1:
                share = dict(found.orders)[order]
                likely = "" if not found.order_matters else f", {share:.0%}" if share > 0.005 else ", unlikely"
                self._console.print(f"\nbyte order {order.value}{likely}", style="bold")
            drawn = lines(self._values, self._reading.missing, self._reading.table, order, None if number else found)
            kept, names, gone = without_nonsense(drawn, headings(order))
            self._table(names, [line.cells for line in kept])
            left += gone
        if left and len(wanted) == 1:
            self._console.print(f"Left out, nothing in them makes sense: {', '.join(left)}", style="dim")
        if found.marks:
            sure = sum(mark.sure for mark in found.marks)
            said = f"{count(len(found.marks), 'number')} marked, {sure} of them for certain"
            if found.order_matters:
                said += f"; byte order {found.order.value} ({found.orders[0][1]:.0%})"
            self._console.print(f"{said}; looked {count(len(self._looks), 'time')}.")
        if len(wanted) == 1 and self._arguments.how != "all":
            self._console.print("In every byte order: --as all. In one type: --as float32:CDAB")

    def _one(self, word: Word) -> list[Chosen]:
        """The block as one type, one number behind the other."""
        points, rows = [], []
        address = self._arguments.address
        layout = next((each for each in Layout if each.value == str(word)), None)
        while address < self._arguments.address + self._arguments.count:
            places = range(address, address + word.registers)
            if not all(each in self._values for each in places):
                address += 1
                continue
            data = b"".join(self._values[each].to_bytes(2, "big") for each in places)
            value = word.decode(data[: 2 * word.registers])
            code = int.from_bytes(bytes(data[at] for at in word.order.places(len(data))), "big")
            good = layout is None or sense(layout, code)
            said = "NaN" if value is None else printable(str(value))
            raw = " ".join(f"{self._values[each]:04x}" for each in places)
            reference = REFERENCES[self._reading.table] + address + 1
            rows.append((Cell(str(address)), Cell(f"{reference:05d}"), Cell(raw), Cell(said, struck=not good)))
            if good:
                length = word.size if str(word) == "string" else 0
                points.append(Chosen(address, str(word), said, length))
            address += word.registers
        self._table(("address", "reference", "hex", self._arguments.how), rows)
        return points

    def _bits(self) -> None:
        base = REFERENCES[self._reading.table]
        rows = [
            (Cell(str(address)), Cell(f"{base + address + 1:05d}"), Cell("on" if value else "off"))
            for address, value in sorted(self._values.items())
        ]
        self._table(("address", "reference", self._reading.table.value), rows)

    def _remarks(self) -> None:
        missing = len(self._reading.missing)
        if missing:
            self._console.print(f"{count(missing, 'address', 'addresses')} refused: the device has nothing there.")
        if self._reading.ended:
            self._console.print(self._reading.ended, style="red")

    def _table(self, names: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
        table = RichTable(box=None, padding=(0, 2, 0, 0), header_style="bold")
        for name in names:
            numbers = name and name not in ("hex", "reference", "address")
            table.add_column(name, justify="right" if numbers else "left", no_wrap=True)
        for row in rows:
            table.add_row(*map(_styled, row))
        self._console.print(table)


def _styled(cell: Cell) -> Text:
    if cell.struck:
        return Text(f"({cell.text})", style="dim strike")
    return Text(f"{cell.text} <" if cell.marked else cell.text, style="bold green" if cell.marked else "")
