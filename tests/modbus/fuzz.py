"""Random replies to the protocol core: `python -m tests.modbus.fuzz --from 0 --count 1000000`.

A reply is random bytes, a right answer that was bent somehow, or a whole and valid frame of random content. What is
held against the core: nothing escapes; what it takes for an answer stood, byte for byte and with its checksum, in what
came; and whatever comes for however long, it remembers no more than its bounds.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter

from gateway.connectors.modbus.client import _OWED_MAX, WINDOW_GROWTH_MAX, Client, Reply
from gateway.connectors.modbus.framing import Framing
from gateway.connectors.modbus.identity import piece, text
from gateway.connectors.modbus.request import Function, Request

from .schedules import FRAMINGS, GAP_S, QUESTIONS, TIMEOUT_S, UNITS, WINDOW_S, truth

PER_CLIENT = 500
"""Replies that one client lives through."""
KINDS = ("random", "bent", "valid", "answered", "refused", "identified", "nothing")
"""What must have happened in a campaign."""


class Invented(AssertionError):
    """A reply that nobody sent, or more memory than there may be."""


def bent(dice: random.Random, frame: bytes) -> bytes:
    """A frame after something happened to it."""
    spoilt = bytearray(frame)
    for _ in range(dice.randint(0, 3)):
        at = dice.randrange(len(spoilt) + 1)
        match dice.randrange(5):
            case 0:
                spoilt[at : at + 1] = dice.randbytes(1)
            case 1:
                spoilt[at:at] = dice.randbytes(dice.randint(1, 8))
            case 2:
                del spoilt[at : at + dice.randint(1, 8)]
            case 3:
                spoilt[at:at] = frame[: dice.randint(1, len(frame))]
            case _:
                spoilt += frame
    return bytes(spoilt)


def valid(dice: random.Random, framing: Framing, request: Request, transaction: int) -> bytes:
    """A whole frame with any content, more or less to the point."""
    if dice.random() < 0.2:
        pdu = bytearray([request.function | 0x80]) + dice.randbytes(dice.choice((0, 1, 1, 1, 2)))
    elif request.function is Function.ENCAPSULATED and dice.random() < 0.7:
        parts = [dice.randbytes(dice.randint(0, 40)) for _ in range(dice.randint(0, 5))]
        first = request.data[2] if dice.random() < 0.7 else dice.randrange(256)
        pdu = bytearray([request.function, *request.data[:2], 0x81, dice.choice((0, 0xFF)), dice.randrange(256)])
        pdu.append(len(parts) if dice.random() < 0.8 else dice.randrange(256))
        for number, part in enumerate(parts):
            pdu += bytes([(first + number) % 256, len(part) if dice.random() < 0.9 else dice.randrange(256)]) + part
    else:
        pdu = bytearray(truth(request) if dice.random() < 0.5 else dice.randbytes(dice.randint(1, 253)))
        pdu[0] = request.function
        for _ in range(dice.randint(0, 2)):
            pdu[dice.randrange(len(pdu))] = dice.randrange(256)
    unit = request.unit if dice.random() < 0.9 else dice.choice(UNITS)
    return framing.frame(unit, bytes(pdu[:253]), transaction if dice.random() < 0.9 else dice.randrange(1 << 16))


class Fuzz:
    """One client and all that it is told."""

    def __init__(self, seed: int) -> None:
        self.dice = dice = random.Random(seed)
        self.framing = FRAMINGS[seed % 3]
        echo = dice.choice((None, True, False))
        self.client = Client(self.framing, 0.0, timeout=TIMEOUT_S, late_window=WINDOW_S, echo=echo)
        self.now = 0.0
        self.seen: Counter[str] = Counter()

    def run(self, replies: int = PER_CLIENT) -> Counter[str]:
        for _ in range(replies):
            self.reply()
        return self.seen

    def reply(self) -> None:
        dice, client = self.dice, self.client
        unit = dice.choice(UNITS)
        request = dice.choice(QUESTIONS[unit])
        if request.writes and client.echo is None:
            client.echo = dice.choice((True, False))  # as a read would tell
        patience = max(self.now, client.free_at(unit, 0.0)) + GAP_S
        self.now = max(self.now, client.free_at(unit, GAP_S, patience))
        frame = client.start(request, self.now)
        kind = dice.choice(("random", "bent", "valid"))
        self.seen[kind] += 1
        transaction = int.from_bytes(frame[:2], "big")
        if kind == "random":
            came = dice.randbytes(dice.randint(0, 300))
        elif kind == "bent":
            came = bent(dice, self.framing.frame(unit, truth(request), transaction))
        else:
            came = valid(dice, self.framing, request, transaction)
        if client.echo is not False and dice.random() < 0.5:
            came = frame + came
        self.judge(request, self.fed(came), came, transaction)

    def fed(self, data: bytes) -> Reply | None:
        dice, client = self.dice, self.client
        while data:
            size = len(data) if dice.random() < 0.5 else dice.randint(1, len(data))
            if (reply := client.received(data[:size], self.now)) is not None:
                client.received(data[size:], self.now)
                return reply
            data = data[size:]
            self.now += 0.0005
        self.now = max(self.now, client.deadline() or 0.0)
        return client.tick(self.now)

    def judge(self, request: Request, reply: Reply | None, came: bytes, transaction: int) -> None:
        if reply is None or self.client.deadline() is not None:
            raise Invented("a question without an end")
        if reply.data is not None:
            self.seen["answered"] += 1
            head = truth(request)[: len(truth(request)) - len(request.payload(truth(request)))]
            pdu = head + reply.data
        elif reply.code:
            self.seen["refused"] += 1
            pdu = bytes([request.function | 0x80, reply.code])
        else:
            self.seen["nothing"] += 1
            pdu = b""
        if pdu:
            if request.function is Function.REPORT_SERVER_ID and reply.data is not None:
                pdu = bytes([request.function, len(reply.data)]) + reply.data
            if self.framing.frame(request.unit, pdu, transaction) not in self.framing.folded(came):
                raise Invented(f"{request} ended with {reply}, and {came.hex(' ')} had come")
        if request.function is Function.ENCAPSULATED and reply.data is not None:
            self.seen["identified"] += 1
            for said in piece(reply.data).objects.values():
                text(said)
        client = self.client
        if len(client._buffer) > 2 * self.framing.frame_bytes_max or len(client._units) > len(UNITS):
            raise Invented("more is remembered than may be")
        for state in client._units.values():
            if len(state.owed) > _OWED_MAX or state.until > self.now + WINDOW_GROWTH_MAX * WINDOW_S:
                raise Invented("more is owed than may be")


def campaign(first: int, count: int, *, every: int = 0, stop_after: int = 20) -> tuple[list[int], Counter[str]]:
    """Seeds that failed, and what was seen; `count` replies, `PER_CLIENT` to each seed."""
    failed: list[int] = []
    seen: Counter[str] = Counter()
    begun = time.process_time()
    for seed in range(first, first + count // PER_CLIENT):
        try:
            seen += Fuzz(seed).run()
        except Exception as error:
            failed.append(seed)
            print(f"seed {seed}: {type(error).__name__}: {error}", flush=True)
            if len(failed) >= stop_after:
                break
        done = (seed + 1 - first) * PER_CLIENT
        if every and done % every == 0:
            rate = done / (time.process_time() - begun)
            print(f"{done} replies, {len(failed)} failed, {rate:.0f}/s", flush=True)
    return failed, seen


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.modbus.fuzz")
    parser.add_argument("--from", dest="first", type=int, default=0, help="first seed")
    parser.add_argument("--count", type=int, default=1_000_000, help="number of replies")
    options = parser.parse_args()
    failed, seen = campaign(options.first, options.count, every=100_000)
    for what, times in sorted(seen.items()):
        print(f"{times:12,} {what}")
    missing = [kind for kind in KINDS if not seen[kind]]
    print(f"{len(failed)} failed" + (f", never happened: {', '.join(missing)}" if missing else ""))
    return 1 if failed or missing else 0


if __name__ == "__main__":
    sys.exit(main())
