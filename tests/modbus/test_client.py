"""The protocol core alone, in virtual time: whatever the line does, a value is the one that was asked for."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.connectors.modbus.client import Client, Reply
from gateway.connectors.modbus.framing import ASCII, RTU, TCP, Framing, crc
from gateway.connectors.modbus.request import Function, Request
from gateway.model import Status

settings.register_profile("modbus", deadline=None)
settings.load_profile("modbus")

TIMEOUT, WINDOW, GAP = 0.3, 0.6, 0.005
FRAMINGS = (RTU, TCP, ASCII)
READS = (Function.READ_HOLDING_REGISTERS, Function.READ_INPUT_REGISTERS)


def client(framing: Framing = RTU, echo: bool | None = False) -> Client:
    return Client(framing, 0.0, timeout=TIMEOUT, late_window=WINDOW, character_s=0.0, echo=echo)


def holding(address: int, quantity: int = 2, unit: int = 1) -> Request:
    return Request(unit, Function.READ_HOLDING_REGISTERS, address, quantity)


def rtu(unit: int, pdu: bytes) -> bytes:
    frame = bytes([unit]) + pdu
    return frame + crc(frame)


def right_data(request: Request) -> bytes:
    """The register's own address, made different by unit and function."""
    base = request.unit * 7000 + request.function * 1000
    words = [(base + request.address + i) & 0xFFFF for i in range(request.quantity)]
    return struct.pack(f">{len(words)}H", *words)


def answer(request: Request, frame: bytes, framing: Framing) -> bytes:
    if request.writes:
        pdu = request.pdu()[:5]
    else:
        data = right_data(request)
        pdu = bytes([request.function, len(data)]) + data
    return framing.frame(request.unit, pdu, int.from_bytes(frame[:2], "big") if framing is TCP else 0)


def test_a_tcp_request_carries_its_own_transaction() -> None:
    core = client(TCP)
    first = core.start(holding(0), 0.0)
    assert first.hex() == "000100000006010300000002"
    core.received(answer(holding(0), first, TCP), 0.01)
    assert core.start(holding(0), 0.1)[:2].hex() == "0002"


def test_an_answer_to_an_older_tcp_transaction_is_dropped_and_the_right_one_awaited() -> None:
    core = client(TCP)
    old = core.start(holding(100), 0.0)
    assert core.tick(0.3) == Reply(None, fault=Status.COMM_TIMEOUT)
    now = core.free_at(1, 0.0)
    new = core.start(holding(100), now)
    both = answer(holding(900), old, TCP) + answer(holding(100), new, TCP)
    assert core.received(both, now + 0.01) == Reply(right_data(holding(100)))


def test_a_silent_unit_is_quarantined_and_the_others_are_not() -> None:
    core = client()
    start = core.free_at(1, GAP)
    core.start(holding(100), start)
    assert core.deadline() == pytest.approx(start + TIMEOUT)
    assert core.tick(start + 0.299) is None
    end = start + TIMEOUT
    assert core.tick(end) == Reply(None, fault=Status.COMM_TIMEOUT)
    assert core.free_at(1, GAP) == pytest.approx(end + WINDOW)
    assert core.free_at(2, GAP) <= end
    # the late reply ends it
    core.received(answer(holding(100), b"", RTU), end + 0.05)
    assert core.free_at(1, GAP) == pytest.approx(end + 0.05 + GAP)
    assert core.late_discarded == {1: 1}


def test_the_late_reply_of_one_unit_in_front_of_anothers_answer_does_no_harm() -> None:
    core = client()
    core.start(holding(100, unit=1), 1.0)
    core.tick(1.3)
    core.start(holding(100, unit=2), 1.31)
    late = answer(holding(100, unit=1), b"", RTU)
    assert core.received(late[:4], 1.32) is None
    reply = core.received(late[4:] + answer(holding(100, unit=2), b"", RTU), 1.33)
    assert reply == Reply(right_data(holding(100, unit=2)))
    assert core.late_discarded == {1: 1}
    assert core.free_at(1, GAP) < 1.4


