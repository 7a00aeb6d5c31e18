"""Pure: a block of registers as a table for people: every type side by side in one byte order, nonsense struck out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from gateway.codec.words import Family, Order, Word
from gateway.connectors.modbus.guess import Guess, Mark, explain
from gateway.connectors.modbus.planner import Table
from gateway.connectors.modbus.plausibility import Layout, sense

REFERENCES = {Table.COIL: 0, Table.DISCRETE: 10_000, Table.INPUT: 30_000, Table.HOLDING: 40_000}
_WIDE = 2**40
"""64-bit integers beyond this are nonsense: 30 years in milliseconds fit, and all the Wh that a town uses."""
_FOLD = 4
"""So many registers in a row that say nothing are one line."""
_PAIRS = {16: (Layout.UINT16, Layout.INT16), 32: (Layout.UINT32, Layout.INT32), 64: (Layout.UINT64, Layout.INT64)}


class Cell(NamedTuple):
    """What stands in a column; struck: nobody means it; marked: this is it."""

    text: str = ""
    struck: bool = False
    marked: bool = False


class Line(NamedTuple):
    """One address, or several that are alike."""

    cells: tuple[Cell, ...]


def headings(order: Order) -> tuple[str, ...]:
    """Of the columns of `lines`."""
    wide = (f"{what} {order.value}" for what in ("32 bit", "float32", "64 bit", "float64"))
    return ("address", "reference", "hex", "16 bit", *wide, "")


def lines(
    values: Mapping[int, int], missing: Sequence[int], table: Table, order: Order, found: Guess | None
) -> list[Line]:
    """Every register in this order; `found` marks what is likely and says why. What lies within a number that is
    marked for certain is no other number."""
    marks = {mark.address: mark for mark in found.marks} if found else {}
    inside = {address + each: mark.sure for address, mark in marks.items() for each in range(1, mark.registers)}
    drawn: list[Line] = []
    for first, last in _folded(values, missing, {*marks, *inside}):
        if first not in values:
            said = Cell("no such register" if first == last else "no such registers", struck=False)
            drawn.append(Line((*_place(first, last, table), Cell("-"), *[Cell()] * 5, said)))
        elif inside.get(first):
            drawn.append(Line((*_place(first, first, table), Cell(f"{values[first]:04x}"), *[Cell()] * 6)))
        elif first != last:
            drawn.append(Line((*_place(first, last, table), Cell("0000"), Cell("0"), *[Cell()] * 5)))
        else:
            drawn.append(Line((*_place(first, first, table), *_numbers(values, first, order, marks.get(first)))))
    return drawn


def without_nonsense(drawn: Sequence[Line], names: Sequence[str]) -> tuple[list[Line], list[str], list[str]]:
    """The columns in which anything makes sense, their headings, and those left out."""
    kept = [
        column
        for column in range(len(names))
        if column < 4 or column == len(names) - 1 or any(_says(line.cells[column]) for line in drawn)
    ]
    left = [name for column, name in enumerate(names) if column not in kept]
    return [Line(tuple(line.cells[at] for at in kept)) for line in drawn], [names[at] for at in kept], left


def _says(cell: Cell) -> bool:
    return cell.marked or (not cell.struck and cell.text not in ("", "0"))


def _folded(values: Mapping[int, int], missing: Sequence[int], marked: set[int]) -> Iterator[tuple[int, int]]:
    """Addresses, and runs of them that say the same nothing."""
    addresses = sorted({*values, *missing})
    at = 0
    while at < len(addresses):
        first = addresses[at]
        end = at
        while (
            end + 1 < len(addresses)
            and addresses[end + 1] == addresses[end] + 1
            and not {first, addresses[end + 1]} & marked
            and values.get(first, 0) == values.get(addresses[end + 1], 0) == 0
            and (first in values) == (addresses[end + 1] in values)
        ):
            end += 1
        if first in values and end - at + 1 < _FOLD:
            end = at
        yield first, addresses[end]
        at = end + 1


def _place(first: int, last: int, table: Table) -> tuple[Cell, Cell]:
    reference = REFERENCES[table]
    references = [reference * (10 if last >= 9999 else 1) + each + 1 for each in dict.fromkeys((first, last))]
    return (
        Cell("…".join(map(str, dict.fromkeys((first, last))))),
        Cell("…".join(f"{each:05d}" for each in references)),
    )


def _numbers(values: Mapping[int, int], at: int, order: Order, mark: Mark | None) -> tuple[Cell, ...]:
    layout = mark.layout if mark else None
    cells = [Cell(f"{values[at]:04x}")]
    for bits in (16, 32, 64):
        cells.append(_whole(_bytes(values, at, bits // 16), bits, order, layout))
        if bits > 16:
            floating = Layout.FLOAT32 if bits == 32 else Layout.FLOAT64
            cells.append(_float(_bytes(values, at, bits // 16), floating, order, layout))
    said = ""
    if mark is not None:
        why = explain(mark)
        said = mark.layout.value if mark.layout is not Layout.TEXT else repr(mark.values[-1])
        said += f" {mark.share:.0%}" if not mark.sure else ""
        said += f": {why}" if why else ""
    return (*cells, Cell(said))


def _bytes(values: Mapping[int, int], at: int, registers: int) -> bytes | None:
    if not all(at + each in values for each in range(registers)):
        return None
    return b"".join(values[at + each].to_bytes(2, "big") for each in range(registers))


def _whole(data: bytes | None, bits: int, order: Order, layout: Layout | None) -> Cell:
    if data is None:
        return Cell()
    unsigned, signed = (Word(family, bits // 8, order).decode(data) for family in (Family.UINT, Family.INT))
    assert isinstance(unsigned, int)
    assert isinstance(signed, int)
    marked = layout in _PAIRS[bits]
    if marked:
        return Cell(str(signed if layout and layout.signed else unsigned), marked=True)
    if bits == 64 and unsigned > _WIDE and signed < -_WIDE:
        return Cell(f"{float(unsigned):.1e}", struck=True)
    if bits == 64 and unsigned > _WIDE:
        return Cell(str(signed) if signed < 0 else f"{float(unsigned):.1e}", struck=signed > 0)
    return Cell(f"{unsigned}" if signed >= 0 else f"{unsigned} / {signed}")


def _float(data: bytes | None, floating: Layout, order: Order, layout: Layout | None) -> Cell:
    if data is None:
        return Cell()
    word = Word(Family.FLOAT, len(data), order)
    value = word.decode(data)
    marked = layout is floating
    code = int.from_bytes(bytes(data[place] for place in order.places(len(data))), "big")
    if value is None:
        return Cell("NaN", struck=not marked, marked=marked)
    good = sense(floating, code)
    return Cell(f"{value:.9g}" if good else f"{value:.1e}", struck=not (good or marked), marked=marked)
