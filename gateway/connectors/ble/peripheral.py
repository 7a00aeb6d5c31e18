"""One connected device, by way of bleak: bounded calls, and errors of ours.

A device that answers only those it is paired with says so in an error of its own; what a person does then is said with
it. Foreign exceptions become `DeviceError` here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from typing import Final

from bleak import BleakClient
from bleak.backends.characteristic import BleakGATTCharacteristic
from bleak.backends.device import BLEDevice
from bleak.exc import BleakDBusError, BleakError, BleakGATTProtocolError
from dbus_fast.errors import DBusFastError

from gateway.errors import DeviceError
from gateway.model import Status

log = logging.getLogger(__name__)

# OSError includes TimeoutError. EOFError: the D-Bus connection ended while a call was under way. The last three are
# what bleak's and dbus-fast's own look-ups raise when an object vanishes between two messages.
FOREIGN: Final = (BleakError, DBusFastError, OSError, EOFError, AssertionError, AttributeError, KeyError)

_NOT_PAIRED: Final = tuple(f"Authentication{how}" for how in ("Failed", "Canceled", "Rejected", "Timeout"))
_WANTS_PAIRING: Final = (0x05, 0x08, 0x0C, 0x0F)
"""ATT errors: insufficient authentication, authorization, key size, encryption."""
_OPERATION_S: Final = 15.0
_GRACE_S: Final = 5.0
"""On top of bleak's own time limit for a connect, for it to clean up."""


class BleakPeripheral:
    """One connection, with a client of its own that is never used again; a `Peripheral`."""

    def __init__(
        self,
        device: BLEDevice,
        adapter: str,
        timeout_s: float,
        pair: bool,
        on_lost: Callable[[], None],
        forget: Callable[[BleakPeripheral], None],
    ) -> None:
        self._address = device.address
        self._timeout_s = timeout_s
        self._on_lost: Callable[[], None] | None = on_lost
        self._forget = forget
        self._up = False
        self._client = BleakClient(
            device, lambda _: self.lose(), timeout=timeout_s, pair=pair, bluez={"adapter": adapter}
        )

    async def connect(self) -> None:
        """Raises DeviceError."""
        try:
            # bleak retries inside its own limit (le-connection-abort-by-local); the outer one bounds its cleaning up
            async with asyncio.timeout(self._timeout_s + _GRACE_S):
                await self._client.connect()
        except TimeoutError as error:
            raise DeviceError(
                f"{self._address}: no connection within {self._timeout_s:g} s", Status.COMM_TIMEOUT
            ) from error
        except FOREIGN as error:
            if isinstance(error, BleakDBusError) and error.dbus_error.rpartition(".")[2] in _NOT_PAIRED:
                why = f"{self._address}: pairing failed: {error}; {_pairing(self._address)}"
                raise DeviceError(why, Status.CONFIG) from error
            raise DeviceError(f"{self._address}: cannot connect: {error}", Status.DEVICE_OFFLINE) from error
        self._up = True

    def lose(self) -> None:
        """The connection ended by itself."""
        on_lost, self._on_lost = self._on_lost, None
        self._forget(self)
        if on_lost is not None and self._up:
            self._up = False
            on_lost()

    def properties(self, uuid: str) -> Collection[str] | None:
        found = self._find(uuid)
        return None if found is None else found.properties

    async def read(self, uuid: str) -> bytes:
        characteristic = self._characteristic(uuid)
        async with _operation(self._address, f"read {uuid}"):
            return bytes(await self._client.read_gatt_char(characteristic))

    async def write(self, uuid: str, data: bytes) -> None:
        characteristic = self._characteristic(uuid)
        async with _operation(self._address, f"write {uuid}"):
            await self._client.write_gatt_char(characteristic, data, response=True)

    async def subscribe(self, uuid: str, on_value: Callable[[bytes], None]) -> None:
        characteristic = self._characteristic(uuid)
        async with _operation(self._address, f"subscribe {uuid}"):
            await self._client.start_notify(characteristic, lambda _, data: on_value(bytes(data)))

    async def disconnect(self) -> None:
        self._on_lost = None
        self._forget(self)
        try:
            async with asyncio.timeout(_GRACE_S):
                await self._client.disconnect()
        except FOREIGN as error:
            log.debug("%s: disconnect: %r", self._address, error)

    def _characteristic(self, uuid: str) -> BleakGATTCharacteristic:
        found = self._find(uuid)
        if found is None:
            raise DeviceError(f"{self._address} has no characteristic {uuid}", Status.CONFIG)
        return found

    def _find(self, uuid: str) -> BleakGATTCharacteristic | None:
        if not self._up:
            raise DeviceError(f"{self._address} is not connected", Status.DEVICE_OFFLINE)
        try:
            return self._client.services.get_characteristic(uuid)
        except FOREIGN as error:
            raise DeviceError(f"{self._address}: {uuid}: {error}", Status.CONFIG) from error


def _pairing(address: str) -> str:
    """For a person: a code has to be typed on one of the two sides, and a daemon has no keyboard."""
    return f"pair it once: `pair = true`, or with a code: bluetoothctl, `scan on`, `pair {address}`, `trust {address}`"


@asynccontextmanager
async def _operation(address: str, doing: str) -> AsyncIterator[None]:
    """One operation on a characteristic: bounded, and its errors ours."""
    what = f"{address}: {doing}"
    try:
        async with asyncio.timeout(_OPERATION_S):
            yield
    except TimeoutError as error:
        raise DeviceError(f"{what}: no answer within {_OPERATION_S:g} s", Status.COMM_TIMEOUT) from error
    except BleakGATTProtocolError as error:
        advice = f"; {_pairing(address)}" if error.args[0] in _WANTS_PAIRING else ""
        raise DeviceError(f"{what}: refused: {error}{advice}", Status.EXCEPTION) from error
    except FOREIGN as error:
        raise DeviceError(f"{what}: {error!r}", Status.DEVICE_OFFLINE) from error