def test_an_answer_after_a_window_in_silence_is_believed_only_for_the_same_question() -> None:
    core = client()
    core.start(holding(100), 1.0)
    core.tick(1.3)
    core.start(holding(100), 1.9)
    assert core.received(answer(holding(100), b"", RTU), 2.0) == Reply(right_data(holding(100)))
    assert core.free_at(1, GAP) == pytest.approx(2.0 + WINDOW)  # there may be a second answer under way

    core = client()
    core.start(holding(100), 1.0)
    core.tick(1.3)
    core.start(holding(200), 1.9)
    doubtful = core.received(answer(holding(100), b"", RTU), 2.0)
    assert doubtful == Reply(None, fault=Status.COMM_TIMEOUT, doubtful=True)
    assert doubtful.heard
    core.received(answer(holding(200), b"", RTU), 2.1)
    later = core.free_at(1, GAP)
    assert later == pytest.approx(2.1 + 2 * WINDOW)  # it was later than the window: that one grows
    core.start(holding(300), later)
    assert core.received(answer(holding(300), b"", RTU), later + 0.1) == Reply(right_data(holding(300)))


def test_a_question_asked_twice_is_not_answered_by_the_reply_to_a_third() -> None:
    core = client()
    for request in (holding(100), holding(0)):
        now = core.free_at(1, GAP)
        core.start(request, now)
        core.tick(now + TIMEOUT)
    now = core.free_at(1, GAP)
    core.start(holding(0), now)
    reply = core.received(answer(holding(100), b"", RTU), now + 0.1)
    assert reply is not None
    assert reply.doubtful


def test_the_acknowledgement_of_an_earlier_write_is_not_taken_for_that_of_this_one() -> None:
    core = client()
    first, second = (Request(1, Function.WRITE_MULTIPLE_REGISTERS, 7, 1, bytes([0, n])) for n in (1, 2))
    core.start(first, 1.0)
    core.tick(1.3)
    now = core.free_at(1, GAP)
    core.start(second, now)
    reply = core.received(answer(first, b"", RTU), now + 0.1)
    assert reply is not None
    assert reply.doubtful


def test_an_exception_is_an_answer() -> None:
    core = client()
    core.start(holding(0), 1.0)
    reply = core.received(rtu(1, b"\x83\x02"), 1.01)
    assert reply == Reply(None, code=2)
    assert reply.heard


@pytest.mark.parametrize(
    "wrong",
    [
        rtu(2, b"\x03\x04\x00\x01\x00\x02"),  # another unit
        rtu(1, b"\x04\x04\x00\x01\x00\x02"),  # another function
        rtu(1, b"\x03\x02\x00\x01"),  # another count
        rtu(1, b"\x84\x02"),  # an exception to another function
        rtu(1, b"\x03\x04\x00\x01\x00\x02")[:-1] + b"\x00",  # CRC
    ],
)
def test_what_does_not_fit_the_question_is_no_answer(wrong: bytes) -> None:
    core = client()
    core.start(holding(0), 1.0)
    assert core.received(wrong, 1.01) is None
    assert core.received(answer(holding(0), b"", RTU), 1.02) == Reply(right_data(holding(0)))


@pytest.mark.parametrize(
    ("wrong", "fits"),
    [("0600010003", True), ("0600020003", False), ("0600010004", False), ("100001000", False)],
)
def test_a_write_is_acknowledged_by_its_own_address_and_value_only(wrong: str, fits: bool) -> None:
    core = client()
    core.start(Request(1, Function.WRITE_SINGLE_REGISTER, 1, 1, b"\x00\x03"), 1.0)
    reply = core.received(rtu(1, bytes.fromhex(wrong.ljust(10, "0"))), 1.01)
    assert (reply == Reply(b"")) is fits


