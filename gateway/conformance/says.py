"""Pure: what the checks send. Everything that may stay in a store carries the device `conformance`."""

from __future__ import annotations

from typing import Any, Final

DEVICE: Final = "conformance"
BOOT: Final = "c0" * 16
_AT_MS: Final = 60_000
"""A minute after the boot of a machine that never was."""

Message = dict[str, Any]


def clock() -> Message:
    return {"boot": BOOT, "offset_ms": 0, "error_ms": -1, "trust": "unsynced"}


def hello(process: str, *streams: str, standby: bool = False) -> Message:
    offers = [{"stream": stream, "lane": "live", "first": 1, "next": 1} for stream in streams]
    said: Message = {"type": "hello", "process": process, "software": "gateway conformance", "clock": clock()}
    if standby:
        said["standby"] = True
    return {**said, "streams": offers}


def body(rows: int = 1, points: int = 1, text: str = "") -> Message:
    """`rows` × `points` readings; with `text`, that is the first value."""
    columns: list[list[int | str]] = [list(range(rows)) for _ in range(points)]
    if text:
        columns[0][0] = text
    group = {
        "device": DEVICE,
        "points": [f"p{number}" for number in range(points)],
        "units": [""] * points,
        "t": [0] + [1] * (rows - 1),
        "v": columns,
    }
    return {"clock": clock(), "base_ms": _AT_MS, "groups": [group]}


def batch(stream: str, seq: int, content: object = None, lane: str = "live") -> Message:
    content = body() if content is None else content
    return {"type": "batch", "stream": stream, "lane": lane, "seq": seq, "body": content}


def gap(stream: str, seq: int, last: int, reason: str = "stored_elsewhere") -> Message:
    content = {"reason": reason, "device": DEVICE}
    return {"type": "gap", "stream": stream, "lane": "live", "seq": seq, "last": last, "body": content}


def clock_record(stream: str, seq: int) -> Message:
    return {"type": "clock", "stream": stream, "lane": "live", "seq": seq, "body": clock()}


def end(stream: str, seq: int) -> Message:
    return {"type": "end", "stream": stream, "lane": "live", "seq": seq}


def result(command_id: str, outcome: str = "ok") -> Message:
    return {"type": "result", "id": command_id, "outcome": outcome}


def stats(value: object = 0) -> Message:
    return {"type": "stats", "values": {DEVICE: value}}


def nested(depth: int) -> str:
    """A `stats` whose value is that many lists, each in the next."""
    return '{"type":"stats","values":{"x":' + "[" * depth + "]" * depth + "}}"


def padded(size: int) -> str:
    """A `stats` of exactly so many bytes, which compress well."""
    around = '{"type":"stats","values":{"x":""}}'
    return around[:-3] + "x" * (size - len(around)) + around[-3:]
