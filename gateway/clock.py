"""The only module that reads time.

Three clocks, never mixed: `monotonic()` for intervals and deadlines, `boot_ns()` for stamps, UTC only as an offset
to boot time that comes with a statement of trust.
"""

from __future__ import annotations

import ctypes
import time
from pathlib import Path
from typing import Protocol

from gateway.model import ClockState, Trust

DRIFT_PPM = 500
"""What the kernel assumes as well."""
_STA_UNSYNC = 0x0040  # linux/timex.h
_UNKNOWN_ERROR = -1


class Clock(Protocol):
    """What drivers are given; tests give one that they turn by hand."""

    def monotonic(self) -> float:
        """Seconds; for intervals only."""

    def boot_ns(self) -> int:
        """CLOCK_BOOTTIME in nanoseconds."""

    def state(self) -> ClockState:
        """What is known of UTC now. Cheap enough for once a second, not for once a reading."""

    def learn(self, offset_ms: int, error_ms: int) -> None:
        """What the servers say of UTC − boot time; it counts while this boot was never synchronised."""


def told(boot: str, offset_ms: int, error_ms: int, at_ns: int, now_ns: int) -> ClockState:
    """What servers told at one boot time, as it is worth now: an oscillator that nothing disciplines drifts."""
    drift_ms = -(-max(0, now_ns - at_ns) * DRIFT_PPM // 1_000_000_000_000)
    return ClockState(boot, offset_ms, error_ms + drift_ms, Trust.SERVER)


class _Timex(ctypes.Structure):
    """struct timex of adjtimex(2), as far as `status`, `maxerror` and the kernel's padding need it."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_long * 32),
    )


class SystemClock:
    """The clocks of this machine.

    Synchronised means: the kernel says so (adjtimex, which ntpd, chrony and timesyncd all feed) or systemd-timesyncd
    has left its mark. Either may be absent in a container, and then the clock is simply not trusted.
    """

    def __init__(self, timesync_mark: Path = Path("/run/systemd/timesync/synchronized")) -> None:
        self._boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", "")
        self._mark = timesync_mark
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._was_synced = False
        self._told: tuple[int, int, int] | None = None
        """By the servers: offset and error in milliseconds, at this boot time in nanoseconds."""

    def monotonic(self) -> float:
        return time.monotonic()

    def boot_ns(self) -> int:
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME)

    def learn(self, offset_ms: int, error_ms: int) -> None:
        self._told = offset_ms, error_ms, self.boot_ns()

    def utc_ms(self) -> int:
        """Wall time, trusted or not: for a server's own records, never for a reading's stamp."""
        return time.time_ns() // 1_000_000

    def state(self) -> ClockState:
        before = self.boot_ns()
        utc = time.time_ns()
        after = self.boot_ns()
        timex = _Timex()
        known = self._libc.adjtimex(ctypes.byref(timex)) != -1
        synced = (known and not timex.status & _STA_UNSYNC) or self._mark.exists()
        self._was_synced |= synced
        if not self._was_synced and self._told is not None:
            return told(self._boot, *self._told, after)
        trust = Trust.SYNCED if synced else Trust.HOLDOVER if self._was_synced else Trust.UNSYNCED
        # maxerror grows by 500 ppm while nothing corrects the clock; it is microseconds
        error = -(-timex.maxerror // 1000) if known and synced else _UNKNOWN_ERROR
        return ClockState(self._boot, (utc - (before + after) // 2) // 1_000_000, error, trust)