def test_what_looks_like_the_answer_but_for_its_crc_may_be_noise_and_the_answer_is_still_owed() -> None:
    """Whoever asked for other registers at once would take the late answer for theirs."""
    core = client()
    core.start(holding(0), 1.0)
    core.received(answer(holding(0), b"", RTU)[:-1] + b"\xaa\xbb", 1.01)
    assert core.tick(1.3) == Reply(None, fault=Status.CRC)
    assert core.free_at(1, GAP) > 1.3
    core.received(answer(holding(0), b"", RTU), 1.5)
    assert core.late_discarded == {1: 1}
    assert core.free_at(1, GAP) <= 1.6


def test_an_echo_is_learned_from_a_read_and_taken_off_a_write() -> None:
    core = client(echo=None)
    frame = core.start(holding(0), 1.0)
    assert core.received(frame, 1.01) is None
    assert core.echo is True
    assert core.received(answer(holding(0), b"", RTU), 1.02) == Reply(right_data(holding(0)))
    write = Request(1, Function.WRITE_SINGLE_REGISTER, 1, 1, b"\x00\x03")
    frame = core.start(write, 1.1)
    assert core.received(frame, 1.11) is None  # the echo is the answer's twin
    assert core.received(frame, 1.12) == Reply(b"")


def test_a_line_without_echo_is_learned_from_a_read() -> None:
    core = client(echo=None)
    core.start(holding(0), 1.0)
    core.received(answer(holding(0), b"", RTU), 1.01)
    assert core.echo is False
    frame = core.start(Request(1, Function.WRITE_SINGLE_REGISTER, 1, 1, b"\x00\x03"), 1.1)
    assert core.received(frame, 1.11) == Reply(b"")


def test_no_write_is_started_before_the_echo_is_known() -> None:
    with pytest.raises(AssertionError, match="echo"):
        client(echo=None).start(Request(1, Function.WRITE_SINGLE_REGISTER, 1, 1, b"\x00\x03"), 1.0)


def test_an_answer_made_of_the_very_bytes_of_its_question_proves_nothing_about_an_echo() -> None:
    core = client(echo=None)
    # 24 coils from 0x0300: question and answer are both 01 01 03 xx xx xx crc crc
    frame = core.start(Request(1, Function.READ_COILS, 0x0300, 24), 1.0)
    assert core.received(frame, 1.01) is None
    assert core.echo is None
    core.tick(1.3)
    known = client(echo=False)
    known.start(Request(1, Function.READ_COILS, 0x0300, 24), 1.0)
    assert known.received(frame, 1.01) == Reply(b"\x00\x00\x18")


def test_the_response_time_counts_from_the_end_of_the_frame_on_the_wire() -> None:
    slow = Client(RTU, 0.0, timeout=0.3, late_window=0.0, character_s=10 / 9600)
    slow.start(holding(0, 125), 0.0)
    assert slow.deadline() == pytest.approx(0.3 + (8 + 255) * 10 / 9600)


class Wire:
    """A line and the slaves on it: they work in order, each takes its time, and what they say is delivered in bits."""

    def __init__(self, core: Client, framing: Framing, echo: bool, dice: random.Random) -> None:
        self.core = core
        self.framing = framing
        self.echo = echo
        self.dice = dice
        self.now = 1.0
        self.coming: list[tuple[float, bytes]] = []
        self.free = 0.0

    def ask(self, request: Request, delay: float, lost: bool, noise: bytes, twice: bool) -> Reply:
        self._pass_quiet(request.unit)
        frame = self.core.start(request, self.now)
        if self.echo:
            self._deliver(self.now, frame)
        if not lost:
            self.free = max(self.free, self.now) + delay
            data = answer(request, frame, self.framing)
            noise = noise if self.framing.serial else b""  # TCP has none
            self._deliver(self.free, noise + data * (2 if twice else 1) + noise)
        while True:
            deadline = self.core.deadline()
            assert deadline is not None
            if self.coming and self.coming[0][0] < deadline:
                if (reply := self._next()) is not None:
                    return reply
            else:
                self.now = deadline
                reply = self.core.tick(deadline)
                assert reply is not None
                return reply

    def _deliver(self, at: float, data: bytes) -> None:
        # one wire, one stream: what is said later comes later
        at = max(at, self.coming[-1][0]) if self.coming else at
        while data:
            size = self.dice.randint(1, len(data))
            self.coming.append((at, data[:size]))
            data, at = data[size:], at + self.dice.random() * 0.002

    def _next(self) -> Reply | None:
        at, data = self.coming.pop(0)
        self.now = max(self.now, at)
        return self.core.received(data, self.now)

    def _pass_quiet(self, unit: int) -> None:
        while self.coming and self.coming[0][0] <= max(self.core.free_at(unit, GAP), self.now):
            assert self._next() is None, "a reply that nobody waits for"
        self.now = max(self.now, self.core.free_at(unit, GAP))


