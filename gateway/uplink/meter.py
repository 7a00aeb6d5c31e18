"""The data budgets of all endpoints, and the file in which they outlive the process.

What is counted is what the kernel counts: bytes of TCP both ways with retransmissions and the records of TLS, and for
each packet what TCP and IP put in front. The file is written every few minutes at most, and at the end.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from gateway.model import Json
from gateway.settings import size_text
from gateway.uplink.config import Endpoint
from gateway.uplink.connections import Spending
from gateway.uplink.metering import Budget, Day

SAVE_EVERY_S: Final = 300.0
FILE: Final = "uplink.json"
_TCP_INFO: Final = struct.Struct("128x Q II 56x Q")  # linux/tcp.h: bytes_received, segs_out, segs_in, bytes_sent
_HEADERS: Final = {socket.AF_INET: 20 + 32, socket.AF_INET6: 40 + 32}
"""IP and TCP, the latter with timestamps."""
_log = logging.getLogger(__name__)
_decoder = msgspec.json.Decoder(dict[str, Day])


def wire_bytes(sock: socket.socket) -> int:
    """What this connection has cost so far, both ways; 0 where the kernel does not say, or no longer."""
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
        received, packets_out, packets_in, sent = _TCP_INFO.unpack(info)
    except (OSError, struct.error):
        return 0
    return int(received + sent + (packets_out + packets_in) * _HEADERS.get(sock.family, 0))


class Meter:
    """`count` what a connection cost, `look` what an endpoint may still do."""

    def __init__(self, endpoints: Sequence[Endpoint], folder: Path | None, now: float) -> None:
        self._endpoints = endpoints
        self._path = folder / FILE if folder is not None else None
        days = self._load()
        self._budgets = {
            i: Budget(each.daily_budget, each.when_spent, days.get(each.label, Day()), now)
            for i, each in enumerate(endpoints)
            if each.daily_budget is not None
        }
        self._spending = dict.fromkeys(self._budgets, Spending.WITHIN)
        self._overspent: set[int] = set()
        self._saved_at = now
        self._changed = False

    def count(self, index: int, size: int) -> None:
        if index in self._budgets and size:
            self._budgets[index].count(size)
            self._changed = True

    def look(self, now: float, utc_ms: int | None) -> dict[int, Spending]:
        """What each endpoint with a budget may still do; says so when that changes."""
        for index, budget in self._budgets.items():
            before, self._spending[index] = self._spending[index], budget.look(now, utc_ms)
            self._tell(index, budget, before)
        return self._spending

    def _tell(self, index: int, budget: Budget, before: Spending) -> None:
        after, label = self._spending[index], self._endpoints[index].label
        used = f"{budget.used_bytes / 1e6:.1f} MB of {size_text(budget.limit_bytes)} are used today"
        if after > before:
            still = "nothing goes out" if after is Spending.OVER else "only alarms and results of commands go out"
            _log.warning("uplink: %s: %s, %s", label, used, still)
        elif after < before:
            _log.info("uplink: %s: a new day, readings go out again", label)
        if budget.used_bytes < budget.limit_bytes:
            self._overspent.discard(index)
        elif index not in self._overspent:
            self._overspent.add(index)
            if after is Spending.WITHIN:
                _log.warning("uplink: %s: %s, and it goes on as configured", label, used)

    def status(self, index: int) -> dict[str, Json] | None:
        budget = self._budgets.get(index)
        if budget is None:
            return None
        over = budget.used_bytes >= budget.limit_bytes
        state = {Spending.WITHIN: "within", Spending.RESERVE: "alarms and results only", Spending.OVER: "spent"}
        return {
            "used_bytes": budget.used_bytes,
            "limit_bytes": budget.limit_bytes,
            "state": "overspent"
            if over and self._spending[index] is not Spending.OVER
            else state[self._spending[index]],
        }

    # ── the file ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _load(self) -> dict[str, Day]:
        """What is missing or unreadable counts as nothing spent: a budget never keeps the daemon from starting."""
        try:
            return _decoder.decode(self._path.read_bytes()) if self._path is not None else {}
        except FileNotFoundError:
            return {}
        except (OSError, msgspec.MsgspecError) as error:
            _log.warning("%s cannot be read, so the data budgets begin anew: %s", self._path, error)
            return {}

    async def keep(self, now: float) -> None:
        """Writes the file when it is time."""
        if self._changed and now >= self._saved_at + SAVE_EVERY_S:
            await asyncio.to_thread(self._write, self._content(now))

    def close(self, now: float) -> None:
        if self._changed:
            self._write(self._content(now))

    def _content(self, now: float) -> bytes:
        self._saved_at, self._changed = now, False
        return msgspec.json.encode({self._endpoints[i].label: b.day(now) for i, b in self._budgets.items()})

    def _write(self, content: bytes) -> None:
        if self._path is None:
            return
        fresh = self._path.with_suffix(".new")
        try:
            with fresh.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(self._path)
        except OSError as error:
            _log.warning("%s cannot be written, a restart begins the data budgets anew: %s", self._path, error)
