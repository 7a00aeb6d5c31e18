"""What is asked and what may come back, byte by byte, and what a unit says of itself."""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.connectors.modbus.client import Client, Reply
from gateway.connectors.modbus.framing import ASCII, RTU, TCP, Framing, crc, lrc
from gateway.connectors.modbus.identity import (
    Access,
    identification,
    identify,
    piece,
    server_id,
    single_object,
    text,
)
from gateway.connectors.modbus.request import PDU_BYTES_MAX, Function, Request
from gateway.model import Status

FRAMINGS = (RTU, TCP, ASCII)
HOLDING = Request(1, Function.READ_HOLDING_REGISTERS, 0x6B, 3)


def client(framing: Framing = RTU) -> Client:
    return Client(framing, 0.0, timeout=0.3, late_window=0.6)


@pytest.mark.parametrize(
    ("request_", "pdu"),
    [
        (Request(1, Function.READ_COILS, 0x13, 0x13), "0100130013"),
        (HOLDING, "03006b0003"),
        (Request(1, Function.WRITE_SINGLE_COIL, 0xAC, 1, b"\xff\x00"), "0500acff00"),
        (Request(1, Function.WRITE_SINGLE_REGISTER, 1, 1, b"\x00\x03"), "0600010003"),
        (Request(1, Function.WRITE_MULTIPLE_COILS, 0x13, 10, b"\xcd\x01"), "0f0013000a02cd01"),
        (Request(1, Function.WRITE_MULTIPLE_REGISTERS, 1, 2, b"\x00\x0a\x01\x02"), "100001000204000a0102"),
        (server_id(1), "11"),
        (Request(1, Function.MASK_WRITE_REGISTER, 4, 1, b"\x00\xf2\x00\x25"), "16000400f20025"),
        (
            Request(1, Function.READ_WRITE_MULTIPLE_REGISTERS, 0x0E, 3, b"\x00\xff" * 3),
            "17000e0003000e00030600ff00ff00ff",
        ),
        (identification(1, Access.BASIC), "2b0e0100"),
        (single_object(1, 0x80), "2b0e0480"),
    ],
)
def test_requests_are_the_standards_examples(request_: Request, pdu: str) -> None:
    assert request_.pdu().hex() == pdu


def test_the_checksums_are_the_standards_examples() -> None:
    assert crc(bytes.fromhex("0207")) == bytes.fromhex("4112")
    assert crc(bytes.fromhex("010300000002")) == bytes.fromhex("c40b")
    assert lrc(bytes.fromhex("0103006b0003")) == 0x8E
    assert ASCII.frame(1, HOLDING.pdu(), 0) == b":0103006B00038E\r\n"


IDENTITY = bytes.fromhex("2b0e0101000003") + b"\x00\x04ACME\x01\x03M-7\x02\x04V2.1"


@pytest.mark.parametrize(
    ("request_", "pdu", "data"),
    [
        (HOLDING, bytes.fromhex("03060001 0002 0003"), bytes.fromhex("000100020003")),
        (Request(1, Function.READ_COILS, 0, 10), b"\x01\x02\x05\x01", b"\x05\x01"),
        (Request(1, Function.WRITE_SINGLE_REGISTER, 1, 1, b"\0\3"), bytes.fromhex("0600010003"), b""),
        (Request(1, Function.WRITE_MULTIPLE_REGISTERS, 1, 2, bytes(4)), bytes.fromhex("1000010002"), b""),
        (Request(1, Function.MASK_WRITE_REGISTER, 4, 1, b"\0\xf2\0\x25"), bytes.fromhex("16000400f20025"), b""),
        (Request(1, Function.READ_WRITE_MULTIPLE_REGISTERS, 3, 2, bytes(4)), b"\x17\x04\1\2\3\4", b"\1\2\3\4"),
        (server_id(1), b"\x11\x05ACM7\xff", b"ACM7\xff"),
        (identification(1, Access.BASIC), IDENTITY, IDENTITY[3:]),
        (single_object(1, 2), bytes.fromhex("2b0e04810000010202") + b"V2", bytes.fromhex("810000010202") + b"V2"),
    ],
    ids=lambda value: value.function.name if isinstance(value, Request) else "",
)
@pytest.mark.parametrize("framing", FRAMINGS, ids=("rtu", "tcp", "ascii"))
@pytest.mark.parametrize("at_once", [True, False], ids=("whole", "byte by byte"))
def test_an_answer_is_taken_as_soon_as_it_is_whole_and_not_before(
    framing: Framing, request_: Request, pdu: bytes, data: bytes, at_once: bool
) -> None:
    core = client(framing)
    core.start(request_, 1.0)
    frame = framing.frame(1, pdu, 1)
    if not at_once:
        for byte in frame[:-1]:
            assert core.received(bytes([byte]), 1.1) is None
        frame = frame[-1:]
    assert core.received(frame, 1.2) == Reply(data)


