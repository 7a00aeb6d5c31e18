"""The specification as a document: numbers have tests, examples are messages, limits are those of the code."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.conformance.checks import UNSEEN
from gateway.conformance.run import numbers
from gateway.conformance.specification import requirements
from gateway.model import (
    STATUS_PATTERN,
    ClockState,
    GapReason,
    Lane,
    Outcome,
    Record,
    RecordKind,
    Row,
    Shape,
    Status,
    Trust,
    Value,
)
from gateway.protocol import batch, messages, schema
from gateway.protocol.allowance import MAX_WINDOW
from gateway.protocol.entry import Entry, entry_of
from gateway.protocol.messages import MAX_BATCH_BYTES, MAX_DOWN_BYTES, MAX_MESSAGE_BYTES, SUBPROTOCOL
from gateway.protocol.pace import COMMAND_BURST, COMMANDS_PER_S

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "gateway/protocol/README.md").read_text()
DEFINED = re.findall(r"^- \*\*([A-Z]\d+[a-z]?)\*\*", TEXT, re.MULTILINE)
TABLE = re.findall(r"^\| ([A-Z]\d+[a-z]?) \| `(test_\w+)` \|$", TEXT, re.MULTILINE)
TESTS = re.findall(r"def (test_\w+)", "".join(path.read_text() for path in (ROOT / "tests").rglob("*.py")))
EXAMPLES = re.findall(r"^```json\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
SCHEMA = schema.schema()
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def side(name: str) -> jsonschema.Draft202012Validator:
    """What one side may send: `FromGateway` or `FromServer`; or one type."""
    return jsonschema.Draft202012Validator({"$ref": f"#/$defs/{name}", "$defs": SCHEMA["$defs"]})


BODY = side("Body")


# ── numbers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_requirement_has_one_test_that_exists() -> None:
    """Those that a check sees are held by `test_our_server_keeps`, which runs every check; the table has the rest."""
    assert len(DEFINED) == len(set(DEFINED)), "a number names one requirement"
    assert list(requirements()) == DEFINED, "nothing is lost on the way into a finding"
    named = [number for number, _ in TABLE]
    assert len(named) == len(set(named)), "one test each"
    seen = {number for number, why in numbers().items() if not why}
    assert set(named) == set(DEFINED) - seen, "what is seen from outside is not in the table, everything else is"
    assert {test for _, test in TABLE} <= set(TESTS)
    assert UNSEEN.keys() <= set(named)


def test_every_reference_to_a_number_leads_to_one() -> None:
    for path in [*(ROOT / "gateway").rglob("*.py"), ROOT / "gateway/protocol/README.md"]:
        for group in re.findall(r"\[((?:[A-Z]\d+[a-z]?(?:, )?)+)\]|\(([A-Z]\d+[a-z]?)\)", path.read_text()):
            for number in (group[0] or group[1]).split(", "):
                assert any(each.startswith(number) for each in DEFINED), f"{path.name}: {number}"


def test_a_requirement_says_one_thing_about_one_side() -> None:
    for number, sentence in requirements().items():
        assert len(re.findall(r"\bMUST\b|\bSHOULD\b", sentence)) <= 2, f"{number} holds several claims: {sentence}"


# ── examples ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def examples() -> Iterator[dict[str, Any]]:
    decoder = json.JSONDecoder()
    for block in EXAMPLES:
        rest = block.strip()
        while rest:
            message, end = decoder.raw_decode(rest)
            yield message
            rest = rest[end:].lstrip()


def kind(message: dict[str, Any]) -> str:
    return str(message["type"])


@pytest.mark.parametrize("example", list(examples()), ids=kind)
def test_every_example_is_a_message_by_types_and_by_schema(example: dict[str, Any]) -> None:
    frame = json.dumps(example)
    ours = {tag(each): messages.decode_from_gateway for each in messages.FromGateway.__args__}
    theirs = {tag(each): messages.decode_from_server for each in messages.FromServer.__args__}
    message = {**ours, **theirs}[example["type"]](frame)
    assert set(example) - {"type"} <= set(message.__struct_fields__), "a member that no message has"
    if "body" in example:
        body = {"batch": batch.Body, "gap": messages.GapBody, "clock": ClockState}[example["type"]]
        msgspec.json.decode(json.dumps(example["body"]), type=body)
    side("FromGateway" if example["type"] in ours else "FromServer").validate(example)
    VALIDATOR.validate(example)


def tag(struct: type[msgspec.Struct]) -> object:
    return struct.__struct_config__.tag


def test_there_is_an_example_of_every_message_and_a_line_in_the_table() -> None:
    kinds = {tag(each) for union in (messages.FromGateway, messages.FromServer) for each in union.__args__}
    assert kinds == {kind(example) for example in examples()}
    listed = re.findall(r"^\| `(\w+)` \| (gateway|server) \| (.*?) \|", TEXT, re.MULTILINE)
    assert {name for name, _, _ in listed} == kinds
    for name, who, members in listed:
        side_of = messages.FromGateway if who == "gateway" else messages.FromServer
        (struct,) = [each for each in side_of.__args__ if tag(each) == name]
        required, _, optional = members.partition("\\[")
        fields = {field.name: field.required for field in msgspec.structs.fields(struct)}
        for field, needed in fields.items():
            assert re.search(rf"\b{field}\b", required if needed else optional), f"{name}: {field}"


def test_the_example_of_a_batch_means_what_the_text_says() -> None:
    """[D2]"""
    (example,) = [each for each in examples() if each["type"] == "batch"]
    found = list(batch.readings(batch.decode(json.dumps(example["body"]).encode())))
    assert [(each.device, each.point, each.value, each.unit, each.status.value, each.utc_ms) for each in found] == [
        ("meter-1", "u", 230.1, "V", "good", 1_763_910_234_567),
        ("meter-1", "i", 1.5, "A", "good", 1_763_910_234_567),
        ("meter-1", "u", 230.2, "V", "good", 1_763_910_235_000),
        ("meter-1", "i", None, "A", "bad:comm_timeout", 1_763_910_235_000),
        ("door", "open", True, "", "good", 1_763_910_234_979),
    ]
    assert "1,763,910,234,567" in TEXT
    assert "5 readings" in TEXT


def test_the_example_of_resuming_is_what_a_session_does() -> None:
    """The hello, the welcome and the table behind them, with the numbers that they have."""
    hello, welcome = (next(each for each in examples() if each["type"] == name) for name in ("hello", "welcome"))
    rows = re.findall(r"^\| `([0-9a-f]{4})…` (\w+) \| .*? \| (\d+) \| (.*) \|$", TEXT, re.MULTILINE)
    assert len(rows) == 3
    for offer, (short, _, mark, does) in zip(hello["streams"], rows, strict=True):
        assert offer["stream"].startswith(short)
        assert welcome["marks"][offer["stream"]] == int(mark)
        if offer["first"] == offer["next"]:
            assert f"number {offer['next']}" in does
        elif int(mark) + 1 < offer["first"]:
            assert f"{int(mark) + 1} … {offer['first'] - 1}" in does
        else:
            assert f"sends {int(mark) + 1}" in does


# ── words and limits ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_numbers_are_those_of_the_code() -> None:
    limits = TEXT[TEXT.index("## 12.") :]
    assert SUBPROTOCOL in TEXT.splitlines()[0]
    for number in (
        MAX_MESSAGE_BYTES,
        MAX_DOWN_BYTES,
        MAX_BATCH_BYTES,
        messages.MAX_BATCH_READINGS,
        messages.MAX_OFFERS,
        messages.MAX_COMMAND_ID,
        messages.MAX_OPEN_COMMANDS,
        MAX_WINDOW.batches,
        COMMAND_BURST,
    ):
        assert f"{number:,}" in limits
    assert f"{COMMANDS_PER_S:g} a second" in limits
    assert MAX_WINDOW.bytes == 8 << 20


@pytest.mark.parametrize("words", [Outcome, Status, GapReason, Trust, Lane])
def test_every_outcome_has_its_word_on_the_wire(words: type[Outcome | Status | GapReason | Trust | Lane]) -> None:
    """[K6b] So have statuses, reasons of gaps, trust and lanes; and the text has no word that the code has not."""
    for word in words:
        assert f"`{word.value}`" in TEXT, word
    if words is Status:
        table = re.findall(r"^\| `(good|uncertain:\w+|bad:\w+)` \| (yes|null) \|", TEXT, re.MULTILINE)
        assert dict(table) == {each.value: "null" if each.quality == "bad" else "yes" for each in Status}


def test_a_record_of_the_largest_size_passes() -> None:
    """[C6d]"""
    body = b'"' + b"x" * (MAX_BATCH_BYTES - 2) + b'"'
    for lane in Lane:
        for what in (RecordKind.BATCH, RecordKind.GAP):
            record = Record("f" * 32, lane, 2**63 - 1, what, body, last=2**63 - 1)
            assert len(messages.encode_record(record)) <= MAX_MESSAGE_BYTES
            assert msgspec.json.decode(messages.encode_record(record))["seq"] == 2**63 - 1


# ── bodies ───────────────────────────────────────────────────────────────────────────────────────────────────────────

VALUES = st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False)
CLOCKS = st.builds(ClockState, st.just("b" * 32), st.integers(0, 2**45), st.integers(-1, 1000), st.sampled_from(Trust))


@st.composite
def rows(draw: st.DrawFn) -> list[Row]:
    shapes = [
        Shape(f"device-{n}", tuple(f"p{i}" for i in range(width)), ("V",) * width)
        for n, width in enumerate(draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    ]
    made = []
    for _ in range(draw(st.integers(1, 12))):
        shape = draw(st.sampled_from(shapes))
        width = len(shape.points)
        values: list[Value | None] = draw(st.lists(VALUES | st.text(), min_size=width, max_size=width))
        status = draw(st.none() | st.lists(st.sampled_from(Status), min_size=width, max_size=width).map(tuple))
        made.append(Row(shape, draw(st.integers(0, 2**40)), tuple(values), status, draw(st.none() | st.integers(0, 9))))
    return made


@settings(max_examples=50, deadline=None)
@given(rows(), CLOCKS)
def test_what_is_encoded_is_a_body_of_this_text(made: list[Row], clock: ClockState) -> None:
    """[D1] It fits the schema, its columns fit one another, and it says what went in."""
    raw = batch.encode(made, clock)
    plain = json.loads(raw)
    BODY.validate(plain)
    for group in plain["groups"]:
        width, height = len(group["points"]), len(group["t"])
        assert len(group["units"]) == len(group["v"]) == len(group.get("q", group["v"])) == width
        for column in [*group["v"], *(group.get("q") or ()), group.get("source_ms")]:
            assert column is None or len(column) == height
    back = sorted(_plain(row) for row in batch.rows(batch.decode(raw)))
    assert back == sorted(_plain(row) for row in made)


def _plain(row: Row) -> str:
    status = row.status or (Status.GOOD,) * len(row.values)
    return repr((row.shape.device, row.at_ms, row.values, [each.value for each in status], row.source_ms))


def test_every_status_of_ours_has_the_form_and_stands_in_the_text() -> None:
    """[D6a] The same form by the types and by the schema."""
    word = side("Status")
    for status in Status:
        assert re.fullmatch(STATUS_PATTERN, status.value)
        word.validate(status.value)
    for text in (
        "bad",
        "bad:",
        "good:",
        "best:of_all",
        "Bad:crc",
        " bad:crc",
        "bad:a b",
        "bad:é",
        "bad:" + 49 * "x",
        "",
    ):
        assert not word.is_valid(text)
        with pytest.raises(ValueError, match="is not a valid Status"):
            Status(text)


def _with_status(word: Any) -> Entry:
    """The example of a batch, with another word in it."""
    (example,) = [each for each in examples() if each["type"] == "batch"]
    example["body"]["groups"][0]["q"][1][1] = word
    message = messages.decode_from_gateway(json.dumps(example))
    assert isinstance(message, messages.Batch)
    entry = entry_of(message, "g", message.seq, message.seq, 0)
    assert json.loads(entry.raw) == example["body"]
    return entry


@pytest.mark.parametrize("word", ["bad", "best:of_all", "bad:a b", "bad:" + 49 * "x", 7])
def test_a_status_of_another_form_makes_a_dead_letter(word: Any) -> None:
    """[D6c] It is stored as it came and acked; it closes nothing."""
    entry = _with_status(word)
    assert entry.body is None
    assert entry.poison


def test_a_gap_that_claims_less_than_nothing_makes_a_dead_letter() -> None:
    """[D6c] Counted in, it would hide what others have lost."""
    (example,) = [each for each in examples() if each["type"] == "gap"]
    example["body"]["readings"] = -1
    message = messages.decode_from_gateway(json.dumps(example))
    assert isinstance(message, messages.Gap)
    assert entry_of(message, "g", message.seq, message.last, 0).poison


def test_a_status_of_a_later_version_goes_through_as_it_came() -> None:
    entry = _with_status("bad:of_tomorrow")
    assert isinstance(entry.body, batch.Body)
    last = list(batch.readings(entry.body))[3]
    assert (last.status, last.status.quality, last.status.reason) == ("bad:of_tomorrow", "bad", "of_tomorrow")
    assert json.loads(msgspec.json.encode(entry.body)) == json.loads(entry.raw)


# ── the schema ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_file_is_what_the_types_say() -> None:
    assert schema.FILE.read_text() == schema.text(), "python -m gateway.protocol.schema writes it"
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("example", list(examples()), ids=kind)
def test_members_that_nobody_knows_are_ignored(example: dict[str, Any]) -> None:
    """[C5d] At any depth, by types and by schema; the server's side is held by a check."""
    known = messages.decode_from_server if example["type"] in SERVER else messages.decode_from_gateway
    assert _same(known(json.dumps(strange(example))), known(json.dumps(example)))
    VALIDATOR.validate(strange(example))


