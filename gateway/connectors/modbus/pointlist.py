"""Pure: a list of registers as people have it in Excel → points.

The heading is found by the words that people use, in English and German; the separator is the one that makes most of
it. Nothing is guessed in silence: a row that cannot be understood is named with its line and why, and what was decided
for the whole list (references or plain addresses) is told. Every point is read by the declaration that will read it in
the configuration.
"""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from gateway.codec import units
from gateway.connectors.modbus.config import ModbusPoint
from gateway.settings import read

Addresses = Literal["auto", "plain", "reference"]

_HEADINGS = {
    "address": "address addr adresse register reg registeradresse registernummer registeraddress registernumber"
    " registerno registernr modbusaddress modbusadresse modbusregister startaddress startadresse startregister"
    " addressdec addresshex adressedez adressehex dec hex dez addressdecimal decimaladdress holdingregister",
    "name": "name bezeichnung parameter parametername signal signalname variable variablename quantity messwert"
    " messgroesse tag tagname point pointname datenpunkt label groesse description beschreibung",
    "type": "type typ datentyp datatype dataformat datenformat format vartype variablentyp encoding",
    "unit": "unit units einheit einheiten engunit engineeringunit messeinheit",
    "scale": "scale scaling scalefactor factor faktor skalierung skalierungsfaktor multiplier multiplikator resolution"
    " aufloesung",
    "divide": "gain divisor divider teiler",
    "add": "valueoffset addend additiveoffset wertoffset nullpunkt",
    "offset": "offset",
    "registers": "registers words size length laenge anzahl anzahlregister numberofregisters noofregisters"
    " quantityofregisters registercount count wordcount len groesseregister",
    "table": "table tabelle functioncode funktionscode function funktion fc registerart registertype registertabelle"
    " objecttype objekttyp inputtype modbusfunction",
    "order": "byteorder wordorder swap endianness endian bytereihenfolge wortreihenfolge",
}
"""What is meant → what people write over the column, in lower case, without blanks and signs."""
_MEANT = {word: key for key, text in _HEADINGS.items() for word in text.split()}

_TABLES = {
    **dict.fromkeys(("1", "01", "0x01", "coil", "coils", "do", "output"), "coil"),
    **dict.fromkeys(("2", "02", "0x02", "discrete", "discreteinput", "di", "discreteinputs", "diskret"), "discrete"),
    **dict.fromkeys(
        ("3", "03", "0x03", "holding", "holdingregister", "hr", "4x", "halteregister", "haltereg"), "holding"
    ),
    **dict.fromkeys(("4", "04", "0x04", "input", "inputregister", "ir", "3x", "eingangsregister", "eingang"), "input"),
}
_REGISTER_TYPES = {1: "16", 2: "32", 4: "64"}
_SIGNED = re.compile(r"^(?:s|i|int|sint|signed|signedint|integer|signedinteger|vorzeichenbehaftet)(8|16|32|64)?$")
_UNSIGNED = re.compile(
    r"^(?:u|ui|uint|unsigned|unsignedint|unsignedinteger|vorzeichenlos|enum|bitfield|bitmap)(8|16|32|64)?$"
)
_FLOAT = re.compile(r"^(?:f|fl|float|real|single|ieee754|floatieee|gleitkomma|ieee)(16|32|64)?(?:ieee|ieee754)?$")
_FIXED = {
    "word": "uint16", "dword": "uint32", "qword": "uint64", "short": "int16", "ushort": "uint16", "smallint": "int16",
    "int": "int16", "dint": "int32", "udint": "uint32", "uint": "uint16", "lint": "int64", "ulint": "uint64",
    "long": "int32", "ulong": "uint32", "longlong": "int64", "double": "float64", "lreal": "float64",
    "bool": "bool", "boolean": "bool", "bit": "bool", "acc32": "uint32", "acc64": "uint64",
    "enum16": "uint16", "bitfield16": "uint16", "bitfield32": "uint32", "sunssf": "int16",
}  # fmt: skip
_TEXTS = ("string", "str", "ascii", "text", "utf8", "char", "zeichenkette")
_WIDE = ("int", "uint", "word", "short", "long", "ulong", "real")
"""Types that mean something else where the list says how many registers they take."""


class Row(NamedTuple):
    """One row of the list, as it stands."""

    line: int
    cells: tuple[str, ...]


class Imported(NamedTuple):
    """What a list says."""

    points: tuple[dict[str, Any], ...]
    """In the words of the configuration."""
    problems: tuple[tuple[int, str], ...]
    """Line and reason, for every row that was not understood; line 0 for the list as a whole."""
    remarks: tuple[str, ...]


