"""Lists of registers as people have them in Excel, turned into points."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.config.load import check_text
from gateway.connectors.modbus.pointlist import decoded, imported
from gateway.connectors.registry import Registry
from tests.cli.command import gateway

GERMAN = """\
Registerliste Zähler XY;;;;;
Stand 2024;;;;;
Adresse;Bezeichnung;Datentyp;Einheit;Faktor;Anzahl Register
0x0000;Spannung L1-N;UINT32;V;0,1;2
0002h;Strom L1;signed;A;0,001;2
4;Wirkleistung gesamt;INT32;W;1;2
;Energie;;;;
6-7;Energie Bezug (+A);Float32;kWh;;2
8;Seriennummer;ASCII;;;8
10;Blindleistung;INT16;kVAr;0,1;1
"""
ENGLISH = """\
Register,Parameter,Data Type,Units,Scale,Function Code,R/W
40001,Voltage L1,U16,V,0.1,03,R
40002,"Current, L1",S16,A,0.01,03,R
40003,Import energy,UINT32,kWh,1/100,03,R
40005,Frequency,float,Hz,,03,R
"""
TABBED = "Address\tName\tType\tGain\n100\tPower\tI32\t1000\n102\tSpeed\tWORD\t\n103\tOn\tBOOL\t\n"


def points(text: str, **options: str) -> list[dict[str, object]]:
    found = imported(text, **options)  # type: ignore[arg-type]
    assert found.problems == ()
    return list(found.points)


def test_a_german_list_with_semicolons_and_decimal_commas() -> None:
    assert points(GERMAN) == [
        {"name": "spannung_l1_n", "address": 0, "type": "uint32", "unit": "V", "scale": 0.1},
        {"name": "strom_l1", "address": 2, "type": "int32", "unit": "A", "scale": 0.001},
        {"name": "wirkleistung_gesamt", "address": 4, "type": "int32", "unit": "W"},
        {"name": "energie_bezug", "address": 6, "type": "float32", "unit": "kWh"},
        {"name": "seriennummer", "address": 8, "type": "string", "length": 16},
        {"name": "blindleistung", "address": 10, "type": "int16", "unit": "kvar", "scale": 0.1},
    ]


def test_an_english_list_with_references_and_quotes() -> None:
    found = imported(ENGLISH)
    assert found.problems == ()
    assert [(p["name"], p["address"], p["type"], p.get("scale")) for p in found.points] == [
        ("voltage_l1", "40001", "uint16", 0.1),
        ("current_l1", "40002", "int16", 0.01),
        ("import_energy", "40003", "uint32", 0.01),
        ("frequency", "40005", "float32", None),
    ]
    assert found.remarks == (
        "the addresses are taken as references, 40001 being the first register; else: --addresses plain",
    )


def test_a_list_with_tabs_and_a_gain() -> None:
    assert points(TABBED, register="input") == [
        {"name": "power", "register": "input", "address": 100, "type": "int32", "scale": 0.001},
        {"name": "speed", "register": "input", "address": 102, "type": "uint16"},
        {"name": "on", "register": "input", "address": 103, "type": "bool"},
    ]


def test_40001_among_other_addresses_is_an_address() -> None:
    found = imported("Address,Name\n40001,a\n50000,b\n")
    assert [point["address"] for point in found.points] == [40001, 50000]
    assert "--addresses reference" in found.remarks[0]
    plain = imported(ENGLISH, "plain")
    assert [point["address"] for point in plain.points] == [40001, 40002, 40003, 40005]


HEADINGS = [
    ("Adresse", "Name", "Typ"),
    ("Modbus-Adresse", "Bezeichnung", "Datentyp"),
    ("Register address (dec)", "Signal", "Format"),
    ("Start address", "Description", "Data type"),
    ("Register", "Messgröße", "Datenformat"),
    ("Addr.", "Variable Name", "Type"),
    ("Registernummer [hex]", "Parameter", "type"),
    ("Offset", "Tag", "Encoding"),
]


@pytest.mark.parametrize("words", HEADINGS, ids=lambda words: words[0])
def test_headings_in_the_words_that_people_use(words: tuple[str, ...]) -> None:
    text = ";".join(words) + "\n12;Power;uint16\n"
    assert points(text) == [{"name": "power", "address": 12, "type": "uint16"}]


TYPES = {
    "UINT16": "uint16", "uint 16": "uint16", "U16": "uint16", "unsigned int 16": "uint16", "WORD": "uint16",
    "INT16": "int16", "S16": "int16", "signed": "int16", "Int": "int16", "SHORT": "int16",
    "UINT32": "uint32", "U32": "uint32", "DWORD": "uint32", "UDINT": "uint32", "acc32": "uint32",
    "INT32": "int32", "S32": "int32", "DINT": "int32", "long": "int32",
    "UINT64": "uint64", "U64": "uint64", "INT64": "int64",
    "float": "float32", "Float32": "float32", "REAL": "float32", "IEEE 754": "float32", "FLOAT32-IEEE": "float32",
    "double": "float64", "Float 64": "float64", "BOOL": "bool", "UINT32 BE": "uint32", "enum16": "uint16",
}  # fmt: skip


@pytest.mark.parametrize(("said", "meant"), TYPES.items())
def test_types_as_they_are_spelt_elsewhere(said: str, meant: str) -> None:
    assert points(f"Address;Name;Type\n1;p;{said}\n")[0]["type"] == meant


@pytest.mark.parametrize(
    ("said", "registers", "meant"),
    [("uint", 2, "uint32"), ("int", 2, "int32"), ("signed", 4, "int64"), ("float", 4, "float64"), ("", 2, "uint32")],
)
def test_the_number_of_registers_tells_how_wide_a_type_is(said: str, registers: int, meant: str) -> None:
    assert points(f"Address;Name;Type;Length\n1;p;{said};{registers}\n")[0]["type"] == meant


TABLES = {
    "3": "holding", "0x04": "input", "FC03": "holding", "Input Register": "input", "01": "coil", "03/06": "holding",
    "Holding": "holding", "Eingangsregister": "input", "2": "discrete",
}  # fmt: skip


@pytest.mark.parametrize(("said", "meant"), TABLES.items())
def test_function_codes_and_names_of_tables(said: str, meant: str) -> None:
    assert points(f"Address;Name;Function code\n1;p;{said}\n")[0]["register"] == meant


NUMBERS = {"0,1": 0.1, "0.1": 0.1, "1/10": 0.1, "10^-1": 0.1, "x0.1": 0.1, "1.000,5": 1000.5, "10": 10, "1E-3": 0.001}


@pytest.mark.parametrize(("said", "meant"), NUMBERS.items())
def test_numbers_as_people_write_them(said: str, meant: float) -> None:
    assert points(f"Address;Name;Factor\n1;p;{said}\n")[0]["scale"] == meant


PROBLEMS = {
    "no address": ("neun;p;uint16;", '"neun" is no address'),
    "an unknown type": ("9;p;blob;", '"blob" is no type that is known here'),
    "a scale that is none": ("9;p;uint16;viel", '"viel" is no scale'),
    "a text without length": ("9;p;string;", '"string": a text needs its length, in a column such as "registers"'),
    "behind the last register": ("70000;p;uint16;", "p: 70000 is out of bounds: at least 0 and at most 65535"),
    "a scale of nothing": ("9;p;uint16;0", "p: scale 0 would make every value the same"),
}


@pytest.mark.parametrize(("row", "why"), PROBLEMS.values(), ids=PROBLEMS.keys())
def test_a_row_that_cannot_be_understood_is_named_and_the_others_are_there(row: str, why: str) -> None:
    found = imported(f"Adresse;Name;Typ;Faktor\n1;a;uint16;\n\n{row}\n2;b;uint16;\n", "plain")
    assert found.problems == ((4, why),)
    assert [point["name"] for point in found.points] == ["a", "b"]


def test_a_row_begins_where_its_first_cell_begins() -> None:
    found = imported('Address,Name,Type,Note\n1,a,uint16,"two\nlines"\nx,b,uint16,\n')
    assert found.problems == ((4, '"x" is no address'),)


def test_points_of_one_name_stay_apart() -> None:
    names = [point["name"] for point in points("Address;Name\n1;Power\n2;Power\n3;Power [W]\n4;\n")]
    assert names == ["power", "power_2", "power_3", "register_4"]


def test_a_list_without_a_heading_says_what_is_needed() -> None:
    found = imported("1,2,3\n4,5,6\n")
    assert found.points == ()
    assert "one row must name at least the address" in found.problems[0][1]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_files_as_excel_writes_them(encoding: str) -> None:
    assert points(decoded(GERMAN.encode(encoding)))[0]["name"] == "spannung_l1_n"


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.text(max_size=300)
    | st.lists(st.text(max_size=8), max_size=30).map(lambda cells: "Adresse;Name\n" + ";".join(cells))
)
def test_whatever_the_list_is_it_ends_in_points_or_reasons(text: str) -> None:
    found = imported(text)
    assert found.points or found.problems


@pytest.mark.parametrize("text", [GERMAN, ENGLISH, TABBED], ids=["german", "english", "tabbed"])
def test_what_it_prints_passes_check(tmp_path: Path, text: str) -> None:
    (tmp_path / "points.csv").write_text(text)
    done = gateway("import", tmp_path / "points.csv", "--device", "m", "--bus", "a", "--unit", "7")
    assert done.code == 0, done.err
    bus = '[[bus]]\nname = "a"\nkind = "modbus-rtu"\nport = "/dev/serial/by-id/x"\n'
    report = check_text(bus + done.out, "g.toml", {}, Registry())
    assert [str(mistake) for mistake in report.mistakes] == []
    (device,) = tomllib.loads(done.out)["device"]
    assert (device["name"], device["unit_id"], len(device["points"])) == ("m", 7, len(imported(text).points))


def test_what_was_not_understood_goes_to_stderr_and_the_exit_code(tmp_path: Path) -> None:
    file = tmp_path / "points.csv"
    file.write_text("Adresse;Name\n1;a\nx;b\n")
    done = gateway("import", file)
    assert done.code == 1
    assert f'{file}:3: "x" is no address\n' in done.err
    assert tomllib.loads(done.out)["device"][0]["points"] == [{"name": "a", "address": 1}]


def test_a_workbook_is_no_list(tmp_path: Path) -> None:
    (tmp_path / "points.xlsx").write_bytes(b"PK\x03\x04rest")
    done = gateway("import", tmp_path / "points.xlsx")
    assert (done.code, done.out) == (2, "")
    assert "save as, CSV UTF-8" in done.err
