"""The caller's end of the local socket: plain blocking calls for the command line."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import msgspec

from gateway.errors import GatewayError, LinkError
from gateway.model import Json

_ENDLESS = ("tail", "trace")


class ControlClient:
    """Asks the running daemon. Raises LinkError when none is there, GatewayError with its answer when it refuses."""

    def __init__(self, path: Path, timeout_s: float = 10.0) -> None:
        self._path = path
        self._timeout_s = timeout_s

    def ask(self, op: str, **arguments: Json) -> Json:
        """One question, one answer."""
        for answer in self.follow(op, **arguments):
            return answer
        raise LinkError(f"the gateway at {self._path} ended without an answer")

    def follow(self, op: str, **arguments: Json) -> Iterator[Json]:
        """One question, answers until the daemon ends them or the iterator is closed."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
            link.settimeout(self._timeout_s)
            try:
                link.connect(str(self._path))
            except PermissionError as error:
                raise LinkError(
                    f"this user may not connect to {self._path}: try sudo, or join the group of the service"
                ) from error
            except OSError as error:
                raise LinkError(
                    f"no gateway answers at {self._path} ({error.strerror or error}). Is it running? "
                    "Another one is named with --config or --socket."
                ) from error
            try:
                link.sendall(msgspec.json.encode({"op": op, **arguments}) + b"\n")
                link.settimeout(None if op in _ENDLESS else self._timeout_s)
                for line in link.makefile("rb"):
                    answer = msgspec.json.decode(line, type=dict[str, Json])
                    if "error" in answer:
                        raise GatewayError(answer["error"])
                    yield answer["ok"]
            except TimeoutError as error:
                raise LinkError(f"the gateway at {self._path} does not answer within {self._timeout_s:g} s") from error
            except OSError as error:
                raise LinkError(f"the gateway at {self._path} is gone: {error.strerror}") from error