def decoded(data: bytes) -> str:
    """The text of a file as Excel and its relatives write it."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16", "replace")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("cp1252", "replace")


def imported(text: str, addresses: Addresses = "auto", register: str = "") -> Imported:
    """`register` is the table of rows that name none."""
    found = _heading(text)
    if found is None:
        told = "no heading was found: one row must name at least the address and the name (or type) of the points"
        return Imported((), ((0, told),), ())
    columns, rows = found
    referenced, remarks = _referenced([_cell(row, columns, "address") for row in rows], addresses)
    points: list[dict[str, Any]] = []
    problems: list[tuple[int, str]] = []
    names: dict[str, int] = {}
    for row in rows:
        if not _cell(row, columns, "address") and not _cell(row, columns, "type"):
            continue  # a line between, or the heading of a group
        try:
            point = _point(row, columns, referenced, register)
        except ValueError as error:
            problems.append((row.line, str(error)))
            continue
        _, mistakes = read(ModbusPoint, point)
        problems += [(row.line, f"{point['name']}: {mistake.message}") for mistake in mistakes]
        if not mistakes:
            number = names[point["name"]] = names.get(point["name"], 0) + 1
            points.append(point if number == 1 else {**point, "name": f"{point['name']}_{number}"})
    if not points and not problems:
        problems.append((0, "no row below the heading has an address"))
    return Imported(tuple(points), tuple(problems), tuple(remarks))


# ── heading ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _heading(text: str) -> tuple[Mapping[str, int], list[Row]] | None:
    """The columns that were recognised, and the rows below; of all separators the one that makes most of the list."""
    best: tuple[int, Mapping[str, int], list[Row]] | None = None
    for separator in ";\t,|":
        rows = list(_rows(text, separator))
        for number, row in enumerate(rows[:40]):
            columns = _columns(row)
            if "address" in columns and ("name" in columns or "type" in columns):
                if best is None or len(columns) > best[0]:
                    best = (len(columns), columns, rows[number + 1 :])
                break
    return best[1:] if best else None


def _rows(text: str, separator: str) -> Iterator[Row]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    while True:
        line = reader.line_num + 1  # a cell can hold line breaks: a row is where it begins
        try:
            cells = next(reader)
        except (StopIteration, csv.Error):
            return
        if any(cell.strip() for cell in cells):
            yield Row(line, tuple(cell.strip() for cell in cells))


def _columns(row: Row) -> dict[str, int]:
    columns: dict[str, int] = {}
    described: int | None = None
    for number, cell in enumerate(row.cells):
        word = _plain(re.sub(r"[(\[].*", "", cell))
        key = _MEANT.get(word)
        if key == "name" and word in ("description", "beschreibung"):
            described = number if described is None else described  # a name is better, where there is one
        elif key is not None:
            columns.setdefault(key, number)
    if described is not None:
        columns.setdefault("name", described)
    if "offset" in columns:
        # beside an address it is added to the value; alone it is the address
        columns.setdefault("add" if "address" in columns else "address", columns.pop("offset"))
    return columns


def _cell(row: Row, columns: Mapping[str, int], key: str) -> str:
    number = columns.get(key)
    return row.cells[number] if number is not None and number < len(row.cells) else ""


def _plain(text: str) -> str:
    """Lower case, ASCII, letters and digits only: `Größe (Wörter)` → `groesse`."""
    for char, spelt in (("ä", "ae"), ("ö", "oe"), ("ü", "ue"), ("ß", "ss")):
        text = text.lower().replace(char, spelt)
    folded = unicodedata.normalize("NFKD", text)
    return "".join(char for char in folded if char.isascii() and char.isalnum())


# ── rows ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _point(row: Row, columns: Mapping[str, int], referenced: bool, register: str) -> dict[str, Any]:
    """
    Raises:
        ValueError: what cannot be understood, in a finished sentence.
    """
    address = _address(_cell(row, columns, "address"))
    table = _table(_cell(row, columns, "table")) or register
    registers = _count(_cell(row, columns, "registers"))
    point: dict[str, Any] = {"name": _name(_cell(row, columns, "name"), address)}
    if referenced and address >= 10_000:
        point["address"] = str(address)
    else:
        point |= {"register": table} if table else {}
        point["address"] = address
    point |= _type(_cell(row, columns, "type"), registers, table in ("coil", "discrete"))
    if order := _cell(row, columns, "order"):
        point["byte_order"] = order.upper() if re.fullmatch(r"[A-Ha-h]+", order) else order.lower()
    if (unit := _cell(row, columns, "unit").strip("[]() ")) and unit not in ("-", "–", "n/a", "none", "1"):
        point["unit"] = units.symbol(unit)
    scale = _number(_cell(row, columns, "scale"), "scale")
    divide = _number(_cell(row, columns, "divide"), "gain")
    if scale is not None and scale != 1:
        point["scale"] = scale
    elif divide not in (None, 1, 0) and scale is None:
        assert divide is not None
        point["scale"] = float(f"{1 / divide:.12g}")
    add = _number(_cell(row, columns, "add"), "offset")
    return {**point, "offset": add} if add else point


def _address(text: str) -> int:
    """`0x1A`, `1Ah`, `40 001`, `30001-30002`, `30001/30002`: the first of them."""
    first = re.split(r"\s*(?:-|–|…|\.\.+|/|,|to|bis)\s*", text.strip(), maxsplit=1)[0].replace(" ", "").replace("'", "")
    if re.fullmatch(r"0[xX][0-9A-Fa-f]+", first):
        return int(first, 16)
    if re.fullmatch(r"[0-9A-Fa-f]+[hH]", first):
        return int(first[:-1], 16)
    if re.fullmatch(r"\d+(?:[.,]0+)?", first):
        return int(re.split(r"[.,]", first)[0])
    raise ValueError(f'"{text}" is no address' if text else "it has no address")


def _referenced(cells: Sequence[str], addresses: Addresses) -> tuple[bool, list[str]]:
    """Are these a manual's references, such as 40001? Where they may be, what was decided is told."""
    found = []
    for cell in cells:
        try:
            found.append(_address(cell))
        except ValueError:
            continue
    may_be = bool(found) and all(_is_reference(each) for each in found)
    if addresses != "auto":
        return addresses == "reference", []
    if may_be:
        return True, ["the addresses are taken as references, 40001 being the first register; else: --addresses plain"]
    if any(_is_reference(each) for each in found):
        return False, ["the addresses are taken as they stand, 40001 as 40001; else: --addresses reference"]
    return False, []