delays = st.one_of(st.just(0.01), st.floats(0.0, TIMEOUT + 0.9 * WINDOW))
questions = st.builds(
    Request,
    st.integers(1, 3),
    st.sampled_from(READS),
    st.sampled_from([0, 100, 200, 300]),
    st.sampled_from([1, 2, 2, 2, 4]),
)
steps = st.tuples(questions, delays, st.booleans(), st.binary(max_size=4), st.booleans())


@pytest.mark.parametrize("framing", FRAMINGS)
@given(st.lists(steps, min_size=2, max_size=14), st.booleans(), st.integers(0, 2**32))
@settings(max_examples=100)
def test_never_a_value_of_another_address_table_or_unit(
    framing: Framing,
    script: list[tuple[Request, float, bool, bytes, bool]],
    echo: bool,
    seed: int,
) -> None:
    dice = random.Random(seed)
    echo = echo and framing.serial
    core = client(framing, echo=None)
    wire = Wire(core, framing, echo, dice)
    for request, delay, rare, noise, twice in script:
        lost = rare and dice.random() < 0.3
        reply = wire.ask(request, delay, lost, noise, twice and dice.random() < 0.3)
        if reply.data is not None:
            assert reply.data == right_data(request)
        assert core.echo in (None, echo)


@given(st.floats(0.0, 8 * (TIMEOUT + WINDOW)), st.lists(questions, min_size=3, max_size=12), st.integers(0, 2**32))
@settings(max_examples=100)
def test_a_slave_that_is_late_once_by_any_amount_spoils_no_value(
    delay: float, asked: Iterable[Request], seed: int
) -> None:
    wire = Wire(client(), RTU, False, random.Random(seed))
    for number, request in enumerate(asked):
        reply = wire.ask(request, delay if number == 0 else 0.01, False, b"", False)
        if reply.data is not None:
            assert reply.data == right_data(request)


@given(
    st.sampled_from(FRAMINGS),
    st.sampled_from([None, True, False]),
    st.lists(
        st.one_of(
            st.binary(max_size=300),
            st.floats(0.0, 1.0),
            st.tuples(st.integers(0, 255), st.sampled_from(Function), st.integers(0, 65535), st.integers(1, 125)),
            st.just("answer"),
        ),
        max_size=40,
    ),
)
def test_no_bytes_and_no_times_make_the_core_fail_or_grow(
    framing: Framing, echo: bool | None, moves: list[object]
) -> None:
    core, now, pending = client(framing, echo), 0.0, None
    for move in moves:
        if isinstance(move, float):
            now += move
            if core.tick(now) is not None:
                pending = None
        elif isinstance(move, tuple) and pending is None:
            unit, function, address, quantity = move
            data = bytes(2 if function in (5, 6) else 2 * quantity) if function >= 5 else b""
            request = Request(unit, function, address, quantity, data)
            if not request.writes or core.echo is not None:
                pending = request, core.start(request, now)
        else:
            data = move if isinstance(move, bytes) else b""
            if move == "answer" and pending:
                data = answer(*pending, framing)
            if core.received(data, now) is not None:
                pending = None
        assert (core.deadline() is None) is (pending is None)
        assert len(core._buffer) <= 2 * framing.frame_bytes_max
        assert core.free_at(1, GAP) < now + 20 * WINDOW


