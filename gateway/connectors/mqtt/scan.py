"""Listens to a broker for a while and says what talks there. Read-only: a client id of its own, a clean session, QoS 0.

`gateway scan mqtt` calls `scan`; nothing is published, and the session of the running gateway is not touched.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence
from typing import NamedTuple

from gateway.clock import SystemClock
from gateway.connectors.mqtt.config import MqttBus
from gateway.connectors.mqtt.link import connected
from gateway.connectors.mqtt.survey import Found, Survey, configuration
from gateway.settings import toml as quoted

_PROGRESS_S = 0.5


class Scan(NamedTuple):
    """What was heard."""

    devices: list[Found]
    toml: str
    """The bus and its devices, to paste into the configuration."""
    messages: int
    left_off: int
    refused: dict[str, str]
    """Filters that the broker did not grant, with its reason."""


async def scan(
    bus: MqttBus,
    seconds: float = 10.0,
    progress: Callable[[float, int], None] | None = None,
    filters: Sequence[str] = ("#",),
    stop: asyncio.Event | None = None,
) -> Scan:
    """Listens for `seconds`; `progress(elapsed_s, messages)` is called twice a second.

    When `stop` is set it returns what was heard until then.

    Raises LinkError. Cancelling is safe.
    """
    survey = Survey()
    loop = asyncio.get_running_loop()
    link, _ = await connected(bus, f"gateway-scan-{secrets.token_hex(4)}", False, SystemClock().boot_ns)
    try:
        refused = await link.subscribe(filters, 0)
        start = said = loop.time()
        while (elapsed := loop.time() - start) < seconds and not (stop and stop.is_set()):
            try:
                async with asyncio.timeout(min(_PROGRESS_S, seconds - elapsed)):
                    for message in await link.receive():
                        survey.hear(message.topic, message.payload)
            except TimeoutError:
                link.tick()
            if progress is not None and loop.time() - said >= _PROGRESS_S:
                said = loop.time()
                progress(said - start, survey.messages)
    finally:
        link.close()
    found = survey.found(elapsed)
    toml = f"{_bus(bus)}\n{configuration(found, bus.name)}"
    return Scan(found, toml, survey.messages, survey.left_off, refused)


def _bus(bus: MqttBus) -> str:
    keys: dict[str, str | int | None] = {"name": bus.name, "kind": bus.kind, "host": bus.host}
    keys["tcp_port"] = bus.tcp_port
    keys["username"] = bus.username
    keys["password_file"] = str(bus.password_file) if bus.password_file else None
    lines = [f"{key} = {quoted(value)}" for key, value in keys.items() if value is not None]
    if bus.tls is not None:
        lines.append(f"tls = {quoted({'cafile': bus.tls.cafile} if bus.tls.cafile else {})}")
    return "\n".join(["[[bus]]", *lines, ""])
