"""Random schedules against the protocol core in virtual time.

    python -m tests.modbus.schedules --from 0 --count 1000000

Five units share a line. They work in order, each for itself, and answer in their own time, late, never, twice, damaged,
cut short or with an exception; the line adds noise, echoes, collisions and splits. The caller asks, and sometimes goes
away in the middle. Every register, coil and object holds what only it holds, so an answer tells whose it is.

What is held against every reply: it is what this unit would say to this very question; an exception was given to it;
an acknowledged write was carried out. A checksum of 16 bits (RTU) or 8 (ASCII) passes garbage now and then, which no
client can know; such an answer is nobody's, and is counted apart (`collided`).

What a schedule stays within is what the client promises: a unit is late by less than its window as often as it likes,
or once by any amount; a second answer on a serial line comes right behind the first.

Prints every failing seed and, at the end, how often each thing happened. Exits 1 when a seed failed or something never
happened.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from functools import cache
from heapq import heappop, heappush

from gateway.connectors.modbus.client import Client, Reply
from gateway.connectors.modbus.framing import ASCII, RTU, TCP, Framing
from gateway.connectors.modbus.request import Function, Request
from gateway.model import Status

TIMEOUT_S, WINDOW_S, GAP_S = 0.3, 0.6, 0.005
FRAMINGS = (RTU, TCP, ASCII)
UNITS = (1, 2, 3, 17, 247)
PATHS = (
    "schedules", "values", "acknowledged", "refused", "identified", "timeout", "crc", "doubtful", "late", "echoing",
    "cancelled", "lost", "damaged", "cut short", "twice", "noise", "collision", "broadcast", "late once", "rtu", "tcp",
    "ascii",
)  # fmt: skip
"""What must have happened in a campaign."""
_BITS = (Function.READ_COILS, Function.READ_DISCRETE_INPUTS)
_REGISTERS = (Function.READ_HOLDING_REGISTERS, Function.READ_INPUT_REGISTERS)


def _questions(unit: int) -> tuple[Request, ...]:
    reads = [Request(unit, fc, at, many) for fc in _REGISTERS for at in (0, 100, 200) for many in (1, 2, 2, 4)]
    bits = [Request(unit, fc, at, many) for fc in _BITS for at in (0, 0x0300) for many in (16, 24)]
    others = [
        Request(unit, Function.WRITE_SINGLE_REGISTER, 7, 1, b"\0\7"),
        Request(unit, Function.WRITE_SINGLE_REGISTER, 7, 1, b"\0\x08"),
        Request(unit, Function.WRITE_SINGLE_COIL, 7, 1, b"\xff\0"),
        Request(unit, Function.WRITE_MULTIPLE_REGISTERS, 7, 2, b"\0\1\0\2"),
        Request(unit, Function.WRITE_MULTIPLE_REGISTERS, 7, 2, b"\0\3\0\4"),
        Request(unit, Function.WRITE_MULTIPLE_COILS, 7, 2, b"\3"),
        Request(unit, Function.MASK_WRITE_REGISTER, 7, 1, b"\xff\xf0\0\3"),
        Request(unit, Function.READ_WRITE_MULTIPLE_REGISTERS, 100, 2, b"\0\5\0\6"),
        Request(unit, Function.REPORT_SERVER_ID),
        Request(unit, Function.ENCAPSULATED, data=b"\x0e\x01\x00"),
        Request(unit, Function.ENCAPSULATED, data=b"\x0e\x04\x01"),
        Request(unit, Function.ENCAPSULATED, data=b"\x0e\x04\x02"),
    ]
    return (*reads, *reads, *bits, *others)


QUESTIONS = {unit: _questions(unit) for unit in UNITS}
BROADCAST = Request(0, Function.WRITE_SINGLE_REGISTER, 7, 1, b"\0\7")


@cache
def truth(request: Request) -> bytes:
    """The PDU that only this unit says to only this question."""
    function, unit = request.function, request.unit
    if function in _REGISTERS or function is Function.READ_WRITE_MULTIPLE_REGISTERS:
        base = 0x1000 * function + UNITS.index(unit) * 0x0300 + request.address
        words = b"".join((base + i & 0xFFFF).to_bytes(2, "big") for i in range(request.quantity))
        return bytes([function, len(words)]) + words
    if function in _BITS:
        count = -(-request.quantity // 8)
        return bytes([function, count]) + random.Random(repr(request)).randbytes(count)
    if function is Function.REPORT_SERVER_ID:
        return bytes([function, 3, 0x40 + unit % 32, unit, 0xFF])
    if function is Function.ENCAPSULATED:
        objects = [request.data[2]] if request.data[1] == 4 else [0, 1, 2]
        said = b"".join(bytes([each, 3, 0x61 + each, unit, request.data[1]]) for each in objects)
        return bytes([function]) + request.data[:2] + bytes([0x81, 0, 0, len(objects)]) + said
    return request.pdu()[: 7 if function is Function.MASK_WRITE_REGISTER else 5]


class Wrong(AssertionError):
    """A reply that is not this question's."""


