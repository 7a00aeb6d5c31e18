"""paho without a socket of its own: it reads from and writes to an object that the link feeds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion


class Wire:
    """The socket that paho sees."""

    def __init__(self, send: Callable[[bytes], None], close: Callable[[], None]) -> None:
        self.inbound = bytearray()
        self._send = send
        self._close = close

    def recv(self, size: int) -> bytes:
        if not self.inbound:
            raise BlockingIOError
        taken = bytes(self.inbound[:size])
        del self.inbound[:size]
        return taken

    def send(self, data: bytes | bytearray) -> int:
        self._send(bytes(data))
        return len(data)

    def close(self) -> None:
        self._close()

    def fileno(self) -> int:
        return -1

    def setblocking(self, flag: bool) -> None:
        pass


class Client(mqtt.Client):
    """paho on our wire. `_create_socket` is the one thing of its inside that this program relies on."""

    def __init__(self, wire: Wire, **options: Any) -> None:
        super().__init__(CallbackAPIVersion.VERSION2, reconnect_on_failure=False, **options)
        self.wire = wire

    def _create_socket(self) -> Any:
        return self.wire
