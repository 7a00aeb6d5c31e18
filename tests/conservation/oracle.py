"""The judgement: delivered + declared gaps = promised, row by row.

Of every row that was promised one of these is true at the end, and nothing else is accepted:

* a sink has it, once, with the payload it was made with, in the body that its identity was given, in order;
* a sink has it as a dead letter, because it is poison, or lies in a batch with one;
* a gap of a sink covers the very stream and number that it was given, and says how many it took where it says a number;
* a fault took it within the rules: a power cut, what was younger than the commit bound (`World` has worked out which);
  a restored backup, what was acked and belongs to a stream that the gateway has no reason to offer any more.

And the other way round: no gap without a reason, none over what its own sink has.
"""

from __future__ import annotations

from collections.abc import Sequence

from gateway.model import GapReason, RecordKind
from gateway.protocol import batch
from gateway.protocol.messages import GapBody
from tests.conservation.site import Storage, Stored
from tests.conservation.taps import Made, numbers
from tests.conservation.world import World

READINGS = 2
"""Of each row."""


class _Account:
    """What one sink has."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.rows: dict[int, tuple[str, int]] = {}
        """Row → where it was stored first."""
        self.dead: set[int] = set()
        self.gaps: list[tuple[str, Stored, GapBody]] = []


class Judge:
    """`verdict` lists what is wrong."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._made = world.witness.made
        self.wrong: list[str] = list(world.witness.violations)
        self._lost: set[tuple[str, int]] = set()
        """Reported by a gap."""
        self._accounts = [_Account(storage) for storage in world.stores]

    def verdict(self) -> list[str]:
        for account in self._accounts:
            self._read(account)
        delivered = {n for account in self._accounts for n in account.rows} | {
            n for account in self._accounts for n in account.dead
        }
        if not delivered <= set(range(1, self._world.number + 1)):
            self.wrong.append("rows that nobody made")
        for account in self._accounts:
            for stream, stored, body in account.gaps:
                self._weigh(account, stream, stored, body)
        missing = self._world.promised.keys() - delivered
        if missing:
            self._account_for(missing)
        return self.wrong

    # ── what is there ────────────────────────────────────────────────────────────────────────────────────────────

    def _read(self, account: _Account) -> None:
        for stream, records in account.storage.streams.items():
            expected, newest = 1, 0
            for record in records:
                if record.first != expected:
                    self.wrong.append(f"a hole in {stream} before {record.first}")
                expected = record.last + 1
                if record.kind is RecordKind.BATCH:
                    newest = self._batch(account, stream, record, newest)
                elif isinstance(record.body, GapBody):
                    account.gaps.append((stream, record, record.body))
                elif record.poison:
                    self.wrong.append(f"{stream} {record.first}: {record.poison}")

    def _batch(self, account: _Account, stream: str, record: Stored, newest: int) -> int:
        made = self._made.get(stream, {}).get(record.first)
        if made is None or made.body != record.raw:
            self.wrong.append(f"{stream} {record.first} holds another body than was made")
            return newest
        if not isinstance(record.body, batch.Body):
            self._dead_letter(account, stream, record)
            return newest
        world = self._world
        for group in record.body.groups:
            for text, value in zip(*group.v, strict=True):
                number = int(str(value))
                if text != world.payload(number):
                    self.wrong.append(f"{number} has another payload")
                if number in account.rows and number not in world.may_be_twice:
                    self.wrong.append(f"{number} is there twice: {account.rows[number]} and {stream, record.first}")
                account.rows.setdefault(number, (stream, record.first))
                if number not in world.redelivered:
                    if number <= newest and stream not in world.witness.renumbered:
                        self.wrong.append(f"{number} comes behind {newest} in {stream}")
                    newest = max(newest, number)
        return newest

    def _dead_letter(self, account: _Account, stream: str, record: Stored) -> None:
        those = set(numbers(record.raw))
        self._world.seen["poison"] += 1
        account.dead |= those
        if not those & self._world.poison:
            self.wrong.append(f"{stream} {record.first} is a dead letter, and nothing in it is poison")

    # ── gaps ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _weigh(self, account: _Account, stream: str, stored: Stored, body: GapBody) -> None:
        """One gap: is there a reason for it, does it count right, does its own sink have what it says is lost?"""
        world, reason = self._world, body.reason
        where = f"gap {stored.first}..{stored.last} of {stream} ({reason.value}, {body.readings})"
        if body.readings is None and b'"readings"' in stored.raw:
            world.seen["part of a gap"] += 1
        batches = list(world.witness.named(stream, stored.first, stored.last))
        if not self._has_reason(reason):
            self.wrong.append(f"{where}: nothing had to be given up")
        elsewhere = reason is GapReason.STORED_ELSEWHERE and body.readings == 0  # else nobody knows of all of it
        if not elsewhere:
            self._lost.update((name, seq) for name, seq, _ in batches)
        lost = sum(made.readings for _, _, made in batches)
        if reason in (GapReason.EVICTED, GapReason.EXPIRED, GapReason.OVERFLOW) and body.readings not in (None, lost):
            self.wrong.append(f"{where} says so, and took {lost}")
        if reason is GapReason.UNSENT and len(world.stores) == 1 and not (world.rotten or world.disk_failed):
            never = [seq for name, seq, _ in batches if (name, seq) not in account.storage.lost]
            if never:
                self.wrong.append(f"{where}: the sink never had {never}")
        if elsewhere:
            world.seen["gap of stored_elsewhere"] += 1
            self._is_elsewhere(account, where, batches)
        for home_stream, _, made in batches:
            for number in numbers(made.body):
                home = account.rows.get(number)
                if home is not None and home[0] == home_stream and number not in world.may_be_twice:
                    self.wrong.append(f"{where}: {number} is stored at {home}")

    def _has_reason(self, reason: GapReason) -> bool:
        world = self._world
        match reason:
            case GapReason.EVICTED:
                return world.settings.max_size < 1 << 20
            case GapReason.EXPIRED:
                return world.settings.max_age is not None
            case GapReason.OVERFLOW:
                return world.disk_failed or world.rotten or world.settings.max_size < 1 << 20
            case GapReason.OVERSIZE:
                return bool(world.oversize)
            case GapReason.CORRUPT:
                return world.rotten
            case GapReason.UNSENT:
                backups = any(store.lost for store in world.stores)
                # a crash while the disk fails may take the middle of a stream, which then is a hole
                return backups or len(world.stores) > 1 or world.rotten or world.disk_failed
            case GapReason.STORED_ELSEWHERE:
                return len(world.stores) > 1
            case _:
                return False

    def _is_elsewhere(self, account: _Account, where: str, batches: Sequence[tuple[str, int, Made]]) -> None:
        """Another sink has it, or says that it was lost, or had it until a backup was restored there, and does not say
        that this one has it."""
        others = [each for each in self._accounts if each is not account]
        for stream, seq, made in batches:
            for number in numbers(made.body):
                if not any(
                    number in each.rows
                    or number in each.dead
                    or _given_up(each, stream, seq)
                    or _lost(each, stream, seq)
                    for each in others
                ):
                    self.wrong.append(f"{where}: {number} ({seq}) is nowhere else")

    # ── what is missing ──────────────────────────────────────────────────────────────────────────────────────────

    def _account_for(self, missing: set[int]) -> None:
        world = self._world
        missing = missing - world.may_be_lost
        self._oversize(missing & world.oversize)
        missing = missing - world.oversize
        if not missing:
            return
        homes: dict[int, list[tuple[str, int]]] = {}
        for stream, made in self._made.items():
            for seq, each in made.items():
                if each.kind is RecordKind.BATCH:
                    for number in missing.intersection(numbers(each.body)):
                        homes.setdefault(number, []).extend([(stream, seq), *self._moved(stream, seq)])
        for number in sorted(missing):
            if any(self._reported(*home) or self._out_of_reach(*home) for home in homes.get(number, ())):
                continue
            if number in self._damaged():
                continue
            self.wrong.append(f"{number} is missing and not reported: it was {homes.get(number, 'in no batch')}")

    def _moved(self, stream: str, seq: int) -> list[tuple[str, int]]:
        """The gaps for this record, under the identities that they were given later."""
        moved = self._world.witness.moved.items()
        found = [new for new, (old, first, last) in moved if old == stream and first <= seq <= last]
        return [*found, *(later for new in found for later in self._moved(*new))]

    def _damaged(self) -> set[int]:
        """Rows that were in a record on disk of which a bit flipped, or whose loss it told of; a gap of unknown size
        stands for all of them."""
        if not self._corruption:
            return set()
        return {
            number
            for stream, seq in self._world.damaged
            for _, _, made in self._world.witness.named(stream, seq, self._last(stream, seq))
            for number in numbers(made.body)
        }

    def _last(self, stream: str, seq: int) -> int:
        made = self._made.get(stream, {}).get(seq)
        return made.last if made is not None else seq

    @property
    def _corruption(self) -> bool:
        return any(body.reason is GapReason.CORRUPT for a in self._accounts for _, _, body in a.gaps)

    def _oversize(self, missing: set[int]) -> None:
        """Rows that are too large for any batch are gaps from the beginning."""
        told = sum(
            any(self._accounts_for(*home) for home in [(stream, seq), *self._moved(stream, seq)])
            for stream, made in self._made.items()
            for seq, each in made.items()
            if each.kind is RecordKind.GAP and GapReason.OVERSIZE.value.encode() in each.body
            if (stream, seq) not in self._world.witness.moved
        )
        if len(missing) > told:
            self.wrong.append(f"{len(missing)} rows were too large, and {told} gaps say so")

    def _accounts_for(self, stream: str, seq: int) -> bool:
        if (stream, seq) in self._world.gaps_may_be_lost:
            return True
        damaged = self._corruption and (stream, seq) in self._world.damaged
        return damaged or self._tells(stream, seq) or self._out_of_reach(stream, seq)

    def _tells(self, stream: str, seq: int) -> bool:
        return any(
            name == stream and stored.first <= seq <= stored.last
            for account in self._accounts
            for name, stored, _ in account.gaps
        )

    def _reported(self, stream: str, seq: int) -> bool:
        return (stream, seq) in self._lost

    def _out_of_reach(self, stream: str, seq: int) -> bool:
        """A restored backup lost it, and the gateway was told before that it is stored. Its latest hello went to some
        other sink, or had no reason or no room (32 sealed streams) to offer it, as far as it knows it; or the stream is
        distrusted, and never used again."""
        world = self._world
        took = [storage for storage in world.stores if (stream, seq) in storage.lost]
        if not took or seq > world.witness.acked.get(stream, 0):
            return False
        if stream in world.witness.distrusted:
            return True
        if seq < world.last_offered.get(stream, 0) and all(storage.id == world.last_sink for storage in took):
            return False
        world.seen["a backup took what nobody offers any more"] += 1
        return True


def _given_up(account: _Account, stream: str, seq: int) -> bool:
    """A gap stands there for it, and tells of the loss: it was acked like any record."""
    return any(
        name == stream and stored.first <= seq <= stored.last and body.reason is not GapReason.STORED_ELSEWHERE
        for name, stored, body in account.gaps
    )


def _lost(account: _Account, stream: str, seq: int) -> bool:
    if (stream, seq) not in account.storage.lost:
        return False
    return not any(
        name == stream and stored.first <= seq <= stored.last and body.reason is GapReason.STORED_ELSEWHERE
        for name, stored, body in account.gaps
    )
