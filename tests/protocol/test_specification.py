"""The specification as a document: its numbers have tests, its examples are messages, its limits those of the code."""

from __future__ import annotations

import json
import re
from pathlib import Path

import msgspec
import pytest

from gateway.model import Lane, Outcome, Record, RecordKind
from gateway.protocol import messages
from gateway.protocol.messages import MAX_BATCH_BYTES, MAX_DOWN_BYTES, MAX_MESSAGE_BYTES, SUBPROTOCOL

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "gateway/protocol/README.md").read_text()
DEFINED = re.findall(r"^- \*\*([A-Z]\d+)\*\*", TEXT, re.MULTILINE)
TABLE = re.findall(r"^\| ((?:[A-Z]\d+(?:, )?)+) \| (.+) \|$", TEXT, re.MULTILINE)
TESTS = set(
    re.findall(
        r"def (test_\w+)",
        "".join(
            p.read_text() for area in ("protocol", "uplink", "ingest") for p in (ROOT / "tests" / area).glob("*.py")
        ),
    )
)
EXAMPLES = re.findall(r"^```json\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def test_every_requirement_has_a_test_and_every_test_named_exists() -> None:
    assert len(DEFINED) == len(set(DEFINED)), "a number names one requirement"
    named = {number: re.findall(r"`(\w+)`", tests) for numbers, tests in TABLE for number in numbers.split(", ")}
    assert sorted(named) == sorted(DEFINED)
    assert {test for tests in named.values() for test in tests} <= TESTS
    assert all(named.values())


def _examples() -> list[str]:
    found: list[str] = []
    decoder = json.JSONDecoder()
    for block in EXAMPLES:
        text = re.sub(r"\{…\}", "{}", block)
        while text.strip():
            _, end = decoder.raw_decode(text.lstrip())
            found.append(text.lstrip()[:end])
            text = text.lstrip()[end:]
    return found


@pytest.mark.parametrize("example", _examples(), ids=lambda text: json.loads(text)["type"])
def test_every_example_is_a_message(example: str) -> None:
    parsed = json.loads(example)
    if parsed["type"] == "hello":
        parsed["clock"] = {"boot": "0" * 32, "offset_ms": 0, "error_ms": 1, "trust": "synced"}
    frame = json.dumps(parsed)
    known = False
    for decode in (messages.decode_from_gateway, messages.decode_from_server):
        try:
            message = decode(frame)
        except messages.RemoteProtocolError:
            continue
        known = True
        assert set(parsed) - {"type"} <= set(message.__struct_fields__), "a member that no message has"
    assert known


def test_there_is_an_example_of_every_message() -> None:
    kinds = {kind for union in (messages.FromGateway, messages.FromServer) for kind in union.__args__}
    assert {kind.__struct_config__.tag for kind in kinds} == {json.loads(text)["type"] for text in _examples()}


def test_the_numbers_are_those_of_the_code() -> None:
    assert SUBPROTOCOL in TEXT.splitlines()[0]
    assert f"{MAX_MESSAGE_BYTES:,}" in TEXT
    assert f"{MAX_DOWN_BYTES:,}" in TEXT


def test_a_record_of_the_largest_size_passes() -> None:
    body = b'"' + b"x" * (MAX_BATCH_BYTES - 2) + b'"'
    for lane in Lane:
        record = Record("f" * 32, lane, 2**63 - 1, RecordKind.GAP, body, last=2**63 - 1)
        assert len(messages.encode_record(record)) <= MAX_MESSAGE_BYTES
    assert msgspec.json.decode(messages.encode_record(record))["seq"] == 2**63 - 1


def test_every_outcome_has_its_word_on_the_wire() -> None:
    for outcome in Outcome:
        assert f"`{outcome.value}`" in TEXT
