"""The watchdog is fed while work advances, and only then."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from pathlib import Path

import pytest

from gateway.clock import SystemClock
from gateway.health.health import Health
from gateway.health.systemd import Notifier
from gateway.testing.loop import run


class Systemd:
    """The receiving end of NOTIFY_SOCKET: a real datagram socket."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.setblocking(False)

    def heard(self) -> list[str]:
        lines = []
        while True:
            try:
                lines.append(self.socket.recv(4096).decode())
            except BlockingIOError:
                return lines


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Systemd:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    return Systemd(tmp_path / "notify")


async def answers() -> None:
    return


async def hangs() -> None:
    await asyncio.Event().wait()


def nothing_late(_now: float) -> Sequence[str]:
    return ()


def test_a_healthy_daemon_feeds_the_watchdog_and_says_how_it_is(systemd: Systemd) -> None:
    health = Health(SystemClock(), Notifier(), answers, nothing_late, lambda: "All is well")
    assert run(health.look())
    assert systemd.heard() == ["STATUS=All is well", "WATCHDOG=1"]


def test_the_status_line_is_sent_only_when_it_changes(systemd: Systemd) -> None:
    health = Health(SystemClock(), Notifier(), answers, nothing_late, lambda: "All is well")
    run(health.look())
    systemd.heard()
    run(health.look())
    assert systemd.heard() == ["WATCHDOG=1"]


def test_a_connector_past_its_own_deadline_starves_the_watchdog(systemd: Systemd) -> None:
    health = Health(SystemClock(), Notifier(), answers, lambda _now: ["rs485a"], lambda: "")
    assert not run(health.look())
    assert systemd.heard() == ["STATUS=Stuck: no sign of life from rs485a"]


def test_a_store_that_does_not_answer_starves_the_watchdog(systemd: Systemd) -> None:
    health = Health(SystemClock(), Notifier(), hangs, nothing_late, lambda: "")
    assert not run(health.look())
    assert "WATCHDOG=1" not in systemd.heard()


def test_it_looks_at_least_three_times_within_the_watchdogs_interval(systemd: Systemd) -> None:
    health = Health(SystemClock(), Notifier(), answers, nothing_late, lambda: "fine")

    async def watch_for(seconds: float) -> None:
        task = asyncio.create_task(health.run())
        await asyncio.sleep(seconds)
        task.cancel()

    run(watch_for(30.0))
    assert systemd.heard().count("WATCHDOG=1") >= 3


def test_without_systemd_nothing_is_said_and_nothing_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC"):
        monkeypatch.delenv(name, raising=False)
    notifier = Notifier()
    notifier.ready()
    assert notifier.watchdog_s is None
    assert run(Health(SystemClock(), notifier, answers, nothing_late, lambda: "").look())
