"""From a frame to values: text, JSON and NMEA 0183."""

from __future__ import annotations

import math
from functools import reduce
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.connectors.serial import nmea
from gateway.connectors.serial.config import SERIAL, SerialBus, SerialDevice
from gateway.connectors.serial.frames import Reader, owner
from gateway.connectors.serial.guess import configuration, guess, pattern
from gateway.connectors.serial.scalars import scalar
from gateway.errors import DecodeError
from gateway.settings import read


def device(**keys: Any) -> SerialDevice:
    found, mistakes = read(SerialDevice, {"name": "d", "bus": "b", **keys})
    assert found is not None, mistakes
    return found


def says(text: str, **keys: Any) -> dict[str, Any] | None:
    values = Reader(device(**keys)).read(text)
    return None if values is None else dict(zip(values.points, values.values, strict=True))


def sentence(body: str) -> str:
    return f"${body}*{reduce(lambda total, c: total ^ ord(c), body, 0):02X}"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("21.5", 21.5),
        (" +007 ", 7),
        ("-3", -3),
        (".5", 0.5),
        ("1e3", 1000.0),
        ("18446744073709551615", 18446744073709551615),
        ("1_000", "1_000"),
        ("21,5", "21,5"),
        ("٣", "٣"),
        ("OK", "OK"),
        ("0x10", "0x10"),
        ("infinity", "infinity"),
    ],
)
def test_text_is_a_number_only_where_it_plainly_is_one(text: str, value: Any) -> None:
    assert scalar(text) == value
    assert type(scalar(text)) is type(value)


def test_nan_is_a_number_that_the_normaliser_will_refuse() -> None:
    assert math.isnan(scalar("nan"))  # type: ignore[arg-type]


TH = r"T=(?P<t>[-\d.]*) H=(?P<h>\d+)(?: B=(?P<b>\d+))?"


@pytest.mark.parametrize(
    ("text", "keys", "found"),
    [
        ("T=21.5 H=40", {"pattern": TH}, {"t": 21.5, "h": 40}),
        ("xx T=21.5 H=40 B=3 xx", {"pattern": TH}, {"t": 21.5, "h": 40, "b": 3}),
        ("T= H=40", {"pattern": TH}, {"t": None, "h": 40}),
        ("T=1 H=2", {"pattern": TH, "points": [{"name": "room.t", "group": "t"}]}, {"room.t": 1}),
        ("STATE: OK", {"pattern": r"STATE: (?P<state>\w+)"}, {"state": "OK"}),
    ],
)
def test_a_regex_reads_its_groups_and_leaves_out_those_that_took_no_part(
    text: str, keys: dict[str, Any], found: dict[str, Any]
) -> None:
    assert says(text, format="regex", **keys) == found


@pytest.mark.parametrize(
    ("text", "keys", "found"),
    [
        ('{"t": 21.5, "n": null, "s": "x", "on": true}', {}, {"t": 21.5, "on": True}),
        ('{"a": [1, {"b °": 2}], "7": 3}', {}, {"a.0": 1, "a.1.b": 2, "7": 3}),
        ("7", {}, {"value": 7}),
        ('{"t": 21.5}', {"points": [{"name": "t"}, {"name": "gone"}]}, {"t": 21.5}),
        ('{"a.b": 1}', {"points": [{"name": "a.b"}]}, {"a.b": 1}),
        ('{"a": {"b": [3, 4]}}', {"points": [{"name": "x", "path": "a.b[1]"}]}, {"x": 4}),
        ('{"n": null}', {"points": [{"name": "n"}]}, {"n": None}),
        ('{"other": 1}', {"points": [{"name": "n"}]}, None),
        ("[]", {}, None),
    ],
)  # fmt: skip
def test_json_gives_what_is_there(text: str, keys: dict[str, Any], found: dict[str, Any] | None) -> None:
    assert says(text, format="json", **keys) == found