@pytest.mark.parametrize(
    ("request_", "pdu"),
    [
        (HOLDING, "0304000100 02"),  # another count
        (HOLDING, "04060001 0002 0003"),  # another function
        (HOLDING, "8402"),  # an exception to another function
        (Request(1, Function.MASK_WRITE_REGISTER, 4, 1, b"\0\xf2\0\x25"), "16000400f20024"),  # another mask
        (Request(1, Function.MASK_WRITE_REGISTER, 4, 1, b"\0\xf2\0\x25"), "16000500f20025"),  # another address
        (Request(1, Function.READ_WRITE_MULTIPLE_REGISTERS, 3, 2, bytes(4)), "170200 01"),  # another count
        (server_id(1), "1100"),  # nothing said
        (server_id(1), "11fc" + "00" * 252),  # more than a PDU holds
        (identification(1, Access.BASIC), "2b0d01010000010000"),  # another interface
        (identification(1, Access.BASIC), "2b0e02020000010000"),  # another access
        (identification(1, Access.BASIC), "2b0e01010300010000"),  # more follows: neither yes nor no
        (identification(1, Access.BASIC), "2b0e010100000200fa" + "41" * 250 + "0101"),  # more than a PDU holds
        (single_object(1, 2), "2b0e048100000103 0141"),  # another object
        (single_object(1, 2), "2b0e0481000002020141 030141"),  # two objects
    ],
)
@pytest.mark.parametrize("framing", FRAMINGS, ids=("rtu", "tcp", "ascii"))
def test_what_does_not_fit_the_question_is_no_answer(framing: Framing, request_: Request, pdu: str) -> None:
    core = client(framing)
    core.start(request_, 1.0)
    assert core.received(framing.frame(1, bytes.fromhex(pdu), 1), 1.1) is None
    assert core.received(framing.frame(2, request_.pdu(), 1), 1.1) is None
    assert core.tick(core.deadline() or 0.0) is not None
    assert not core.late_discarded


@pytest.mark.parametrize("framing", FRAMINGS, ids=("rtu", "tcp", "ascii"))
def test_an_exception_is_an_answer_in_every_framing(framing: Framing) -> None:
    for request_ in (HOLDING, server_id(1), identification(1, Access.BASIC)):
        core = client(framing)
        core.start(request_, 1.0)
        assert core.received(framing.frame(1, bytes([request_.function | 0x80, 1]), 1), 1.1) == Reply(None, code=1)


def test_a_length_that_noise_invented_delays_an_answer_and_does_not_lose_it() -> None:
    core = client()
    core.start(server_id(1), 1.0)
    noise = b"\x01\x11\xf0"  # the head of an answer of 240 bytes that nobody sends
    answer = RTU.frame(1, b"\x11\x02A\xff", 0)
    assert core.received(noise + answer, 1.1) is None
    assert core.tick(core.deadline() or 0.0) == Reply(b"A\xff")
    assert core.free_at(1, 0.0) < 2.0  # it was asked and it answered: no quarantine


def test_a_refusal_that_lies_inside_an_answer_by_chance_is_not_believed() -> None:
    inner = RTU.frame(1, b"\x83\x02", 0)
    pdu = b"\x03\x08" + inner + b"\0\0\0"
    core = client()
    core.start(Request(1, Function.READ_HOLDING_REGISTERS, 0, 4), 1.0)
    frame = RTU.frame(1, pdu, 0)
    for byte in frame[:-1]:
        assert core.received(bytes([byte]), 1.1) is None
    assert core.received(frame[-1:], 1.1) == Reply(pdu[2:])


def test_capitals_are_asked_for_and_small_letters_understood() -> None:
    core = client(ASCII)
    core.start(HOLDING._replace(unit=0xAB), 1.0)
    frame = ASCII.frame(0xAB, bytes.fromhex("0306abcdef010203"), 0)
    assert core.received(frame.lower(), 1.1) == Reply(bytes.fromhex("abcdef010203"))


@pytest.mark.parametrize(
    "broken",
    [
        b":0103060001000200",  # cut off, and the next colon begins anew
        b":01030600010002 003F0\r\n",  # a blank
        b":010306000100020003F0\n",  # no carriage return
        b":010306000100020003F1\r\n",  # LRC
        b":01030600010002000300EF\r\n",  # too long
        b":0103060001000200F3\r\n",  # too short
        b":::\r\n\r\n:0",
    ],
)
def test_a_broken_line_is_passed_over_and_the_next_one_read(broken: bytes) -> None:
    core = client(ASCII)
    core.start(HOLDING, 1.0)
    assert core.received(broken, 1.1) is None
    assert core.received(b":010306000100020003F0\r\n", 1.2) == Reply(bytes.fromhex("000100020003"))


