"""Readings from every kind of bus, through the installed service, to the cloud side; and what may not disturb them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from box.container import UNIT, Service, until
from box.site import Site, Tally

pytestmark = [pytest.mark.box, pytest.mark.root, pytest.mark.xdist_group("box"), pytest.mark.timeout(300)]

_POLLED = ("inverter", "meter")


@pytest.fixture
def flowing(service: Service, site: Site) -> Iterator[Service]:
    """The service with all its buses, readings flowing."""
    site.cloud_on()
    service.configure(site.toml)
    service.drop_in(site.drop_in)
    service.restart()
    site.talk()
    _grow(site, tuple(site.tallies()))
    yield service
    site.hush()


def _grow(site: Site, devices: tuple[str, ...]) -> None:
    """Waits until new readings of every one of these devices have arrived."""
    before = site.tallies()

    def grown() -> bool:
        now = site.tallies()
        return all(now[device].stored > before[device].stored for device in devices)

    until(grown, 30, f"new readings of {', '.join(devices)}")


def _answer(site: Site, times: int) -> None:
    """Waits until the machines that are asked have answered so often."""
    before = site.tallies()

    def answered() -> bool:
        now = site.tallies()
        return all(now[device].produced >= before[device].produced + times for device in _POLLED)

    until(answered, 30, f"{times} answers of each machine")


def _settled(site: Site, service: Service) -> dict[str, Tally]:
    """Silences the machines, stops the service in good order and counts."""
    site.hush()
    until(lambda: site.tallies()["office"].missing == 0, 20, "the last message is delivered")
    service.box.run("systemctl", "stop", UNIT)
    return site.tallies()


def _lost(before: dict[str, Tally], after: dict[str, Tally]) -> dict[str, int]:
    return {device: after[device].missing - before[device].missing for device in after}


def test_readings_of_every_bus_arrive(flowing: Service, site: Site) -> None:
    assert set(site.tallies()) == {"inverter", "meter", "scale", "office", "fridge"}
    sentence = "5 devices; sending to 127.0.0.1:8765"
    until(lambda: flowing.show("StatusText") == sentence, 15, f"systemd is told: {sentence}")


def test_a_process_that_is_killed_loses_nothing_it_had_accepted(flowing: Service, site: Site) -> None:
    before, kills = site.tallies(), 3
    for _ in range(kills):
        flowing.killed()
        _grow(site, ("inverter", "office", "meter"))
    after = _settled(site, flowing)
    assert not any(tally.twice for tally in after.values()), after
    lost = _lost(before, after)
    # an answer that is on its way when the asking process dies was never accepted: one for each kill and device
    assert all(lost[device] <= kills for device in _POLLED), lost
    assert lost["office"] <= 0, lost


def test_what_a_killed_process_had_accepted_outlives_a_failed_start(flowing: Service, site: Site) -> None:
    """Nobody acknowledges, the process dies, and the next one finds a mistake in the configuration and ends with 78.
    Nothing is on disk: it is all in the ring, which a unit that kept its directory for restarts only would lose."""
    flowing.configure(site.toml + '\n[buffer]\ncommit_after = "60s"\n')
    flowing.restart()
    _grow(site, _POLLED)
    before = site.tallies()
    site.cloud_off()
    site.hush()  # what speaks by itself would be committed at once, and the rest with it
    committed = -1
    while committed != (now := flowing.buffer("committed_bytes")):
        # what was said before the silence is on its way, and acked rows are cleared away after ten seconds: a commit
        # takes all with it
        committed = now
        _answer(site, 25)
    _answer(site, 10)
    assert flowing.buffer("committed_bytes") == committed
    flowing.configure("[gateway]\nnmae = 1\n")
    flowing.box.run("kill", "-KILL", str(flowing.pid))
    until(lambda: flowing.show("SubState") == "failed", 30, "systemd gave up")
    site.cloud_on()
    flowing.configure(site.toml)
    flowing.restart()
    after = _settled(site, flowing)
    assert not any(tally.twice for tally in after.values()), after
    lost = _lost(before, after)
    assert all(lost[device] <= 1 for device in _POLLED), lost
    assert lost["office"] <= 0, lost


def test_a_process_that_stood_still_is_replaced_and_nothing_is_lost(flowing: Service, site: Site) -> None:
    before = site.tallies()
    flowing.drop_in(site.drop_in + "WatchdogSec=5")
    flowing.restart()
    flowing.killed("STOP")
    _grow(site, ("inverter", "meter", "office"))
    after = _settled(site, flowing)
    assert "Watchdog timeout" in flowing.journal()
    assert not any(tally.twice for tally in after.values()), after
    lost = _lost(before, after)
    # the restart for the shorter interval, and the watchdog
    assert all(lost[device] <= 2 for device in _POLLED), lost
    assert lost["office"] <= 0, lost


def test_sigterm_puts_on_disk_what_cannot_be_delivered(flowing: Service, site: Site) -> None:
    """The ring in memory is thrown away afterwards, as a power cut would."""
    before = site.tallies()
    site.cloud_off()
    until(lambda: flowing.buffer("records") > 0, 20, "readings wait")
    site.hush()
    flowing.box.run("systemctl", "stop", UNIT)
    assert [flowing.show(name) for name in ("Result", "ExecMainStatus")] == ["success", "0"]
    assert "SIGTERM: finishing" in flowing.journal()
    flowing.box.run("rm", "-r", "/run/gateway")
    site.cloud_on()
    flowing.restart()
    after = _settled(site, flowing)
    assert not any(tally.twice for tally in after.values()), after
    lost = _lost(before, after)
    assert all(lost[device] <= 1 for device in _POLLED), lost
    assert all(lost[device] <= 0 for device in ("office", "scale")), lost
