"""Pure: messages of sources that redeliver, from their arrival until the source cannot send them again.

A message has a home once it is in a record: the ring entry, the row on disk, or after an ack a ring entry of its
own. That is where a later process finds it. When all messages of a home are forgotten, the home is given back.

A source uses its 65,535 packet ids again. In a running process the newest message of an id is the only one; a later
process finds several where earlier ones were killed before their proofs, and nothing says which came last: it knows
them all until one of the id is new or forgotten.

A session is *whole* while every message of it that was ever taken over and may come again is known. It becomes so
when the source has proved what it can send again, and stays so as long as the ring outlives the processes: after a
power cut it is not, and then a message that comes again unrecognised may be there twice.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

from gateway.buffer.ring import Entry
from gateway.model import Origin


class Home:
    """What keeps the origins of one record across the end of the process."""

    __slots__ = ("__weakref__", "entry", "left", "row")

    def __init__(self) -> None:
        self.entry: Entry | None = None
        """A ring entry that exists for these origins only."""
        self.row: tuple[str, int] | None = None
        """Stream and number of a row on disk."""
        self.left = 0


class _Known:
    __slots__ = ("fingerprint", "home", "older", "settled")

    def __init__(self, fingerprint: bytes) -> None:
        self.fingerprint = fingerprint
        self.home: Home | None = None
        self.older: _Known | None = None
        """Another message of this packet id; which came first is not known."""
        self.settled = False


class OriginLedger:
    """The buffer's side of `Ledger`. A session has at most 65,535 packet ids, so this is bounded by itself."""

    def __init__(self, release: Callable[[Home], None], vouch: Callable[[bytes], None]) -> None:
        self._sessions: dict[bytes, dict[int, _Known]] = {}
        self._whole: set[bytes] = set()
        self._release = release
        self._vouch = vouch

    def __len__(self) -> int:
        return sum(len(session) for session in self._sessions.values())

    def _find(self, origin: Origin) -> _Known | None:
        session = self._sessions.get(origin.session)
        known = session.get(origin.packet_id) if session is not None else None
        while known is not None and known.fingerprint != origin.fingerprint:
            known = known.older
        return known

    # ── for connectors ───────────────────────────────────────────────────────────────────────────────────────────────

    def seen(self, origin: Origin) -> bool:
        return self._find(origin) is not None

    def settled(self, origin: Origin) -> bool:
        known = self._find(origin)
        return known is not None and known.settled

    def whole(self, session: bytes) -> bool:
        return session in self._whole

    def forget(self, origins: Sequence[Origin]) -> None:
        for origin in origins:
            if self._find(origin) is not None:
                self._drop(origin.session, origin.packet_id)

    def keep_only(self, session: bytes, origins: Collection[Origin]) -> None:
        kept = {(origin.packet_id, origin.fingerprint) for origin in origins if origin.session == session}
        for packet_id, known in list(self._sessions.get(session, {}).items()):
            if not any((packet_id, each.fingerprint) in kept for each in _all(known)):
                self._drop(session, packet_id)
        self._whole.add(session)
        self._vouch(session)

    def _drop(self, session: bytes, packet_id: int) -> None:
        known = self._sessions[session].pop(packet_id)
        if not self._sessions[session]:
            del self._sessions[session]
        for each in _all(known):
            self._leave(each)

    # ── for the buffer ───────────────────────────────────────────────────────────────────────────────────────────────

    def accept(self, origin: Origin) -> None:
        """A message came in. A packet id that comes again with other content is another message."""
        session = self._sessions.setdefault(origin.session, {})
        old = session.get(origin.packet_id)
        session[origin.packet_id] = _Known(origin.fingerprint)
        for each in _all(old):
            self._leave(each)

    def house(self, origins: Iterable[Origin], home: Home) -> None:
        """These are in one record now. Those that were forgotten meanwhile stay so."""
        for origin in origins:
            known = self._find(origin)
            if known is not None:
                self._leave(known)
                known.home = home
                home.left += 1

    def settle(self, origins: Iterable[Origin]) -> None:
        for origin in origins:
            known = self._find(origin)
            if known is not None:
                known.settled = True

    def recall(self, origins: Iterable[Origin], home: Home, *, settled: bool) -> None:
        """An earlier process had these."""
        for origin in origins:
            known = self._find(origin)
            if known is None:
                session = self._sessions.setdefault(origin.session, {})
                known = _Known(origin.fingerprint)
                known.older = session.get(origin.packet_id)
                session[origin.packet_id] = known
            known.settled = False
        self.house(origins, home)
        if settled:
            self.settle(origins)

    def trust(self, sessions: Iterable[bytes]) -> None:
        """Of these nothing was lost between an earlier process and this one."""
        self._whole.update(sessions)

    def known(self, origins: Sequence[Origin]) -> tuple[Origin, ...]:
        """Those of them that are not forgotten."""
        return tuple([origin for origin in origins if self.seen(origin)])

    def packets(self) -> set[tuple[bytes, int]]:
        """Session and packet id of all that is known."""
        return {(session, packet_id) for session, messages in self._sessions.items() for packet_id in messages}

    def of(self, home: Home) -> tuple[Origin, ...]:
        """The messages that live there."""
        return tuple(
            [
                Origin(session, packet_id, known.fingerprint)
                for session, messages in self._sessions.items()
                for packet_id, newest in messages.items()
                for known in _all(newest)
                if known.home is home
            ]
        )

    def _leave(self, known: _Known) -> None:
        home, known.home = known.home, None
        if home is not None:
            home.left -= 1
            if home.left == 0:
                self._release(home)


def _all(newest: _Known | None) -> Iterator[_Known]:
    """All messages of one packet id."""
    while newest is not None:
        yield newest
        newest = newest.older