def _is_reference(address: int) -> bool:
    return any(first < address <= first + 9999 for first in (10_000, 30_000, 40_000)) or address > 65_535


def _table(text: str) -> str:
    words = [_plain(part) for part in re.split(r"[/,;]", text)]
    found = next((_TABLES[word] for word in words if word in _TABLES), "")
    if not found and text:
        read_by = re.search(r"(?:fc|fn|f|function|funktion)?\s*0?x?0?([1-4])\b", text.lower())
        found = _TABLES[read_by[1]] if read_by else ""
    return found


def _count(text: str) -> int:
    match = re.match(r"\d+", text)
    return int(match[0]) if match else 0


def _type(text: str, registers: int, bits: bool) -> dict[str, Any]:
    """Type and length; nothing where the list says nothing, and the table knows."""
    word = _plain(text)
    if not word and bits:
        return {}
    name = re.sub(r"(be|le|abcd|cdab|msb|lsb)$", "", word) if word not in _FIXED else word
    length = re.search(r"\d+", name)
    if any(name.startswith(each) for each in _TEXTS):
        size = 2 * registers or (int(length[0]) if length else 0)
        if not size:
            raise ValueError(f'"{text}": a text needs its length, in a column such as "registers"')
        return {"type": "string", "length": size}
    width = _REGISTER_TYPES.get(registers, "")
    if registers and not width and word:
        raise ValueError(f'"{text}" in {registers} registers is no number that is known here')
    if not word:
        return {"type": f"uint{width}"} if width else {}
    if name in _FIXED and not (name in _WIDE and width):
        return {"type": _FIXED[name]}
    name = {"word": "uint", "short": "int", "long": "int", "ulong": "uint", "dword": "uint"}.get(name, name)
    for pattern, kind in ((_UNSIGNED, "uint"), (_SIGNED, "int"), (_FLOAT, "float")):
        if match := pattern.match(name):
            return {"type": kind + (match[1] or width or ("32" if kind == "float" else "16"))}
    raise ValueError(f'"{text}" is no type that is known here')


def _number(text: str, what: str) -> float | int | None:
    """`0,1`, `1.000,5`, `1/10`, `10^-1`, `x0.1`, `*10`, `0.1 V`; None where there is none."""
    said = text.strip().lstrip("x×*·").strip()
    if not said or said in ("-", "–", "n/a", "none"):
        return None
    if match := re.fullmatch(r"10\s*(?:\^|e|\*\*)\s*([+-]?\d+)", said):
        return float(f"1e{match[1]}")
    if match := re.fullmatch(r"(\d+)\s*[/:]\s*(\d+)", said):
        return float(f"{int(match[1]) / int(match[2]):.12g}") if int(match[2]) else None
    match = re.match(r"[+-]?[\d.,]+(?:[eE][+-]?\d+)?", said)
    if match is None:
        raise ValueError(f'"{text}" is no {what}')
    digits = match[0]
    if "," in digits:
        decimal = digits.rfind(",") > digits.rfind(".")
        digits = digits.replace(".", "").replace(",", ".") if decimal else digits.replace(",", "")
    try:
        number = float(digits)
    except ValueError as error:
        raise ValueError(f'"{text}" is no {what}') from error
    return int(number) if number.is_integer() and abs(number) < 2**53 else number


def _name(text: str, address: int) -> str:
    """What readings are called: letters, digits, `_`; `Spannung L1-N [V]` → `spannung_l1_n`."""
    text = re.sub(r"[(\[].*", "", text) or text
    for char, spelt in (("ä", "ae"), ("ö", "oe"), ("ü", "ue"), ("ß", "ss"), ("+", " plus "), ("%", " percent ")):
        text = text.lower().replace(char, spelt)
    folded = unicodedata.normalize("NFKD", text)
    slug = re.sub(r"[^a-z0-9.]+", "_", folded.encode("ascii", "ignore").decode()).strip("_.")
    return slug or f"register_{address}"
