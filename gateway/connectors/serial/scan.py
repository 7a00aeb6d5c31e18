"""Listens to a port at one baud rate after the other and says at which it makes sense. Sends nothing, ever.

(Opening a port raises DTR, though, and some boards restart then.)
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from gateway.connectors.port import SerialPort
from gateway.connectors.serial.config import SerialBus
from gateway.connectors.serial.guess import Guess, configuration, guess
from gateway.errors import LinkError

BAUD_RATES = (9600, 115_200, 4800, 19_200, 38_400, 57_600, 2400, 1200)
"""In order of how often they are met; 4800 and 38400 are those of NMEA."""
_ENOUGH_BYTES = 16_384
_LOOK_S = 0.05
_SURE = 4.0  # checksums were right: no other rate can be better


class Setting(NamedTuple):
    """How to open the port."""

    baud_rate: int
    data_bits: Literal[7, 8] = 8
    parity: Literal["N", "E", "O"] = "N"


SETTINGS = tuple(map(Setting, BAUD_RATES))


class Heard(NamedTuple):
    """One setting, and what it sounded like."""

    setting: Setting
    guess: Guess
    toml: str
    """The configuration that reads it; empty where there is nothing to read."""


async def listen(
    port: str,
    settings: Sequence[Setting] = SETTINGS,
    seconds: float = 3.0,
    progress: Callable[[Setting], None] = lambda _: None,
    stop: asyncio.Event | None = None,
) -> list[Heard]:
    """Listens `seconds` at each setting; the best comes first. Cancelling is safe and closes the port.

    When `stop` is set it returns what was heard until then.

    Raises:
        LinkError: the port cannot be opened, or is gone.
    """
    heard: list[Heard] = []
    stop = stop or asyncio.Event()
    for setting in settings:
        if stop.is_set():
            break
        progress(setting)
        found = guess(await _record(port, setting, seconds, stop))
        readable = found.format in ("nmea", "json", "lines")
        heard.append(Heard(setting, found, configuration(port, setting.baud_rate, found) if readable else ""))
        if found.certainty >= _SURE:
            break
    return sorted(heard, key=lambda each: -each.guess.certainty)


async def _record(path: str, setting: Setting, seconds: float, stop: asyncio.Event) -> bytes:
    data = bytearray()
    lost: list[LinkError] = []
    bus = SerialBus(
        name="scan",
        kind="serial",
        port=path,
        baud_rate=setting.baud_rate,
        data_bits=setting.data_bits,
        parity=setting.parity,
    )
    line = SerialPort(bus, data.extend, lost.append)
    line.open()
    loop = asyncio.get_running_loop()
    until = loop.time() + seconds
    try:
        while not (len(data) >= _ENOUGH_BYTES or lost or stop.is_set() or loop.time() >= until):  # noqa: ASYNC110
            await asyncio.sleep(_LOOK_S)  # three things end it; looking is simpler than waiting for all of them
    finally:
        line.close()
    if lost:
        raise lost[0]
    return bytes(data)
