"""`gateway scan ble`: what advertises around here, what it says, and the TOML that would make readings of it.

Nothing is written and nothing is connected to. Devices that can be decoded come first, then the strongest.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from gateway.connectors.ble.advertisement import Advertisement, Decoded
from gateway.connectors.ble.decoders import SEALED, DecoderName, decode
from gateway.connectors.ble.radio import Radio
from gateway.errors import DecodeError
from gateway.settings import toml as quoted

_TICK_S = 0.25
COLUMNS = ("address", "name", "rssi", "decoder", "says")


class Found(NamedTuple):
    """One device that was heard, and what it said."""

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
        found[heard.address] = _heard_again(found.get(heard.address), heard)

    try:
        await radio.open()
        await radio.start(False, True, on_heard)
        loop = asyncio.get_running_loop()
        began = loop.time()
        while (elapsed := loop.time() - began) < seconds and not (stop and stop.is_set()):
            progress(elapsed / seconds, len(found))
            await asyncio.sleep(min(_TICK_S, seconds - elapsed))
        progress(1.0, len(found))
    finally:
        await radio.close()
    return tuple(sorted(found.values(), key=lambda each: (each.decoded is None, -each.heard.rssi)))


def _heard_again(before: Found | None, heard: Advertisement) -> Found:
    if before is None:
        decoded, problem = _decoded(heard)
        return Found(heard, 1, decoded, problem)
    old = before.heard.manufacturer_data
    news = frozenset(company for company, data in heard.manufacturer_data.items() if old.get(company) != data)
    decoded, problem = _decoded(heard._replace(changed=news))
    return Found(heard, before.packets + 1, _merged(before.decoded, decoded), problem)


def _decoded(heard: Advertisement) -> tuple[Decoded | None, str]:
    """By any format, and why not."""
    try:
        return decode(DecoderName.AUTO, heard) or decode(DecoderName.IBEACON, heard), ""
    except DecodeError as error:
        return None, str(error)


def _merged(before: Decoded | None, decoded: Decoded | None) -> Decoded | None:
    """Some devices say one quantity at a time. An iBeacon is the last thing that a device is taken for."""
    if decoded is None or (before is not None and decoded.decoder == DecoderName.IBEACON != before.decoder):
        return before
    if before is None or before.decoder != decoded.decoder or decoded.encrypted:
        return decoded
    said = {quantity.point: quantity for quantity in (*before.quantities, *decoded.quantities)}
    return decoded._replace(quantities=tuple(said.values()))


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
        if each.decoded.encrypted and each.decoded.decoder in SEALED:
            lines.append('# encrypted: bindkey_file = "…" names the file with its key, else it is bad:key_error')
        elif each.decoded.encrypted:
            lines.append("# encrypted, and nobody but its maker can read it")
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