class Schedule:
    """One line and five units; `run` asks its questions and judges what comes back."""

    timeout_s, window_s, quick_s = TIMEOUT_S, WINDOW_S, 0.01
    lateness = 0.9
    """Of the window."""

    def __init__(self, seed: int, framing: Framing | None = None) -> None:
        self.dice = dice = random.Random(seed)
        self.framing: Framing = framing or FRAMINGS[seed % 3]
        serial = self.framing.serial
        self.echo = serial and dice.random() < 0.3
        known = dice.random() < 0.3
        self.known_echo = self.echo if known else None
        self.client = Client(self.framing, 0.0, timeout=self.timeout_s, late_window=self.window_s, echo=self.known_echo)
        self.now = 0.0
        self.seen: Counter[str] = Counter()
        self.coming: list[tuple[float, int, bytes]] = []
        self.number = 0
        self.stream_until = 0.0
        self.spoken: list[tuple[float, float]] = []
        self.busy = dict.fromkeys(UNITS, 0.0)
        self.done: set[tuple[Request, int]] = set()
        self.faults = dice.choice((0.05, 0.2, 0.5))
        self.late_once = 8 * (self.timeout_s + self.window_s) * dice.random() if dice.random() < 0.4 else 0.0
        self.hangs_once = self.late_once > 0
        self.seen["late once"] = self.hangs_once
        self.seen[("rtu", "tcp", "ascii")[FRAMINGS.index(self.framing)]] = 1
        self.seen["echoing"] = self.echo

    def run(self) -> Counter[str]:
        for _ in range(self.dice.randint(4, 12)):
            request = self.question()
            self.judge(request, self.ask(request))
        return self.sum()

    def question(self) -> Request:
        dice = self.dice
        questions = QUESTIONS[UNITS[int(len(UNITS) * dice.random() ** 2)]]
        request = questions[int(len(questions) * dice.random())]
        if request.writes and self.client.echo is None:
            request = questions[0]
        return BROADCAST if dice.random() < 0.03 and self.framing.serial else request

    def sum(self) -> Counter[str]:
        self.seen["late"] += sum(self.client.late_discarded.values())
        self.seen["schedules"] += 1
        return self.seen

    # ---- the caller

    def ask(self, request: Request) -> Reply | None:
        client, dice = self.client, self.dice
        patience = max(self.now, client.free_at(request.unit, 0.0)) + GAP_S + self.timeout_s  # as `Line.ask` has it
        while (free := client.free_at(request.unit, GAP_S, patience)) > self.now:
            if not self.coming or self.coming[0][0] > free:
                self.now = free
            elif self.next() is not None:
                raise Wrong("a reply that nobody waits for")
        frame = client.start(request, self.now)
        self.sent(request, frame)
        deadline = client.deadline()
        assert deadline is not None
        leaves_at = self.now + dice.random() * self.timeout_s if dice.random() < 0.1 * self.faults else deadline + 1
        while True:
            if self.coming and self.coming[0][0] < min(deadline, leaves_at):
                if (reply := self.next()) is not None:
                    return reply
            elif leaves_at < deadline:
                self.now = max(self.now, leaves_at)
                client.cancel(self.now)
                self.seen["cancelled"] += 1
                return None
            else:
                self.now = max(self.now, deadline)
                reply = client.tick(self.now)
                assert reply is not None
                return reply

    def next(self) -> Reply | None:
        at, _, data = heappop(self.coming)
        self.now = max(self.now, at)
        return self.client.received(data, self.now)

    def judge(self, request: Request, reply: Reply | None) -> None:
        if self.client.echo not in (None, self.echo):
            raise Wrong(f"the echo is believed to be {self.client.echo}")
        if reply is None:
            return
        if request.unit == 0:
            self.seen["broadcast"] += reply == Reply(None)
            return
        if reply.fault is not None:
            kind = "doubtful" if reply.doubtful else "crc" if reply.fault is Status.CRC else "timeout"
            self.seen[kind] += 1
            return
        if reply.data is not None and reply.data != request.payload(truth(request)):
            for others in QUESTIONS.values():
                for other in others:
                    if other.payload(truth(other)) == reply.data != b"":
                        raise Wrong(f"{request} was answered with what {other} holds")
            self.seen["collided"] += 1
        elif (request, reply.code) not in self.done:
            raise Wrong(f"{request} never ended with {reply}")
        elif reply.code:
            self.seen["refused"] += 1
        elif request.function in (Function.REPORT_SERVER_ID, Function.ENCAPSULATED):
            self.seen["identified"] += 1
        else:
            self.seen["acknowledged" if request.writes else "values"] += 1

    # ---- the line and the units

    def sent(self, request: Request, frame: bytes) -> None:
        dice = self.dice
        if self.echo:
            echo = self.damaged(frame) if dice.random() < 0.1 * self.faults else frame
            self.deliver(self.now, echo)
        if request.unit == 0:
            return
        if dice.random() < 0.3 * self.faults:
            self.seen["lost"] += 1
            return
        begun = max(self.now, self.busy[request.unit])
        self.busy[request.unit] = at = begun + self.delay()
        code = dice.choice((2, 4, 6, 11)) if dice.random() < 0.1 * self.faults else 0
        self.done.add((request, code))
        if dice.random() < 0.2 * self.faults:
            self.seen["lost"] += 1
            return
        pdu = bytes([request.function | 0x80, code]) if code else truth(request)
        self.answer(at, self.framing.frame(request.unit, pdu, int.from_bytes(frame[:2], "big")))

    def delay(self) -> float:
        dice = self.dice
        if self.hangs_once:
            if dice.random() < 0.3:
                late, self.late_once = self.late_once, 0.0
                return late or self.quick_s
            return 0.8 * dice.random() * self.timeout_s if dice.random() < self.faults else self.quick_s
        if dice.random() < self.faults:
            return dice.random() * (self.timeout_s + self.lateness * self.window_s)
        return self.quick_s

    def answer(self, at: float, frame: bytes) -> None:
        dice, serial = self.dice, self.framing.serial
        if dice.random() >= self.faults:
            self.deliver(at, frame)
            return
        what = dice.randrange(5)
        if what == 0:
            self.seen["twice"] += 1
            if serial:
                frame += frame
            else:
                self.deliver(at + dice.random() * 3 * self.timeout_s, frame)
        elif what == 1 and serial:
            self.seen["damaged"] += 1
            frame = self.damaged(frame)
        elif what == 2 and serial:
            self.seen["cut short"] += 1
            frame = frame[: dice.randrange(1, len(frame))]
        elif what == 3 and serial:
            self.seen["noise"] += 1
            frame = self.noise(frame) + frame + (self.noise(frame) if dice.random() < 0.5 else b"")
        elif what == 4 and serial:
            self.seen["noise"] += 1
            self.deliver(at + dice.random() * self.timeout_s, self.noise(frame))
        self.deliver(at, frame)

    def damaged(self, frame: bytes) -> bytes:
        """In a way that the checksum is made to find: a burst of 16 bits, or of one character in ASCII."""
        dice = self.dice
        spoilt = bytearray(frame)
        at = dice.randrange(len(frame))
        if self.framing is ASCII:
            spoilt[at] = dice.choice([c for c in b"0123456789ABCDEF:\r\n\0\xff" if c != frame[at]])
            return bytes(spoilt)
        bits = int.from_bytes(frame, "big") ^ dice.randint(1, 0xFFFF) << dice.randrange(8 * len(frame) - 15)
        return bits.to_bytes(len(frame), "big")

    def noise(self, frame: bytes) -> bytes:
        dice = self.dice
        noise = dice.randbytes(dice.randint(1, 6))
        # now and then like the beginning of a frame
        return frame[: dice.randint(1, 4)] + noise if dice.random() < 0.3 else noise

    def deliver(self, at: float, data: bytes) -> None:
        """In pieces. On a serial line whoever speaks over another is heard as noise, and spoils the other's frame."""
        dice = self.dice
        pieces = []
        while data:
            size = len(data) if dice.random() < 0.7 else dice.randint(1, len(data))
            pieces.append((at, data[:size]))
            data = data[size:]
            if data:
                at += dice.random() * 0.002
        if not self.framing.serial:
            wait = max(0.0, self.stream_until - pieces[0][0])  # one stream: what is said later comes later
            pieces = [(max(when + wait, self.stream_until), piece) for when, piece in pieces]
            self.stream_until = pieces[-1][0]
        else:
            begin = pieces[0][0]
            if any(begin <= end and at >= start for start, end in self.spoken):
                self.seen["collision"] += 1
                pieces = [(when, dice.randbytes(len(piece))) for when, piece in pieces]
            self.spoken.append((begin, at))
        for when, piece in pieces:
            self.put(when, piece)

    def put(self, when: float, piece: bytes) -> None:
        self.number += 1
        heappush(self.coming, (when, self.number, piece))


