"""Pure: whose resolvable address is it.

A device that guards its privacy makes up a new address every quarter of an hour; who has its identity resolving key
can tell that it is the same device. Every such address on the air has to be tried with every key, once: what came of
it is remembered, and forgotten when too many others came after it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Protocol

from gateway.connectors.ble.advertisement import mac

_MAX_REMEMBERED: Final = 1024
_RESOLVABLE: Final = 0b01
"""The two highest bits of a random address that can be resolved."""


class Resolver(Protocol):
    """The identity resolving key of one device."""

    def made(self, address: bytes) -> bool:
        """True when this device made up the address."""


class Identities:
    """Resolvable address → the address of the configuration."""

    def __init__(self, keys: Mapping[str, Resolver]) -> None:
        """Keys by the address under which the configuration knows the device."""
        self._keys = keys
        self._known: dict[str, str] = {}

    def of(self, address: str) -> str:
        """The configured address behind an address on the air; the same when it is nobody's."""
        if not self._keys or int(address[:2], 16) >> 6 != _RESOLVABLE:
            return address
        known = self._known.get(address)
        if known is None:
            raw = mac(address)
            known = next((identity for identity, key in self._keys.items() if key.made(raw)), address)
            if len(self._known) >= _MAX_REMEMBERED:
                del self._known[next(iter(self._known))]
            self._known[address] = known
        return known
