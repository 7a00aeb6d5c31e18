"""Pure: what the connector needs of a Bluetooth adapter. `link.py` gives it BlueZ; a replayed recording fits too."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Protocol

from gateway.connectors.ble.advertisement import Advertisement

Heard = Callable[[Advertisement], None]


class Peripheral(Protocol):
    """One connected device. Every method raises `DeviceError`; cancelling is safe."""

    def properties(self, uuid: str) -> Collection[str] | None:
        """What a characteristic allows (`read`, `notify`, `indicate`, `write`, …); None: the device has no such one."""

    async def read(self, uuid: str) -> bytes:
        """The value of a characteristic, asked of the device."""

    async def write(self, uuid: str, data: bytes) -> None:
        """Writes with response: when it returns, the device has it."""

    async def subscribe(self, uuid: str, on_value: Callable[[bytes], None]) -> None:
        """`on_value` is called on the event loop for every notification until the connection ends."""

    async def disconnect(self) -> None:
        """Never raises; the connection is over for this program when it returns."""


class Radio(Protocol):
    """One adapter. Methods raise `LinkError` when it is gone, with advice for a person."""

    async def open(self) -> None:
        """First of all, once."""

    async def close(self) -> None:
        """Stops everything; never raises."""

    async def start(self, passive: bool, fresh: bool, heard: Heard) -> None:
        """Starts to scan; `heard` is called on the event loop for everything that comes in.

        `fresh`: the manufacturer data of a device are those of its latest packet alone, at the price of being told of
        every packet. Only an active scan can do that.

        Raises:
            PassiveUnsupported: this adapter or service cannot scan passively.
        """

    async def stop(self) -> None:
        """Stops to scan; never raises."""

    async def reset(self) -> None:
        """Switches the adapter off and on; scans and connections are void then. Never raises: the scan that is started
        next says whether it helped."""

    async def upset(self) -> str:
        """Returns as soon as the medium changed under us so that scans and connections are void, and says how. What
        `reset` does is no news.

        Raises LinkError when it is gone and does not come back by itself.
        """

    async def connect(self, address: str, timeout_s: float, pair: bool, on_lost: Callable[[], None]) -> Peripheral:
        """Connects to a device that the current scan has heard, and pairs with it where that is asked.

        `on_lost` is called once when the connection ends without being asked to.

        Raises:
            DeviceError: not heard, no answer, refused, not paired, or not within the time.
        """


class PassiveUnsupported(Exception):
    """The caller scans actively instead."""
