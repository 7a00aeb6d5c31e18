"""What a check is given: connections to the server under test, ids that nobody has, and a log of what was said.

Every check has a process of its own, so that the server ends whatever an earlier check may have left open.
"""

from __future__ import annotations

import secrets
import ssl
from collections.abc import Sequence
from string import ascii_uppercase
from typing import Final, NamedTuple

from gateway.conformance import says
from gateway.conformance.peer import Peer, Refused, dial
from gateway.conformance.register import Failed
from gateway.conformance.witness import Witness
from gateway.protocol.messages import SUBPROTOCOL

PATIENCE_S: Final = 5.0
"""For what should come: far beyond the time limits of the protocol, for slow paths."""


class Target(NamedTuple):
    """The server under test."""

    url: str
    headers: dict[str, str]
    """Who we are."""
    context: ssl.SSLContext | None
    stranger: ssl.SSLContext | None
    """The same without our certificate."""
    second: str = ""
    """Another address of the same sink."""
    patience_s: float = PATIENCE_S


class Bench:
    """One check. `async with`: whatever it opened is closed at the end."""

    def __init__(self, target: Target, witness: Witness, remembered: dict[str, int] | None = None) -> None:
        self.target = target
        self.witness = witness
        self.process = ident()
        self.log: list[str] = []
        self.remembered = remembered or {}
        """Stream → mark that an earlier run was acked."""
        self._peers: list[Peer] = []

    async def __aenter__(self) -> Bench:
        return self

    async def __aexit__(self, *_: object) -> None:
        for peer in self._peers:
            await peer.leave()

    def stream(self) -> str:
        return ident()

    async def dial(
        self,
        subprotocols: Sequence[str] = (SUBPROTOCOL,),
        *,
        stranger: bool = False,
        headers: dict[str, str] | None = None,
        compress: bool = False,
        second: bool = False,
    ) -> Peer:
        """Connected, nothing said. `stranger`: with these headers alone, and no certificate. Raises Refused."""
        url = self.target.second if second and self.target.second else self.target.url
        shown = self.target.headers if headers is None and not stranger else headers or {}
        context = self.target.stranger if stranger else self.target.context
        name = ascii_uppercase[len(self._peers) % len(ascii_uppercase)]
        self.log.append(f"{name} → connects to {url}{' as a stranger' if stranger else ''}")
        patience_s = self.target.patience_s
        ws = await dial(url, shown, context, subprotocols, compress, patience_s)
        peer = Peer(ws, name, self.witness, self.log, patience_s)
        self._peers.append(peer)
        return peer

    async def session(
        self,
        *streams: str,
        process: str = "",
        standby: bool = False,
        compress: bool = False,
        second: bool = False,
    ) -> Peer:
        """Connected, greeted and welcomed. Raises Failed."""
        try:
            peer = await self.dial(compress=compress, second=second)
        except Refused as error:
            raise Failed(f"it refuses the connection: {error}") from error
        await peer.say(says.hello(process or self.process, *streams, standby=standby))
        await peer.until(lambda: peer.welcome, "the welcome")
        return peer


def ident() -> str:
    return secrets.token_hex(16)
