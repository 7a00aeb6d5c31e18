"""Sources use packet ids again, and what killed processes left behind does not say which message came last."""

from __future__ import annotations

from gateway.buffer.ledger import Home, OriginLedger
from gateway.model import Origin

SESSION = bytes(8)


def origin(content: int, packet_id: int = 7) -> Origin:
    return Origin(SESSION, packet_id, content.to_bytes(16, "big"))


def ledger() -> tuple[OriginLedger, list[Home]]:
    released: list[Home] = []
    return OriginLedger(released.append, lambda session: None), released


def test_a_later_process_knows_every_message_that_an_id_may_stand_for() -> None:
    known, released = ledger()
    row, entry = Home(), Home()
    known.recall([origin(2)], row, settled=True)  # committed by the last process
    known.recall([origin(1)], entry, settled=True)  # in the ring since the one before it
    assert known.seen(origin(1))
    assert known.seen(origin(2))
    assert (known.of(row), known.of(entry)) == ((origin(2),), (origin(1),))
    assert not released


def test_a_new_message_of_the_id_or_its_proof_ends_them_all() -> None:
    for end in (lambda each: each.accept(origin(3)), lambda each: each.forget([origin(2)])):
        known, released = ledger()
        homes = [Home(), Home()]
        for content, home in enumerate(homes, start=1):
            known.recall([origin(content)], home, settled=True)
        end(known)
        assert not known.seen(origin(1))
        assert not known.seen(origin(2))
        assert set(released) == set(homes)


def test_what_comes_twice_is_one_message_in_its_newer_home() -> None:
    known, released = ledger()
    row, flight = Home(), Home()
    known.recall([origin(1)], row, settled=True)
    known.recall([origin(1)], flight, settled=False)
    assert released == [row]
    assert not known.settled(origin(1))
    assert known.of(flight) == (origin(1),)


def test_what_the_source_can_still_send_is_kept_with_all_that_the_id_may_stand_for() -> None:
    known, released = ledger()
    for content in (1, 2):
        known.recall([origin(content)], Home(), settled=True)
    known.recall([origin(5, packet_id=8)], Home(), settled=True)
    known.keep_only(SESSION, [origin(1)])
    assert known.seen(origin(1))
    assert not known.seen(origin(5, packet_id=8))
    assert len(released) == 1
