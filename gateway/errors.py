"""Pure: who acts on which error.

GatewayError
├─ ConfigError      a person must edit the file: exit 78, and the unit does not restart on it
├─ LinkError        the medium is gone: the supervisor rebuilds the connector, the uplink moves on
├─ DeviceError      one device fails: bad-quality reading, the device rests, its neighbours go on
├─ DecodeError      bytes make no sense: rejected and counted
├─ ProtocolError    the uplink protocol was broken
│  ├─ LocalProtocolError    by us: a bug
│  └─ RemoteProtocolError   by the peer: close and back off
├─ AuthError        the endpoint rests long; nobody hammers
├─ StoreError       disk full, failing or corrupt: the daemon goes on from memory
└─ CommandError     becomes a result, never a crash

A foreign exception is mapped once, at the seam where it enters (`raise … from error`).
Data lives in attributes; the text is made in `__str__` or by the first argument.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.model import Outcome, Status, Value


class GatewayError(Exception):
    """Base of everything this program raises on purpose."""


class ConfigError(GatewayError):
    """The configuration cannot be used; `problems` holds one finished line for each mistake."""

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class LinkError(GatewayError):
    """The medium (port, socket, adapter, broker) is gone or cannot be opened."""


class DeviceError(GatewayError):
    """One device did not give what was asked; `status` is what its readings shall carry."""

    def __init__(self, message: str, status: Status) -> None:
        super().__init__(message)
        self.status = status


class DecodeError(GatewayError):
    """Bytes or text that do not follow their format; `offset` is where, when that is known."""

    def __init__(self, message: str, offset: int | None = None) -> None:
        super().__init__(message if offset is None else f"{message} (at byte {offset})")
        self.offset = offset


class ProtocolError(GatewayError):
    """The uplink protocol was broken; `code` is the WebSocket close code to use."""

    def __init__(self, message: str, code: int = 1002) -> None:
        super().__init__(message)
        self.code = code


class LocalProtocolError(ProtocolError):
    """We broke it: a bug of ours."""


class RemoteProtocolError(ProtocolError):
    """The peer broke it."""


class AuthError(GatewayError):
    """The peer refuses who we are, or we refuse who they are (certificate, token)."""


class StoreError(GatewayError):
    """The disk is full, failing, or holds something that cannot be read."""


class CommandError(GatewayError):
    """A command that ends in something other than `ok`; `outcome` and the text become its result."""

    def __init__(self, outcome: Outcome, reason: str, value: Value | None = None) -> None:
        super().__init__(reason)
        self.outcome = outcome
        self.value = value
