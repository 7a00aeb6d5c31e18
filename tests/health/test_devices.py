"""The board of devices."""

from __future__ import annotations

import logging

import pytest

from gateway.health.devices import Devices
from gateway.model import DeviceState
from gateway.testing.loop import VirtualClock, run


def board(logs: pytest.LogCaptureFixture) -> tuple[Devices, pytest.LogCaptureFixture]:
    logs.set_level(logging.INFO)
    return Devices(VirtualClock(), {"meter": "rs485", "{device}": "broker"}), logs


def test_a_change_is_told_once_and_a_repetition_is_silent(caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        devices, logs = board(caplog)
        for _ in range(3):
            devices.report("rs485", "meter", DeviceState.OFFLINE, "no answer")
        devices.report("rs485", "meter", DeviceState.ONLINE, "")
        assert [r.getMessage() for r in logs.records] == ["meter is offline: no answer", "meter is online"]

    run(story())


def test_configured_devices_wait_and_rules_that_make_devices_are_not_devices(caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        devices, _ = board(caplog)
        assert devices.status() == {"meter": {"bus": "rs485", "state": "waiting", "why": "", "since_s": 0.0}}
        devices.report("broker", "kitchen", DeviceState.ONLINE, "")
        assert devices.status()["kitchen"]["bus"] == "broker"

    run(story())


def test_the_board_is_bounded() -> None:
    async def story() -> None:
        devices = Devices(VirtualClock(), {})
        for n in range(10_005):
            devices.report("broker", f"d{n}", DeviceState.ONLINE, "")
        assert len(devices) == 10_000
        assert devices.unlisted == 5

    run(story())
