"""Pure: which decoder an advertisement is for, and which of its repetitions are news.

A sensor sends the same packet several times, and the Bluetooth service tells of a device again whenever anything of it
changed, its signal strength included. So the same payload is the same acquisition: it is passed on again only after
`min_interval` (after `_SAME_PACKET_S` when the sender numbers its packets), as a sign that the value still holds, and
an event in it never. A new payload within `min_interval` is thinned out, unless a state in it changed or something
happened: no door and no button press is lost. A device may send several kinds of packets in turn, each with its own
quantities; each kind is judged by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Final, NamedTuple

from gateway.connectors.ble import (
    atc,
    bthome,
    eddystone,
    govee,
    ibeacon,
    inkbird,
    ruuvi,
    switchbot,
    thermopro,
    xiaomi,
)
from gateway.connectors.ble.advertisement import Advertisement, Decoded, Key, Nature
from gateway.errors import DecodeError
from gateway.model import Value

_SAME_PACKET_S: Final = 30.0
"""A packet number only changes with the data, so a device that repeats one for long is alive and its value stands."""
_MAX_KINDS: Final = 16
"""Kinds of packets remembered per device; a device that sends more is noise, and its oldest are forgotten."""


class DecoderName(StrEnum):
    """Words of `decoder`."""

    AUTO = "auto"
    BTHOME = bthome.NAME
    RUUVI = ruuvi.NAME
    XIAOMI = xiaomi.NAME
    ATC = atc.NAME
    GOVEE = govee.NAME
    INKBIRD = inkbird.NAME
    THERMOPRO = thermopro.NAME
    SWITCHBOT = switchbot.NAME
    EDDYSTONE = eddystone.NAME
    IBEACON = ibeacon.NAME


Hear = Callable[[Advertisement, Key | None], Decoded | None]

DECODERS: Final[dict[DecoderName, Hear]] = {
    DecoderName.BTHOME: bthome.hear,
    DecoderName.RUUVI: ruuvi.hear,
    DecoderName.XIAOMI: xiaomi.hear,
    DecoderName.ATC: atc.hear,
    DecoderName.GOVEE: govee.hear,
    DecoderName.INKBIRD: inkbird.hear,
    DecoderName.THERMOPRO: thermopro.hear,
    DecoderName.SWITCHBOT: switchbot.hear,
    DecoderName.EDDYSTONE: eddystone.hear,
    DecoderName.IBEACON: ibeacon.hear,
}
_AUTO: Final = tuple(hear for name, hear in DECODERS.items() if name is not DecoderName.IBEACON)
"""What `auto` tries, in this order."""
SEALED: Final = frozenset({DecoderName.BTHOME, DecoderName.XIAOMI, DecoderName.ATC})
"""Formats that a key opens."""
CHANGING: Final = frozenset({DecoderName.INKBIRD, DecoderName.THERMOPRO})
"""Formats with a measurement in the company identifier: what was sent before must not be kept beside it."""


def decode(wanted: DecoderName, heard: Advertisement, key: Key | None = None) -> Decoded | None:
    """What the advertisement says; None when it carries nothing for this decoder.

    Raises:
        DecodeError: it does, but the bytes make no sense.
    """
    if wanted is not DecoderName.AUTO:
        return DECODERS[wanted](heard, key)
    wrong: DecodeError | None = None
    for hear in _AUTO:
        try:
            decoded = hear(heard, key)
        except DecodeError as error:
            wrong = wrong or error
            continue
        if decoded is not None:
            return decoded
    if wrong is not None:
        raise wrong
    return None


class _Last(NamedTuple):
    """The latest packet of one kind that was passed on."""

    payload: bytes
    states: tuple[tuple[str, Value | None], ...]
    at: float


class Thinning:
    """Decides for one device which packets are news; see the module."""

    def __init__(self, min_interval_s: float) -> None:
        self._min_interval_s = min_interval_s
        self._kinds: dict[tuple[str, ...], _Last] = {}

    def news(self, decoded: Decoded, now: float) -> Decoded | None:
        """The part of a packet that is to be passed on; None when there is nothing new in it."""
        kind = tuple(quantity.point for quantity in decoded.quantities if quantity.nature is not Nature.EVENT)
        states = tuple((q.point, q.value) for q in decoded.quantities if q.nature is Nature.STATE)
        happened = any(quantity.nature is Nature.EVENT for quantity in decoded.quantities)
        last = self._kinds.get(kind)
        if last is not None:
            repeated = last.payload == decoded.payload
            rest_s = max(self._min_interval_s, _SAME_PACKET_S if repeated and decoded.numbered else 0.0)
            urgent = not repeated and (happened or states != last.states)
            if now - last.at < rest_s and not urgent:
                return None
            if repeated and happened:
                lasting = tuple(q for q in decoded.quantities if q.nature is not Nature.EVENT)
                decoded = decoded._replace(quantities=lasting)
        self._kinds.pop(kind, None)
        self._kinds[kind] = _Last(decoded.payload, states, now)
        if len(self._kinds) > _MAX_KINDS:
            del self._kinds[next(iter(self._kinds))]
        return decoded if decoded.quantities else None
