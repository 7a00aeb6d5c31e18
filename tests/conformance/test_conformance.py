"""The checks: our server passes them all, and each of them fails at a server that does what it is there to find."""

from __future__ import annotations

import asyncio
import ssl

import pytest
import trustme

from gateway.conformance.bench import PATIENCE_S, Target
from gateway.conformance.run import Finding, Outcome, Verdict, numbers, run
from gateway.conformance.witness import Witness
from gateway.ingest.tokens import Role
from tests.conformance import wrong_server
from tests.conformance.wrong_server import TOKEN, Store, WrongServer
from tests.ingest.cloud import cloud, url

SEEN = [number for number, why in numbers().items() if not why]


def target(server_url: str, token: str = TOKEN, second: str = "", patience_s: float = PATIENCE_S) -> Target:
    return Target(server_url, {"Authorization": f"Bearer {token}"}, None, None, second, patience_s)


def heard(finding: Finding) -> None:
    """Nobody watches."""


async def against(wrong: WrongServer, *only: str, remembered: dict[str, int] | None = None) -> Outcome:
    return await run(target(wrong.url, patience_s=0.5), only, remembered or {}, heard)


def verdicts(outcome: Outcome) -> dict[str, Verdict]:
    return {finding.number: finding.verdict for finding in outcome.findings}


def broken(outcome: Outcome) -> dict[str, str]:
    bad = (Verdict.BROKEN, Verdict.ADVISED)
    return {finding.number: finding.came for finding in outcome.findings if finding.verdict in bad}


# ── our own server ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Finding]:
    """Every check against the real server, over real sockets, on two listeners of one sink; then again after a restart
    for what must have been kept."""
    folder = tmp_path_factory.mktemp("conformance")

    async def main() -> dict[str, Finding]:
        async with cloud(folder, listen=(("127.0.0.1", 0), ("127.0.0.1", 0))) as server:
            token = await server.committer.call(server.tokens.add, "conformance", Role.GATEWAY, 0)
            aim = target(url(server), token, url(server, listener=1))
            first = await run(aim, (), {}, heard)
        async with cloud(folder) as server:
            again = await run(target(url(server), token), ("R6b",), first.marks, heard)
        found = {finding.number: finding for finding in first.findings}
        return {**found, **{finding.number: finding for finding in again.findings}}

    return asyncio.run(main())


@pytest.mark.parametrize("number", SEEN)
def test_our_server_keeps(ours: dict[str, Finding], number: str) -> None:
    finding = ours[number]
    assert finding.verdict is Verdict.KEPT, f"{finding.came}\n" + "\n".join(finding.log)


# ── servers that break one rule ──────────────────────────────────────────────────────────────────────────────────────

WRONG = [
    ("names the first subprotocol", "C1b"),
    ("takes any subprotocol", "C1c"),
    ("lets everybody in", "C2b"),
    ("answers strangers with 404", "C2b"),
    ("closes strangers with 1008", "C2b"),
    ("welcomes in another way", "C5b"),
    ("insists on known members", "C5c"),
    ("takes binary frames", "C5e"),
    ("swallows the unreadable", "C5f"),
    ("closes the unreadable with 1002", "C5f"),
    ("breaks at depth", "C5h"),
    ("small frames only", "C6a"),
    ("takes frames of any size", "C6b"),
    ("welcomes with too much", "C6c"),
    ("keeps its context", "C7b"),
    ("answers no ping", "C8a"),
    ("takes anything first", "S1a"),
    ("waits for ever", "S1b"),
    ("takes a second hello", "S1c"),
    ("welcomes before the hello", "S2a"),
    ("welcomes late", "S2b"),
    ("welcomes twice", "S2c"),
    ("goes away on bye", "S4b"),
    ("gives no reason", "S5a"),
    ("closes with 1000 always", "S1c"),
    ("two sessions at most", "P1a"),
    ("any number of sessions", "P1b"),
    ("evicts nobody", "P2a"),
    ("lets the evicted back in", "P2b"),
    ("eviction takes back", "P3"),
    ("tells a standby nothing", "P6"),
    ("acks the first only", "R2a"),
    ("stores repeats", "R2b"),
    ("refuses repeats", "R2b"),
    ("is silent about repeats", "R2b"),
    ("refuses an overlapping gap", "R2c"),
    ("stores beyond a hole", "R2d"),
    ("nacks nothing", "R2d"),
    ("nacks too low", "R2d"),
    ("ends a session over poison", "R3a"),
    ("leaves poison unacked", "R3b"),
    ("forgets large bodies", "R4a"),
    ("counts readings to 1,000", "R4b"),
    ("follows a change of lane", "R5a"),
    ("goes on behind an end", "R5b"),
    ("closes repeats behind an end", "R5c"),
    ("takes records that cannot be", "R5d"),
    ("acks before it stores", "A1a"),
    ("acks too high", "A1b"),
    ("stores slowly", "A2a"),
    ("acks everybody", "A3a"),
    ("nacks again and again", "A5a"),
    ("stores beyond a hole", "A5b"),
    ("a duplicate ends nothing", "A5c"),
    ("nacks too high", "A7a"),
    ("takes half a window", "W4a"),
    ("takes offered streams only", "M1b"),
    ("refuses many offers", "M1c"),
    ("forgets the marks of a session", "M2a"),
    ("makes up marks", "M2b"),
    ("changes the sink", "M8"),
    ("acks no strange result", "K5c"),
    ("acks a result once", "K5d"),
    ("knows ok and failed only", "K6a"),
]
CARRIER = {"A1b": "A5a", "A7a": "R2d", "C5b": "S1c", "C6c": "S1c", "M8": "P1a", "S2a": "S1c", "S2c": "S1c"}
"""Watched rules need something to watch: a check that says enough."""