@pytest.mark.parametrize("text", ["", "{", '{"t": 1}x', "T=21", "[" * 100_000, '{"t": 1e999}', '{"x": {"y": 1}}'])
def test_what_is_no_json_of_values_is_refused(text: str) -> None:
    with pytest.raises(DecodeError):
        says(text, format="json", points=[{"name": "x"}])


def test_auto_takes_fifty_points_of_a_device_and_keeps_to_them() -> None:
    reader = Reader(device(format="json"))
    documents = ["{" + ",".join(f'"k{i}":{i}' for i in range(first, 1000)) + "}" for first in (0, 30)]
    found = [reader.read(document) for document in documents]
    assert found[0] is not None
    assert found[0].points == tuple(f"k{i}" for i in range(50))
    assert found[1] is not None
    assert found[1].points == tuple(f"k{i}" for i in range(30, 50))


# Sentences as instruments send them; positions worked out by hand.
NMEA: list[tuple[str, dict[str, Any] | None]] = [
    (
        "$GPGGA,123519,4807.038,N,01131.000,E,1,08,0.9,545.4,M,46.9,M,,*47",
        {
            "latitude": 48.1173,
            "longitude": 11.51666667,
            "fix_quality": 1,
            "satellites": 8,
            "hdop": 0.9,
            "altitude": 545.4,
            "geoid_separation": 46.9,
        },
    ),
    (
        "$GPRMC,123519,A,4807.038,N,01131.000,E,022.4,084.4,230394,003.1,W*6A",
        {"latitude": 48.1173, "longitude": 11.51666667, "speed_over_ground": 22.4, "course_over_ground": 84.4},
    ),
    (
        sentence("GPRMC,123519,V,,,,,,,230394,,"),
        {"latitude": None, "longitude": None, "speed_over_ground": None, "course_over_ground": None},
    ),
    (
        sentence("GPGGA,123519,4807.038,N,01131.000,E,0,00,99.9,545.4,M,46.9,M,,"),
        {
            "latitude": None,
            "longitude": None,
            "fix_quality": 0,
            "satellites": 0,
            "hdop": None,
            "altitude": None,
            "geoid_separation": None,
        },
    ),
    (sentence("GPVTG,084.4,T,,M,022.4,N,041.5,K,A"), {"course_over_ground": 84.4, "speed_over_ground": 22.4}),
    (sentence("GPVTG,084.4,T,,M,022.4,N,041.5,K"), {"course_over_ground": 84.4, "speed_over_ground": 22.4}),
    (sentence("GPVTG,084.4,T,,M,022.4,N,041.5,K,N"), {"course_over_ground": None, "speed_over_ground": None}),
    (sentence("GNGLL,3751.65,S,14507.36,E"), None),
    (sentence("WIMWV,214.8,R,0.1,K,A"), {"apparent_wind_angle": 214.8, "apparent_wind_speed": 0.1}),
    (sentence("WIMWV,214.8,T,3,N,V"), {"true_wind_angle": None, "true_wind_speed": None}),
    (sentence("SDDPT,2.3,0.0"), {"depth": 2.3, "depth_offset": 0.0}),
    (sentence("YXMTW,17.75,C"), {"water_temperature": 17.75}),
    (sentence("IIMTW,,C"), {"water_temperature": None}),
    (sentence("HEHDT,271.1,T"), {"heading_true": 271.1}),
    (sentence("PGRME,22.0,M,52.9,M,51.0,M"), None),
]


@pytest.mark.parametrize(("line", "found"), NMEA)
def test_ready_made_sentences(line: str, found: dict[str, Any] | None) -> None:
    assert says(line, format="nmea") == found


def test_south_and_west_are_negative_and_units_come_with_the_values() -> None:
    values = Reader(device(format="nmea")).read(sentence("GPGGA,0,3751.65,S,07000.00,W,1,8,1,,M,,M,,"))
    assert values is not None
    assert values.values[:2] == (-37.86083333, -70.0)
    assert values.units == ("lat", "lon", "", "count", "", "m", "m")