def test_a_read_and_its_write_in_one_are_told_by_the_data_that_comes_back() -> None:
    core = client()
    core.start(Request(1, Function.READ_WRITE_MULTIPLE_REGISTERS, 7, 1, b"\0\5"), 1.0)
    assert core.received(RTU.frame(1, b"\x17\x02\0\6", 0), 1.1) == Reply(b"\0\6")


@given(st.lists(st.binary(max_size=120), max_size=4), st.integers(0, 250), st.booleans())
def test_an_identification_of_any_objects_is_read_whole(parts: list[bytes], first: int, more: bool) -> None:
    body = b"".join(bytes([(first + i) % 256, len(part)]) + part for i, part in enumerate(parts))
    pdu = b"\x2b\x0e\x03\x83" + bytes([0xFF if more else 0, 9, len(parts)]) + body
    core = client()
    core.start(identification(1, Access.EXTENDED), 1.0)
    reply = core.received(RTU.frame(1, pdu, 0), 1.1)
    if len(pdu) > PDU_BYTES_MAX:
        assert reply is None
        return
    assert reply is not None
    assert reply.data is not None
    told = piece(reply.data)
    assert told.objects == {(first + i) % 256: part for i, part in enumerate(parts)}
    assert told.next_object == (9 if more else None)


class Device:
    """Tells its objects in pieces of so many."""

    def __init__(self, objects: dict[int, bytes], each: int = 2, highest: int = 3) -> None:
        self.objects = objects
        self.each = each
        self.highest = highest
        self.stuck = False
        self.asked: list[bytes] = []
        self.doubtful = 0

    async def ask(self, request: Request) -> Reply:
        self.asked.append(request.pdu())
        if self.doubtful:
            self.doubtful -= 1
            return Reply(None, fault=Status.COMM_TIMEOUT, doubtful=True)
        _mei, access, first = request.data
        if access > self.highest:
            return Reply(None, code=3)
        ids = sorted(each for each in self.objects if self.stuck or each >= first)
        said, rest = ids[: self.each], ids[self.each :]
        told = b"".join(bytes([each, len(self.objects[each])]) + self.objects[each] for each in said)
        return Reply(bytes([0x83, 0xFF if rest else 0, rest[0] if rest else 0, len(said)]) + told)


def test_objects_that_follow_are_asked_for_until_there_are_no_more() -> None:
    device = Device({0: b"ACME", 1: b"M-7", 2: b"V2", 5: b"Meter", 0x80: b"x", 0x81: b"y"})
    assert asyncio.run(identify(device.ask, 1)) == device.objects
    assert [pdu[3] for pdu in device.asked] == [0, 2, 0x80]


def test_a_unit_that_knows_less_is_asked_for_less() -> None:
    device = Device({0: b"ACME", 1: b"M-7", 2: b"V2"}, each=3, highest=1)
    assert asyncio.run(identify(device.ask, 1)) == device.objects
    assert [pdu[2] for pdu in device.asked] == [3, 2, 1]


def test_a_unit_that_repeats_itself_ends_the_reading() -> None:
    device = Device({0: b"ACME", 1: b"M-7", 2: b"V2"})
    device.stuck = True
    assert asyncio.run(identify(device.ask, 1)) == {0: b"ACME", 1: b"M-7"}
    assert len(device.asked) == 2


def test_a_doubtful_piece_is_asked_for_again() -> None:
    device = Device({0: b"ACME"})
    device.doubtful = 1
    assert asyncio.run(identify(device.ask, 1)) == device.objects


def test_a_unit_that_is_silent_or_does_not_know_the_function_has_no_identity() -> None:
    for reply in (Reply(None, code=1), Reply(None, fault=Status.COMM_TIMEOUT)):
        asked = []

        async def ask(request: Request, reply: Reply = reply, asked: list[Request] = asked) -> Reply:
            asked.append(request)
            return reply

        assert asyncio.run(identify(ask, 1)) == {}
        assert len(asked) == 1


def test_random_answers_never_make_the_reading_endless() -> None:
    for seed in range(300):
        dice = random.Random(seed)
        asked = 0

        async def ask(request: Request, dice: random.Random = dice) -> Reply:
            nonlocal asked
            asked += 1
            ids = [dice.randrange(256) for _ in range(dice.randrange(4))]
            return Reply(bytes([1, dice.choice((0, 255)), dice.randrange(256), len(ids)]) + b"".join(
                bytes([each, 1, 65]) for each in ids
            ))  # fmt: skip

        asyncio.run(identify(ask, 1))
        assert asked <= 257


def test_an_object_that_is_no_text_is_shown_in_hexadecimal() -> None:
    assert text(b"ACME Meters\0\0") == "ACME Meters"
    assert text(b"\x01\xff") == "01 ff"
