"""Messages from a server that has gone wrong: mostly of the right form and wrong in what they say."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from typing import Any

from tests.hostile.server import BINARY, PING, TEXT, WELCOME, frame

_NUMBERS = (0, 1, 2, 3, 7, 31, 32, 255, 4096, 2**31, 2**53 - 1, 2**53, 2**63 - 1, 2**63, 2**64, -1, -(2**63))
_WORDS = (
    *("", "x", "meter", "setpoint", "sequence", "\x00", "ü" * 40, "../../etc/passwd", "%s%n", "9" * 400),
    *("\x1b[2J", "\n<0>forged"),
)

Dice = random.Random


def _number(dice: Dice) -> Any:
    return dice.choice(_NUMBERS) if dice.random() < 0.6 else dice.randrange(0, 200)


def _tame(dice: Dice) -> int:
    return dice.choice((0, 1, 2, 5, 100, 10_000))


def _word(dice: Dice) -> str:
    return dice.choice(_WORDS) if dice.random() < 0.5 else f"{dice.getrandbits(64):x}"


def _stream(dice: Dice, known: Sequence[str]) -> str:
    return dice.choice(known) if known and dice.random() < 0.8 else f"{dice.getrandbits(128):032x}"


def _value(dice: Dice) -> Any:
    return dice.choice((None, True, 21.5, -1e300, 2**63 - 1, "text", "x" * 2000, 0.1, 7))


def _ack(dice: Dice, known: Sequence[str]) -> Any:
    return {"type": "ack", "marks": {_stream(dice, known): _tame(dice) for _ in range(dice.choice((0, 1, 1, 3, 200)))}}


def _command(dice: Dice, _: Sequence[str]) -> Any:
    return {
        "type": "command", "id": _word(dice) + str(dice.random()),
        "device": dice.choice(("meter", "none", _word(dice))),
        "op": dice.choice(("write", "read", _word(dice))), "point": dice.choice(("setpoint", "sequence", _word(dice))),
        "value": _value(dice), "ttl_ms": _tame(dice), "sent_ms": _tame(dice),
    }  # fmt: skip


def _flow(dice: Dice, _: Sequence[str]) -> Any:
    return {"type": "flow", "window": {"batches": dice.choice((0, 1, 2, 32, 10**9)), "bytes": _tame(dice)}}


def _result_ack(dice: Dice, _: Sequence[str]) -> Any:
    return {"type": "result_ack", "id": _word(dice)}


def _error(dice: Dice, _: Sequence[str]) -> Any:
    return {"type": "error", "reason": _word(dice) * dice.choice((1, 50))}


def _unknown_member(dice: Dice, known: Sequence[str]) -> Any:
    return {**_ack(dice, known), _word(dice) + "x": dice.choice(([], {}, [[1], {"a": None}], _word(dice)))}


def _nack(dice: Dice, known: Sequence[str]) -> Any:
    return {"type": "nack", "stream": _stream(dice, known), "expected": _number(dice), "reason": _word(dice)}


def _move(dice: Dice, _: Sequence[str]) -> Any:
    return {"type": "move", "deadline_ms": _number(dice), "spread_ms": _number(dice), "reason": _word(dice)}


def _again(dice: Dice, _: Sequence[str]) -> Any:
    return {**WELCOME, "marks": {_word(dice): _number(dice)}}


def _bad_field(dice: Dice, known: Sequence[str]) -> Any:
    message = dice.choice(_TAME)(dice, known)
    field = dice.choice(list(message))
    message[field] = dice.choice((None, [], {}, -1, "", 1e400, [[]] * 50, _number(dice)))
    return message


_TAME: tuple[Callable[[Dice, Sequence[str]], Any], ...] = (_ack, _command, _flow, _result_ack, _error, _unknown_member)
_WILD = (_nack, _move, _again, _bad_field)


def message(dice: Dice, known: Sequence[str]) -> bytes:
    """One message as frames. `known`: streams that the gateway has named."""
    chance = dice.random()
    if chance < 0.95:
        return frame(json.dumps(dice.choice(_TAME)(dice, known)).encode())
    if chance < 0.985:
        return frame(json.dumps(dice.choice(_WILD)(dice, known)).encode())
    return dice.choice((_noise, _depth, _truncated, _binary, _bad_text, _ping, _reserved, _fragments))(dice, known)


def _noise(dice: Dice, _: Sequence[str]) -> bytes:
    return dice.randbytes(dice.randrange(1, 64))


def _depth(dice: Dice, _: Sequence[str]) -> bytes:
    depth = dice.choice((100, 5_000, 30_000))
    return frame(b'{"type":"ack","marks":{},"x":' + b"[" * depth + b"]" * depth + b"}")


def _truncated(dice: Dice, known: Sequence[str]) -> bytes:
    whole = json.dumps(_ack(dice, known)).encode()
    return frame(whole[: dice.randrange(len(whole))])


def _binary(dice: Dice, _: Sequence[str]) -> bytes:
    return frame(dice.randbytes(20), BINARY)


def _bad_text(dice: Dice, _: Sequence[str]) -> bytes:
    return frame(b'{"type":"\xff\xfe"}')


def _ping(dice: Dice, _: Sequence[str]) -> bytes:
    return frame(dice.randbytes(dice.choice((0, 125))), PING) * dice.choice((1, 500))


def _reserved(dice: Dice, _: Sequence[str]) -> bytes:
    return frame(b"{}", dice.choice((3, 7, 11, 15)))


def _fragments(dice: Dice, known: Sequence[str]) -> bytes:
    whole = json.dumps(_ack(dice, known)).encode()
    middle = dice.randrange(len(whole))
    return frame(whole[:middle], TEXT, fin=False) + frame(whole[middle:], 0)
