"""`gateway scan ble`: what advertises around here, what it says, and the TOML that would make readings of it.

Nothing is written and nothing is connected to. Devices that can be decoded come first, then the strongest.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from gateway.connectors.ble.advertisement import Advertisement, Decoded
from gateway.connectors.ble.decoders import DecoderName, decode
from gateway.connectors.ble.radio import Radio
from gateway.errors import DecodeError
from gateway.settings import toml as quoted

_TICK_S = 0.25
COLUMNS = ("address", "name", "rssi", "decoder", "says")


class Found(NamedTuple):
    """One device that was heard; what it said last."""

    heard: Advertisement
    packets: int
    decoded: Decoded | None
    problem: str
    """Why its payload could not be decoded; empty: it could, or there was none."""


async def scan(
    radio: Radio,
    seconds: float = 30.0,
    progress: Callable[[float, int], None] = lambda _share, _devices: None,
    stop: asyncio.Event | None = None,
) -> tuple[Found, ...]:
    """Listens actively. `progress(share, devices)` is called a few times a second, with a share of 0 to 1.

    When `stop` is set it returns what was heard until then.

    Raises:
        LinkError: no adapter, with advice.
    """
    found: dict[str, Found] = {}

    def on_heard(heard: Advertisement) -> None:
        before = found.get(heard.address)
        decoded, problem = before.decoded if before else None, ""
        try:
            decoded = decode(DecoderName.AUTO, heard) or decoded
        except DecodeError as error:
            problem = str(error)
        found[heard.address] = Found(heard, before.packets + 1 if before else 1, decoded, problem)

    try:
        await radio.open()
        await radio.start(False, on_heard)
        loop = asyncio.get_running_loop()
        began = loop.time()
        while (elapsed := loop.time() - began) < seconds and not (stop and stop.is_set()):
            progress(elapsed / seconds, len(found))
            await asyncio.sleep(min(_TICK_S, seconds - elapsed))
        progress(1.0, len(found))
    finally:
        await radio.close()
    return tuple(sorted(found.values(), key=lambda each: (each.decoded is None, -each.heard.rssi)))


def rows(found: Sequence[Found]) -> list[tuple[str, ...]]:
    """A table with `COLUMNS`."""
    return [
        (
            each.heard.address if each.heard.stable_address else f"{each.heard.address} (not stable)",
            _printable(each.heard.name),
            f"{each.heard.rssi} dBm",
            each.decoded.decoder if each.decoded else "",
            _printable(_says(each)),
        )
        for each in found
    ]


def _printable(text: str) -> str:
    """Strangers' names and texts go to a terminal: without control characters."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _says(found: Found) -> str:
    if found.problem:
        return found.problem
    if found.decoded is not None and found.decoded.encrypted:
        return "encrypted"
    if found.decoded is not None:
        return ", ".join(f"{q.point} {q.value} {q.unit}".rstrip() for q in found.decoded.quantities) or "nothing known"
    makers = [f"company 0x{number:04X}: {data.hex()}" for number, data in found.heard.manufacturer_data.items()]
    services = [f"service {uuid}: {data.hex()}" for uuid, data in found.heard.service_data.items()]
    return ", ".join(makers + services)


def to_toml(found: Sequence[Found], adapter: str = "") -> str:
    """Tables to paste for everything that can be decoded; a comment says why when there is nothing."""
    usable = [each for each in found if each.decoded is not None]
    if not usable:
        return "# nothing was heard that can be decoded\n"
    lines = ["[[bus]]", 'name = "air"', 'kind = "ble"', *([f"adapter = {quoted(adapter)}"] if adapter else [])]
    names: set[str] = set()
    for each in usable:
        assert each.decoded is not None, "only decoded ones are usable"
        lines += ["", "[[device]]", f"name = {quoted(_name(each.heard, names))}", 'bus = "air"']
        remark = "" if each.heard.stable_address else "  # not stable: this address will change"
        lines += [f"address = {quoted(each.heard.address)}{remark}", f"decoder = {quoted(each.decoded.decoder)}"]
        if each.decoded.encrypted:
            lines.append("# its advertisements are encrypted: its readings will be bad:key_error")
    return "\n".join(lines) + "\n"


def _name(heard: Advertisement, taken: set[str]) -> str:
    """An id made of the device's own name, or of its address; each once."""
    name = (
        re.sub(r"[^a-z0-9_.]+", "-", heard.name.lower()).strip("-.")
        or f"ble-{heard.address[-5:].replace(':', '').lower()}"
    )
    if name in taken:
        name = f"{name}-{heard.address.replace(':', '').lower()}"
    taken.add(name)
    return name
