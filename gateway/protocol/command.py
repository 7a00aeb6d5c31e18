"""Pure: a server's commands as one session hears them: how old each is, and which go no further.

A command's age is told by the server's own clock: the session that was fastest from there to here says how far it is
ahead or behind, so a command that sat in a socket buffer is as old as it is, and expires [K3].
"""

from __future__ import annotations

from gateway.errors import RemoteProtocolError
from gateway.model import Command, Outcome
from gateway.protocol.messages import MAX_COMMAND_ID, CommandMessage, ResultMessage, encode
from gateway.protocol.outputs import Execute, Output, Send
from gateway.protocol.pace import COMMANDS_PER_S, Pace


class Commands:
    """Of one session; `source` names its endpoint."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._pace = Pace()
        self._offset_s = 0.0
        """Smallest (own clock − server's clock) so far."""

    def welcomed(self, mono_ms: int, now: float) -> None:
        self._offset_s = now - mono_ms / 1000

    def take(self, message: CommandMessage, now: float) -> Output:
        """Raises RemoteProtocolError: there are too many."""
        if not self._pace.take(now):
            raise RemoteProtocolError(f"more than {COMMANDS_PER_S:g} commands a second", 1008)
        if len(message.id) > MAX_COMMAND_ID:
            reason = f"an id has at most {MAX_COMMAND_ID} characters"
            return Send(encode(ResultMessage(id=message.id, outcome=Outcome.REJECTED, reason=reason)))
        sent_s = message.sent_ms / 1000
        self._offset_s = min(self._offset_s, now - sent_s)
        expires_at = sent_s + self._offset_s + message.ttl_ms / 1000
        asked = Command(message.id, message.device, message.op, message.point, message.value, expires_at, self._source)
        return Execute(asked)