def test_a_void_sentence_still_says_that_it_is_void() -> None:
    points = [{"name": "quality", "sentence": "GGA", "field": 6}, {"name": "hdop", "sentence": "GGA", "field": 8}]
    line = sentence("GPGGA,123519,4807.038,N,01131.000,E,0,00,99.9,545.4,M,46.9,M,,")
    assert says(line, format="nmea", points=points) == {"quality": 0, "hdop": None}
    status = [{"name": "status", "sentence": "RMC", "field": 2}]
    assert says(sentence("GPRMC,123519,V,4807.038,N,01131.000,E,0,0,230394,,"), format="nmea", points=status) == {
        "status": "V"
    }


def test_any_field_of_any_sentence_can_be_a_point() -> None:
    points = [
        {"name": "epe", "sentence": "PGRME", "field": 1, "unit": "m"},
        {"name": "gps_only", "sentence": "GPGGA", "field": 7},
        {"name": "altitude"},
    ]
    assert says(sentence("PGRME,22.0,M,52.9,M,51.0,M"), format="nmea", points=points) == {"epe": 22.0}
    assert says(NMEA[0][0], format="nmea", points=points) == {"altitude": 545.4, "gps_only": 8}
    assert says(NMEA[0][0].replace("$GP", "$GN").replace("*47", "*59"), format="nmea", points=points) == {
        "altitude": 545.4
    }


@pytest.mark.parametrize(
    "line",
    [
        "$GPGGA,123519,4807.038,N,01131.000,E,1,08,0.9,545.4,M,46.9,M,,*48",
        "$GPGGA,123519,4807.038,N,01131.000,E,1,08,0.9,545.5,M,46.9,M,,*47",
        "$GPGGA,123519",
        "GPGGA,123519*47",
        "$*00",
        sentence("GP"),
        sentence("WIMWV,214.8,X,0.1,K,A"),
        sentence("GPGGA,0,48xx.1,N,01131.000,E,1,8,1,1,M,1,M,,"),
        sentence("GPGGA,0,4807.038,Q,01131.000,E,1,8,1,1,M,1,M,,"),
        "",
    ],
)
def test_a_sentence_that_is_not_right_is_refused(line: str) -> None:
    with pytest.raises(DecodeError):
        says(line, format="nmea")


def test_a_missing_checksum_can_be_allowed_but_a_wrong_one_never() -> None:
    assert says("$YXMTW,17.75,C", format="nmea", checksum=False) == {"water_temperature": 17.75}
    with pytest.raises(DecodeError, match="checksum"):
        says("$YXMTW,17.75,C*00", format="nmea", checksum=False)


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=80))
def test_no_text_makes_the_nmea_reader_do_anything_but_read_or_refuse(body: str) -> None:
    for line in (body, f"${body}", sentence(body)):
        try:
            found = nmea.parse(line, checksum=False)
            if nmea.known(found.kind):
                nmea.ready_made(found)
        except DecodeError:
            pass


def test_what_is_known_beforehand_leaves_out_what_is_only_written() -> None:
    points = [{"name": "t"}, {"name": "setpoint", "command": "SET {value}", "write": {}}]
    assert Reader(device(format="regex", pattern=TH, points=points)).known == ("t",)
    assert Reader(device(format="regex", pattern=TH)).known == ("t", "h", "b")
    assert Reader(device(format="json", points=[{"name": "x"}])).known == ("x",)
    assert Reader(device(format="nmea")).known == ()


def test_a_frame_belongs_to_the_first_device_that_it_fits() -> None:
    readers = [
        Reader(device(name="wind", format="nmea", match=r"^\$..MWV")),
        Reader(device(name="outside", format="json", match='"id": ?7')),
        Reader(device(name="inside", format="regex", pattern=r"^IN (?P<t>\d+)")),
        Reader(device(name="rest", format="json", match=r"^\{")),
    ]
    owners = {text: owner(readers, text) for text in ("$WIMWV,1", '{"id": 7}', "IN 5", "IN x", '{"id": 8}', "?")}
    assert [reader and reader.device.name for reader in owners.values()] == [
        "wind",
        "outside",
        "inside",
        None,
        "rest",
        None,
    ]


