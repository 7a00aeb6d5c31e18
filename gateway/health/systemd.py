"""The seam to systemd: readiness, the status line and the watchdog (sd_notify(3)).

Without systemd every method does nothing.
"""

from __future__ import annotations

import os

import sdnotify


class Notifier:
    """Speaks to the NOTIFY_SOCKET of this service."""

    def __init__(self) -> None:
        self._notifier = sdnotify.SystemdNotifier()
        self._status = ""

    @property
    def watchdog_s(self) -> float | None:
        """The interval within which systemd wants to hear of us; None when it does not watch."""
        usec = os.environ.get("WATCHDOG_USEC")
        ours = os.environ.get("WATCHDOG_PID") in (None, str(os.getpid()))
        return int(usec) / 1e6 if usec and usec.isdigit() and ours else None

    def ready(self) -> None:
        self._notifier.notify("READY=1")

    def status(self, sentence: str) -> None:
        """One human sentence for `systemctl status`; sent only when it changed. ASCII: the library speaks Latin-1."""
        if sentence != self._status:
            self._status = sentence
            self._notifier.notify(f"STATUS={sentence.encode('ascii', 'replace').decode()}")

    def feed(self) -> None:
        self._notifier.notify("WATCHDOG=1")

    def stopping(self) -> None:
        self._notifier.notify("STOPPING=1")