@pytest.mark.parametrize(("fault", "number"), WRONG)
def test_a_wrong_server_is_found_out(fault: str, number: str) -> None:
    async def main() -> Outcome:
        async with wrong_server.running(fault) as wrong:
            return await against(wrong, number, *([CARRIER[number]] if number in CARRIER else []))

    outcome = asyncio.run(main())
    assert number in broken(outcome), f"{fault}: {verdicts(outcome)}"
    assert broken(outcome)[number], "and it is said what came instead"


def test_marks_that_a_restart_forgot_are_missed() -> None:
    """The first run is remembered; the server that is asked then knows nothing of it."""

    async def main() -> tuple[Outcome, Outcome]:
        store = Store()
        async with wrong_server.running(store=store) as wrong:
            first = await against(wrong, "R2a")
        async with wrong_server.running(store=store) as wrong:
            kept = await against(wrong, "R6b", remembered=first.marks)
        async with wrong_server.running() as wrong:
            return kept, await against(wrong, "R6b", remembered=first.marks)

    kept, forgotten = asyncio.run(main())
    assert verdicts(kept) == {"R6b": Verdict.KEPT}
    assert "was acked in an earlier run" in broken(forgotten)["R6b"]


def test_strangers_may_be_refused_by_tls_alone() -> None:
    """A server that demands a certificate lets nobody come as far as HTTP."""
    authority = trustme.CA()
    server, client, stranger = (ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), *(_trusting(authority) for _ in range(2)))
    authority.issue_cert("127.0.0.1").configure_cert(server)
    authority.configure_trust(server)
    server.verify_mode = ssl.CERT_REQUIRED
    authority.issue_cert("conformance.example").configure_cert(client)

    async def main() -> Outcome:
        async with wrong_server.running(tls=server) as wrong:
            aim = target(wrong.url)._replace(context=client, stranger=stranger)
            return await run(aim, ("C2b",), {}, heard)

    assert verdicts(asyncio.run(main())) == {"C2b": Verdict.KEPT}


def _trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(context)
    return context


def test_every_check_is_shown_to_fail() -> None:
    shown = {number for _, number in WRONG}
    rest = {"A2b": test_a_should_is_advice, "R6b": test_marks_that_a_restart_forgot_are_missed}
    assert shown | rest.keys() == set(SEEN)


def test_a_right_server_of_another_hand_keeps_everything() -> None:
    """So what the table above finds is the fault, and nothing else."""

    async def main() -> Outcome:
        async with wrong_server.running() as wrong:
            return await run(target(wrong.url), (), {}, heard)

    assert set(broken(asyncio.run(main()))) == {"A2b"}, "it acks every record by itself, which is not advised"


def test_a_should_is_advice() -> None:
    async def main() -> Outcome:
        async with wrong_server.running() as wrong:
            return await against(wrong, "A2b")

    outcome = asyncio.run(main())
    assert verdicts(outcome) == {"A2b": Verdict.ADVISED}
    assert not outcome.broken


def test_a_message_nested_as_deep_as_one_reader_can_follow_and_the_other_cannot_is_a_finding() -> None:
    for depth in range(300, 1400, 10):
        witness = Witness()
        if witness.heard('{"type":"ack","marks":{},"x":' + "[" * depth + "]" * depth + "}") is None:
            assert "C5b" in witness.broken
