"""What travels on a bus, as lines that a person reads at a glance."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.connectors.modbus.framing import ASCII, RTU, TCP, Framing
from gateway.connectors.modbus.request import Function, Request
from gateway.connectors.modbus.trace import Entry, Tracer, frames, question
from gateway.connectors.tap import Event, Tap, What

KINDS = [("modbus-rtu", RTU), ("modbus-tcp", TCP), ("modbus-ascii", ASCII)]
READ = Request(7, Function.READ_INPUT_REGISTERS, 100, 2)
VALUES = b"\x04\x04\x43\x66\x1a\x00"


class Wire:
    """Says what happens on a line, and keeps what the tracer makes of it."""

    def __init__(self, kind: str = "modbus-rtu", framing: Framing = RTU) -> None:
        self.framing = framing
        self.tracer = Tracer(kind)
        self.entries: list[Entry] = []
        self.now_ms = 0
        self.number = 0

    def _feed(self, what: What, data: bytes = b"", said: str = "") -> None:
        self.entries += self.tracer.feed(Event(self.now_ms * 1_000_000, what, data, said))

    def ask(self, request: Request = READ) -> Wire:
        self.number += 1
        self._feed(What.SENT, self.framing.frame(request.unit, request.pdu(), self.number))
        return self

    def frame(self, pdu: bytes = VALUES, unit: int = 7, number: int = 0) -> bytes:
        return self.framing.frame(unit, pdu, number or self.number)

    def hear(self, data: bytes, after_ms: int = 23) -> Wire:
        self.now_ms += after_ms
        self._feed(What.RECEIVED, data)
        return self

    def end(self, said: str = "ok", after_ms: int = 0) -> Wire:
        self.now_ms += after_ms
        self._feed(What.ENDED, said=said)
        return self

    def lines(self) -> list[tuple[int | None, str, str, str]]:
        return [(each.unit, each.question, each.answer, each.verdict) for each in self.entries]


@pytest.mark.parametrize(("kind", "framing"), KINDS)
def test_a_question_and_its_answer_are_one_line(kind: str, framing: Framing) -> None:
    wire = Wire(kind, framing).ask()
    whole = wire.frame()
    wire.hear(whole[:4], 20).hear(whole[4:], 3).end()
    assert wire.lines() == [(7, "read input 100…101", "17254 6656", "ok")]
    assert wire.entries[0].took_ms == 23
    assert wire.entries[0].received == whole


def test_a_refusal_says_why() -> None:
    wire = Wire().ask()
    wire.hear(wire.frame(b"\x84\x02")).end("exception")
    assert wire.lines() == [(7, "read input 100…101", "illegal data address (exception 2)", "refused")]


@pytest.mark.parametrize(
    ("request_", "answer", "said"),
    [
        (Request(1, Function.READ_COILS, 5, 3), b"\x01\x01\x05", ("read coil 5…7", "1 0 1")),
        (Request(1, Function.WRITE_SINGLE_COIL, 3, data=b"\xff\0"), b"\x05\0\x03\xff\0", ("write coil 3 = on", "done")),
        (
            Request(1, Function.WRITE_SINGLE_REGISTER, 40, data=b"\0\xd7"),
            b"\x06\0\x28\0\xd7",
            ("write holding 40 = 215", "done"),
        ),
        (
            Request(1, Function.WRITE_MULTIPLE_REGISTERS, 40, 2, b"\0\1\0\2"),
            b"\x10\0\x28\0\x02",
            ("write holding 40…41 = 1 2", "done"),
        ),
        (Request(1, Function.REPORT_SERVER_ID), b"\x11\x04AB\0\xff", ("server id", "AB")),
        (
            Request(1, Function.ENCAPSULATED, data=b"\x0e\1\0"),
            b"\x2b\x0e\1\1\0\0\1\0\x03ACM",
            ("identification", "ACM"),
        ),
    ],
)
def test_every_function_has_its_words(request_: Request, answer: bytes, said: tuple[str, str]) -> None:
    wire = Wire().ask(request_)
    wire.hear(wire.frame(answer, 1)).end()
    assert wire.lines() == [(1, *said, "ok")]


def test_silence_and_the_late_answer_are_two_lines() -> None:
    wire = Wire().ask().end("comm_timeout", 500)
    wire.hear(wire.frame(), 340)
    assert wire.lines() == [
        (7, "read input 100…101", "", "no answer, quarantined"),
        (7, "read input 100…101", "17254 6656", "late 840 ms, thrown away"),
    ]


def test_a_late_answer_in_the_middle_of_another_question_is_not_its_answer() -> None:
    wire = Wire().ask().end("comm_timeout", 500)
    late = wire.frame()
    wire.ask(Request(8, Function.READ_INPUT_REGISTERS, 0, 2))
    wire.hear(late).hear(wire.frame(b"\x04\x04\0\1\0\2", 8)).end()
    assert [(each.unit, each.verdict) for each in wire.entries[1:]] == [(7, "late 523 ms, thrown away"), (8, "ok")]
    assert wire.entries[2].answer == "1 2"


def test_an_echo_is_said_and_not_taken_for_an_answer() -> None:
    wire = Wire().ask()
    wire.hear(RTU.frame(7, READ.pdu(), 0) + wire.frame()).end()
    assert wire.lines() == [(7, "read input 100…101", "17254 6656", "ok, echo")]


def test_another_master_and_noise_are_shown_as_what_they_are() -> None:
    wire = Wire()
    wire.hear(b"\xff\0" + wire.frame(Request(9, Function.READ_HOLDING_REGISTERS, 0, 2).pdu(), 9))
    wire.hear(wire.frame(b"\x03\x04\0\1\0\2", 9)).hear(b"\xfe").ask().hear(wire.frame()).end()
    assert wire.lines() == [
        (None, "", "2 bytes: ff 00", "noise"),
        (9, "", "read holding 0…1", "foreign"),
        (9, "", "read holding: 1 2", "foreign"),
        (None, "", "1 byte: fe", "noise"),
        (7, "read input 100…101", "17254 6656", "ok"),
    ]


def test_a_spoilt_answer_shows_its_bytes() -> None:
    wire = Wire().ask()
    wire.hear(wire.frame()[:-1] + b"\0").end("crc")
    assert wire.lines() == [(7, "read input 100…101", "", "crc")]
    assert wire.entries[0].received == wire.frame()[:-1] + b"\0"


@pytest.mark.parametrize("late_first", [True, False])
def test_on_tcp_an_answer_with_an_old_number_is_late(late_first: bool) -> None:
    wire = Wire("modbus-tcp", TCP).ask().end("comm_timeout", 500).ask()
    late, right = wire.frame(number=1), wire.frame(b"\x04\x04\0\1\0\2")
    wire.hear(late + right if late_first else right + late).end()
    assert [each.verdict for each in wire.entries] == ["no answer", "late 523 ms, thrown away", "ok"]
    assert wire.entries[2].answer == "1 2"


def test_a_question_that_nobody_waits_for_any_more_is_given_up() -> None:
    wire = Wire().ask().ask()
    wire.hear(wire.frame()).end()
    assert [each.verdict for each in wire.entries] == ["given up", "ok"]


def test_a_medium_that_goes_is_a_line() -> None:
    wire = Wire().ask()
    wire._feed(What.LOST, said="/dev/ttyUSB0: hung up")
    assert wire.lines() == [(None, "", "/dev/ttyUSB0: hung up", "lost")]


@given(st.lists(st.tuples(st.sampled_from(What), st.binary(max_size=300)), max_size=30), st.sampled_from(KINDS))
def test_whatever_travels_a_tracer_makes_lines_of_it(
    events: list[tuple[What, bytes]], kind: tuple[str, Framing]
) -> None:
    tracer = Tracer(kind[0])
    for number, (what, data) in enumerate(events):
        for entry in tracer.feed(Event(number, what, data, "ok" if what is What.ENDED else "")):
            assert entry.verdict


@given(st.binary(max_size=64), st.binary(max_size=64), st.sampled_from(KINDS))
def test_a_frame_is_found_between_any_noise(before: bytes, after: bytes, kind: tuple[str, Framing]) -> None:
    name, framing = kind
    whole = framing.frame(7, VALUES, 258)
    found = [(each.unit, each.pdu) for each in frames(name, before + whole + after)]
    noise = [(each.unit, each.pdu) for each in frames(name, before)]
    assert (7, VALUES) in found or noise or name == "modbus-tcp"


def test_an_unknown_function_is_named_by_its_number() -> None:
    assert question(b"\x41\x01") == "function 65"
    assert question(b"\x07") == "function 7"


# ── the tap ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_tap_is_true_only_while_somebody_looks_and_a_slow_viewer_loses_the_oldest() -> None:
    async def scenario() -> None:
        tap = Tap()
        assert not tap
        tap.show(Event(0, What.SENT, b"nobody"))
        with tap.viewer(events=3) as viewer:
            assert tap
            for number in range(5):
                tap.show(Event(number, What.SENT))
            assert [event.at_ns for event in await anext(viewer)] == [2, 3, 4]
            assert viewer.missed == 2
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await anext(viewer)
        assert not tap

    asyncio.run(scenario())
