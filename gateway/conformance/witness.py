"""Pure: sees every message of the server during the whole run: rules that hold always need no check of their own.

A frame is read twice: by the types of the protocol, which know words and limits, and as plain JSON for the checks.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

from gateway.errors import RemoteProtocolError
from gateway.protocol.messages import MAX_DOWN_BYTES, decode_from_server

_IDS: Final = re.compile(r"\b([0-9a-f]{6})[0-9a-f]{26}\b")
ALWAYS: Final = ("A1b", "A7a", "C5b", "C6c", "M8", "S2a", "S2c")
"""Requirements that are watched, not tried."""


class Witness:
    """One for the whole run."""

    def __init__(self) -> None:
        self.frames = 0
        self.acks = 0
        self.nacks = 0
        self.welcomes = 0
        self.broken: dict[str, str] = {}
        """Number → what was seen first."""
        self.logs: dict[str, tuple[str, ...]] = {}
        """Number → what was said before."""
        self.marks: dict[str, int] = {}
        """Stream → highest mark that was acked."""
        self.batches = 0
        self.results = 0
        self._sink = ""
        self._sent: dict[str, int] = {}

    def sent(self, message: dict[str, Any]) -> None:
        """What may stay in the store."""
        self.batches += message["type"] == "batch"
        self.results += message["type"] == "result"
        if "seq" in message:
            stream, last = message["stream"], message.get("last", message["seq"])
            self._sent[stream] = max(last, self._sent.get(stream, 0))

    @property
    def streams(self) -> int:
        return len(self.marks)

    def broke(self, number: str, what: str) -> None:
        self.broken.setdefault(number, what)

    def first(self, message: dict[str, Any]) -> None:
        """What came first on a session, errors left aside."""
        if message["type"] != "welcome":
            self.broke("S2a", f"the first message was {short(message)}")

    def heard(self, frame: str | bytes) -> dict[str, Any] | None:
        """A frame of the server as plain JSON; None when it is none."""
        self.frames += 1
        if isinstance(frame, bytes):
            self.broke("C5b", f"a binary frame of {len(frame)} bytes")
            return None
        size = len(frame.encode())
        if size > MAX_DOWN_BYTES:
            self.broke("C6c", f"a frame of {size:,} bytes")
        try:
            decode_from_server(frame)
            message: dict[str, Any] = json.loads(frame)
        except (RemoteProtocolError, ValueError, RecursionError) as error:
            self.broke("C5b", f"{frame[:100]}: {error}")
            return None
        return message

    def welcome(self, message: dict[str, Any], again: bool) -> None:
        self.welcomes += 1
        if again:
            self.broke("S2c", "a second welcome on one session")
        if self._sink and message["sink"] != self._sink:
            self.broke("M8", f"one welcome says sink {self._sink}, another {message['sink']}")
        self._sink = message["sink"]

    def ack(self, marks: dict[str, int]) -> None:
        self.acks += 1
        for stream, mark in marks.items():
            if mark > self._sent.get(stream, 0):
                self.broke("A1b", f"an ack of {mark} when {self._sent.get(stream, 0)} was the highest number sent")
            self.marks[stream] = max(mark, self.marks.get(stream, 0))

    def nack(self, message: dict[str, Any], sent: int) -> None:
        """`sent`: the highest number of this stream on this session."""
        self.nacks += 1
        if not 1 <= message["expected"] <= sent:
            self.broke("A7a", f"a nack that expects {message['expected']} when {sent} was the highest number sent")

    def unseen(self, number: str) -> str:
        """Why nothing can be said about it; empty when it can."""
        missing = {"A1b": self.acks, "A7a": self.nacks, "S2a": self.welcomes, "S2c": self.welcomes, "M8": self.welcomes}
        return "" if missing.get(number, self.frames) else "no such message came"


def short(message: object, width: int = 160) -> str:
    """One line for people: bodies left out, ids and long texts cut."""
    if isinstance(message, dict):
        message = {key: "…" if key == "body" else value for key, value in message.items()}
    text = message if isinstance(message, str) else json.dumps(message, ensure_ascii=False, separators=(",", ":"))
    text = _IDS.sub(r"\1…", text[: 4 * width])
    text = "".join(letter if letter.isprintable() else "?" for letter in text[: width + 1])
    return text if len(text) <= width else text[: width - 1] + "…"