def test_an_echo_that_was_damaged_is_not_taken_for_none() -> None:
    core = client(echo=None)
    frame = core.start(holding(0), 1.0)
    core.received(frame[:-1] + b"\xff", 1.01)
    assert core.received(answer(holding(0), b"", RTU), 1.02) == Reply(right_data(holding(0)))
    assert core.echo is None  # the next read tells
    core.received(core.start(holding(0), 1.1), 1.11)
    assert core.echo is True


def test_a_damaged_frame_that_may_be_anothers_leaves_the_answer_owed() -> None:
    core = client()
    core.start(holding(100, unit=2), 1.0)
    core.tick(1.3)
    core.start(holding(100), 1.31)
    # the late answer of unit 2, and damage made it look like one of unit 1
    core.received(b"\x01" + answer(holding(100, unit=2), b"", RTU)[1:], 1.32)
    assert core.tick(core.deadline() or 0.0) == Reply(None, fault=Status.CRC)
    assert core.free_at(1, GAP) > 2.0


def test_a_glitch_in_front_of_an_answer_is_no_echo() -> None:
    core = client(echo=None)
    core.start(holding(0), 1.0)
    core.received(b"\x00" + answer(holding(0), b"", RTU), 1.02)
    assert core.echo is False


def test_the_very_bytes_of_a_question_before_another_answer_were_an_echo() -> None:
    core = client(echo=None)
    frame = core.start(Request(1, Function.READ_COILS, 0x0300, 24), 1.0)
    core.received(frame, 1.01)
    assert core.received(rtu(1, b"\x01\x03\x01\x02\x03"), 1.02) == Reply(b"\x01\x02\x03")
    assert core.echo is True


def test_a_device_that_hung_widens_its_window_once_however_much_it_owes() -> None:
    core = client()
    for address in (0, 100, 200):
        now = core.free_at(1, GAP)
        core.start(holding(address), now)
        core.tick(now + TIMEOUT)
    for address in (0, 100, 200):
        core.received(answer(holding(address), b"", RTU), now + TIMEOUT + 0.01)
    assert core.free_at(1, GAP) == pytest.approx(now + TIMEOUT + 0.01 + 2 * WINDOW)


def test_who_says_that_there_is_no_echo_is_put_right_by_the_first_read() -> None:
    core = client(echo=False)
    frame = core.start(holding(0), 1.0)
    assert core.received(frame + answer(holding(0), b"", RTU), 1.02) == Reply(right_data(holding(0)))
    assert core.echo is True
    core.start(Request(1, Function.WRITE_SINGLE_REGISTER, 1, 1, b"\x00\x03"), 1.1)
    assert core.received(rtu(1, b"\x06\x00\x01\x00\x03"), 1.11) is None


def test_patience_with_a_line_that_is_never_silent_shortens_no_quarantine() -> None:
    core = client()
    core.start(holding(100), 1.0)
    core.tick(1.3)
    core.received(b"\x55", 1.4)
    assert core.free_at(2, 10.0, patience=1.5) == 1.5
    assert core.free_at(1, 10.0, patience=1.5) == pytest.approx(1.3 + WINDOW)


def test_a_device_that_hung_answers_in_its_order_and_what_it_still_owes_stays_doubtful() -> None:
    core = client()
    for address in (0, 100, 200):
        now = core.free_at(1, GAP)
        core.start(holding(address), now)
        core.tick(now + TIMEOUT)
    core.received(answer(holding(0), b"", RTU), now + TIMEOUT + 0.01)
    # the window passes in silence, and two answers are still under way
    now = core.free_at(1, GAP)
    core.start(holding(300), now)
    reply = core.received(answer(holding(100), b"", RTU), now + 0.01)
    assert reply is not None
    assert reply.doubtful