def campaign(first: int, count: int, *, every: int = 0, stop_after: int = 20) -> tuple[list[int], Counter[str]]:
    """Seeds that failed, and what was seen."""
    failed: list[int] = []
    seen: Counter[str] = Counter()
    begun = time.process_time()
    for seed in range(first, first + count):
        try:
            seen += Schedule(seed).run()
        except Exception as error:
            failed.append(seed)
            print(f"seed {seed}: {type(error).__name__}: {error}", flush=True)
            if len(failed) >= stop_after:
                break
        if every and (seed + 1 - first) % every == 0:
            rate = (seed + 1 - first) / (time.process_time() - begun)
            print(f"{seed + 1 - first} schedules, {len(failed)} failed, {rate:.0f}/s", flush=True)
    return failed, seen


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.modbus.schedules")
    parser.add_argument("--from", dest="first", type=int, default=0, help="first seed")
    parser.add_argument("--count", type=int, default=1_000_000, help="number of schedules")
    options = parser.parse_args()
    failed, seen = campaign(options.first, options.count, every=100_000)
    for what, times in sorted(seen.items()):
        print(f"{times:12,} {what}")
    missing = [path for path in PATHS if not seen[path]]
    print(f"{len(failed)} failed" + (f", never happened: {', '.join(missing)}" if missing else ""))
    return 1 if failed or missing else 0


if __name__ == "__main__":
    sys.exit(main())