@pytest.mark.parametrize(
    ("keys", "place", "message"),
    [
        ({"format": "regex"}, ("pattern",), "belong together"),
        ({"format": "json", "pattern": "(?P<a>x)"}, ("pattern",), "belong together"),
        ({"format": "regex", "pattern": "("}, ("pattern",), "not a regular expression"),
        ({"format": "regex", "pattern": "x"}, ("pattern",), "no named group"),
        ({"format": "regex", "pattern": "(?P<a>x)", "points": [{"name": "b"}]}, ("points", 0), "no group 'b'"),
        ({"format": "json", "match": "["}, ("match",), "not a regular expression"),
        ({"format": "json", "points": [{"name": "a", "path": "a..b"}]}, ("points", 0, "path"), "not a path"),
        ({"format": "json", "points": [{"name": "a"}, {"name": "a"}]}, ("points", 1, "name"), "second point"),
        ({"format": "nmea", "points": [{"name": "a", "field": 3}]}, ("points", 0), "belong together"),
        ({"format": "json", "points": [{"name": "a", "write": {}}]}, ("points", 0, "write"), "needs a `command`"),
    ],
)
def test_mistakes_name_their_place(keys: dict[str, Any], place: tuple[Any, ...], message: str) -> None:
    found, mistakes = read(SerialDevice, {"name": "d", "bus": "b", **keys})
    assert found is None
    assert any(m.path == place and message in m.message for m in mistakes), mistakes


def test_an_encoding_that_does_not_exist_is_a_mistake() -> None:
    _, mistakes = read(SerialBus, {"name": "b", "kind": "serial", "port": "/dev/x", "encoding": "utf-9"})
    assert [m.path for m in mistakes] == [("encoding",)]


def test_check_warns_of_a_device_that_takes_everything() -> None:
    assert SERIAL.check is not None
    bus, _ = read(SerialBus, {"name": "b", "kind": "serial", "port": "/dev/x"})
    assert bus is not None
    greedy, other = device(name="a", format="json"), device(name="b", format="nmea")
    assert "nothing is left for b" in SERIAL.check(bus, [greedy, other])[0]
    assert SERIAL.check(bus, [device(name="a", format="json", match="x"), other]) == []


# ── what a scan makes of a recording ─────────────────────────────────────────────────────────────────────────────────

GGA = NMEA[0][0].encode() + b"\r\n"


@pytest.mark.parametrize(
    ("data", "format"),
    [
        (b"", "silence"),
        (b"half" + GGA * 5, "nmea"),
        (b'xx\n{"t": 1}\n{"t": 2}\n', "json"),
        (b"21.5 40\n21.6 41\n21.7 41\n21", "lines"),
        (b"a\rT=1\rT=2\rT=3\r", "lines"),
        (bytes(range(128, 256)) * 20, "noise"),
        (b"\xff\xfe\n\x80\x81\n" * 30, "noise"),
        (b"no end of line at all", "noise"),
    ],
)
def test_a_recording_is_judged(data: bytes, format: str) -> None:
    assert guess(data).format == format


@pytest.mark.parametrize(
    "line", ["T=21.5 H=40", "21.5;40;3", "CO2: 415 ppm, it's fine", "R 1234 state OK", "a.b*c 5", "no number"]
)
def test_a_proposed_pattern_reads_the_line_it_was_made_from(line: str) -> None:
    values = Reader(device(format="regex", pattern=pattern(line))).read(line)
    assert values is not None
    assert "'" not in pattern(line)


def test_a_proposal_is_a_configuration() -> None:
    import tomllib

    for data in (GGA * 3, b'x\n{"t": 1}\n{"t": 2}\n', b"x\rT=1\rT=2\r"):
        proposal = tomllib.loads(configuration("/dev/ttyUSB0", 9600, guess(data)))
        assert read(SerialBus, proposal["bus"][0])[1] == []
        assert read(SerialDevice, proposal["device"][0])[1] == []
