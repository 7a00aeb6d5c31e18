"""What connectors could not read, kept where a person finds it: `rejected/<bus>.jsonl` in the state directory.

One JSON object a line, the newest last: `time` (UTC, as far as it is known), `where` (a topic), `why`, `bytes`, and the
`payload` as text, or as `payload_base64` when it is none. `jq . broker.jsonl` shows it.

Bounds: of each bus ten at once and then six a minute, what comes above that is counted and not kept; 16 KiB of a
payload; two files of 256 KiB, the older of which is `<bus>.old.jsonl`. Only the owner can read them. They are appended
by a thread and never synced: a power cut may take the last ones, and a flood of nonsense does not wear out a card.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from gateway.clock import Clock
from gateway.model import Json

log = logging.getLogger(__name__)

_AT_ONCE = 10
_EVERY_S = 10.0
_PAYLOAD_BYTES = 16_384
_FILE_BYTES = 262_144
_WHERE = 1_024
"""Characters."""


class _Bus(msgspec.Struct):
    allowance: float = _AT_ONCE
    since: float = 0.0
    kept: int = 0
    left_out: int = 0


class Aside:
    """`keep` at any time; `run` writes."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        self._folder = folder
        self._clock = clock
        self._buses: dict[str, _Bus] = {}
        self._waiting: deque[tuple[str, bytes]] = deque()
        """Bounded by the allowances."""
        self._arrived = asyncio.Event()
        self._failing = False

    def keep(self, name: str, where: str, payload: bytes, why: str) -> None:
        """Never waits, never fails."""
        now = self._clock.monotonic()
        bus = self._buses.setdefault(name, _Bus(since=now))
        bus.allowance = min(_AT_ONCE, bus.allowance + (now - bus.since) / _EVERY_S)
        bus.since = now
        if bus.allowance < 1:
            bus.left_out += 1
            return
        bus.allowance -= 1
        bus.kept += 1
        utc_ms = self._clock.boot_ns() // 1_000_000 + self._clock.state().offset_ms
        self._waiting.append((name, _line(utc_ms, where, payload, why)))
        self._arrived.set()

    async def run(self) -> None:
        """Until cancelled; what waits then is not written any more."""
        with ThreadPoolExecutor(1, thread_name_prefix="aside") as thread:
            while True:
                await self._arrived.wait()
                self._arrived.clear()
                while self._waiting:
                    name, line = self._waiting.popleft()
                    try:
                        await asyncio.get_running_loop().run_in_executor(thread, self._write, name, line)
                    except OSError as error:
                        if not self._failing:
                            log.warning("%s: what made no sense cannot be kept: %s", self._folder, error)
                        self._failing = True
                    else:
                        self._failing = False

    def _write(self, name: str, line: bytes) -> None:
        self._folder.mkdir(mode=0o700, exist_ok=True)
        path = self.file(name)
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if os.fstat(descriptor).st_size + len(line) > _FILE_BYTES:
                os.close(descriptor)
                path.replace(self._folder / f"{name}.old.jsonl")
                descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            os.write(descriptor, line)
        finally:
            os.close(descriptor)

    def file(self, name: str) -> Path:
        return self._folder / f"{name}.jsonl"

    def status(self, name: str) -> Json:
        """Since the start of this process."""
        bus = self._buses.get(name, _Bus())
        return {"kept": bus.kept, "left_out": bus.left_out, "file": str(self.file(name))}


def _line(utc_ms: int, where: str, payload: bytes, why: str) -> bytes:
    said: dict[str, Json] = {
        "time": datetime.fromtimestamp(utc_ms / 1000, UTC).isoformat(timespec="milliseconds"),
        "where": where[:_WHERE],
        "why": why,
        "bytes": len(payload),
    }
    begin = payload[:_PAYLOAD_BYTES]
    try:
        said["payload"] = begin.decode()
    except UnicodeDecodeError:
        said["payload_base64"] = base64.b64encode(begin).decode()
    return msgspec.json.encode(said) + b"\n"