SERVER = {tag(each) for each in messages.FromServer.__args__}
FREE = ("marks", "devices", "writable", "values", "body")
"""Members whose own members are names, or that are read by themselves."""


def strange(value: Any) -> Any:
    """The same with a member in every object that no text knows."""
    if isinstance(value, list):
        return [strange(each) for each in value]
    if not isinstance(value, dict):
        return value
    return {
        **{key: each if key in FREE else strange(each) for key, each in value.items()},
        "of tomorrow": {"deep": [1, None, {}]},
    }


def _same(one: object, other: object) -> bool:
    return messages.encode(one) == messages.encode(other)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong",
    [
        {"type": "welcome", "sink": "short", "session": "1", "marks": {}},
        {"type": "welcome", "sink": "c" * 32, "session": "1" * 129, "marks": {}},
        {"type": "welcome", "sink": "c" * 32, "session": "1", "marks": {"a" * 32: -1}},
        {"type": "ack", "marks": {"a" * 32: 2**63}},
        {"type": "ack", "marks": {"a" * 32: "1"}},
        {"type": "nack", "stream": "a" * 32},
        {"type": "flow", "window": {"batches": -1, "bytes": 1}},
        {"type": "move", "deadline_ms": 2**53 + 1},
        {"type": "command", "id": "c", "device": "d", "op": "write", "ttl_ms": 1},
        {"type": "nonsense"},
        {},
    ],
    ids=str,
)
def test_what_the_types_refuse_the_schema_refuses_too(wrong: dict[str, Any]) -> None:
    with pytest.raises(messages.RemoteProtocolError):
        messages.decode_from_server(json.dumps(wrong))
    assert not side("FromServer").is_valid(wrong)
