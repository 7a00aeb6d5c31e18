"""Tokens and certificates are renewed under load, at the real server, without a gap; that nobody does it is said."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import sqlite3
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from gateway.buffer.buffer import Buffer
from gateway.clock import SystemClock
from gateway.ingest.config import Settings
from gateway.ingest.server import IngestServer
from gateway.ingest.server import running as serving
from gateway.ingest.tokens import Role
from gateway.model import ClockState, Trust
from gateway.testing.relay import Relay
from gateway.uplink.config import Endpoint, Standby, TlsSettings, UplinkSettings
from gateway.uplink.connections import Activate, Connect, Retire
from gateway.uplink.failover import Failover
from gateway.uplink.reactions import QUARTER_HOUR_S, Kind, Reaction
from gateway.uplink.uplink import About, Uplink
from gateway.uplink.watch import Watch
from tests.uplink.house import running, state_of, trouble_of, until
from tests.uplink.memory import MemoryCommands, MemoryOutbox
from tests.uplink.pki import Pki, pem, secret
from tests.uplink.sink import Sink, Store
from tests.uplink.test_identity_certificate import jwt
from tests.uplink.test_whole import buffering, row, stored

DAY_S = 86_400.0


@pytest.fixture(autouse=True)
def _look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.uplink.uplink.LOOK_AT_FILES_EVERY_S", 0.02)


# ── at the real server, under load ───────────────────────────────────────────────────────────────────────────────────


RTT_S = 0.1


class Load:
    """A reading every 5 ms; how long the oldest ever waited for its ack; whether there was nowhere to send it to."""

    def __init__(self, buffer: Buffer, uplink: Uplink) -> None:
        self.sent = 0
        self.waited_s = 0.0
        self.usual_s = 0.0
        """The same while nothing happens, on this machine at this moment."""
        self.nowhere = 0
        self._buffer = buffer
        self._uplink = uplink

    async def run(self) -> None:
        while True:
            await self._buffer.append([row(self.sent)])
            self.sent += 1
            self.waited_s = max(self.waited_s, self._buffer.waiting()[1])
            self.nowhere += self._uplink.status()["active"] is None
            await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def loaded(home: Path, endpoint: Endpoint) -> AsyncIterator[tuple[Load, Uplink]]:
    async with buffering(home) as buffer, running(buffer, endpoint) as uplink:
        await until(lambda: state_of(uplink, "a") == "active")
        load = Load(buffer, uplink)
        task = asyncio.create_task(load.run())
        try:
            await until(lambda: load.sent > 50)
            load.waited_s = 0.0
            await until(lambda: load.sent > 150)
            load.usual_s, load.waited_s = load.waited_s, 0.0
            yield load, uplink
            seen = load.sent
            await until(lambda: load.sent > seen + 50)
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await until(lambda: buffer.waiting()[0] == 0)


async def issue(server: IngestServer) -> str:
    return await server.committer.call(server.tokens.add, "gw-1", Role.GATEWAY, 0)


def forget(server: IngestServer, token: str) -> None:
    """As if it had run out: the others of this gateway stay."""
    with server.sink.transaction() as db:
        gone = db.execute("DELETE FROM token WHERE digest = ?", (hashlib.sha256(token.encode()).digest(),)).rowcount
    assert gone == 1
    server.tokens.load()


def left(caplog: pytest.LogCaptureFixture) -> int:
    """How often a session was left for one with renewed credentials."""
    messages = [each.getMessage() for each in caplog.records if each.name == "gateway.uplink.uplink"]
    return sum(each.endswith(" a: its credentials were renewed") for each in messages)


def gaps(file: Path) -> int:
    with contextlib.closing(sqlite3.connect(file)) as db:
        return int(db.execute("SELECT count(*) FROM gap").fetchone()[0])


def test_a_token_is_renewed_under_load_without_a_gap(
    pki: Pki, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Twice; and in the end the new one is needed."""
    caplog.set_level(logging.DEBUG)  # the wire too
    shown: list[str] = []

    async def main() -> None:
        settings = Settings(tmp_path / "sink", (("127.0.0.1", 0),), cert=pki.folder / "s.crt", key=pki.folder / "s.key")
        async with serving(settings, SystemClock()) as server:
            tokens = [await issue(server)]
            file = secret(tmp_path / "token", tokens[0])
            async with Relay("127.0.0.1", server.addresses[0][1], delay_s=RTT_S / 2) as relay:
                url = f"wss://127.0.0.1:{relay.port}/uplink"
                endpoint = Endpoint(url=url, name="a", token_file=file, tls=TlsSettings(cafile=pki.cafile))
                async with loaded(tmp_path, endpoint) as (load, uplink):
                    for _ in range(2):
                        tokens.append(await issue(server))
                        secret(file, tokens[-1])
                        await until(lambda: relay.accepted == len(tokens) and state_of(uplink, "a") == "active")
                        await server.committer.call(forget, server, tokens[-2])
                    shown.append(json.dumps(uplink.status()))
                    assert load.nowhere == 0, "there was always somewhere to send to"
                    assert load.waited_s < max(2 * RTT_S + 0.3, 4 * load.usual_s)
                    relay.cut()
                    await until(lambda: relay.accepted == 4 and state_of(uplink, "a") == "active")
                    sent = load
            values = stored(next((tmp_path / "sink").glob("*.db")))
            assert values == list(range(sent.sent))
            assert gaps(next((tmp_path / "sink").glob("*.db"))) == 0
        for token in tokens:
            assert token not in caplog.text
            assert token not in shown[0]

    server_files(pki)
    asyncio.run(main())
    assert left(caplog) == 2


def test_a_certificate_is_renewed_under_load_without_a_gap_even_when_its_key_comes_later(
    pki: Pki, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    async def main() -> None:
        settings = Settings(
            tmp_path / "sink",
            (("127.0.0.1", 0),),
            cert=pki.folder / "s.crt",
            key=pki.folder / "s.key",
            client_ca=pki.cafile,
        )
        async with serving(settings, SystemClock()) as server:
            await issue(server)  # makes the gateway known
            async with Relay("127.0.0.1", server.addresses[0][1], delay_s=RTT_S / 2) as relay:
                tls = pki.client("gw-1")
                assert tls.certfile is not None
                assert tls.keyfile is not None
                endpoint = Endpoint(url=f"wss://127.0.0.1:{relay.port}/uplink", name="a", tls=tls)
                async with loaded(tmp_path, endpoint) as (load, uplink):
                    fresh = pki.ca.issue_cert("gw-1", common_name="gw-1")
                    secret(tls.certfile, pem(fresh), 0o644)
                    await until(lambda: "key values mismatch" in trouble_of(uplink, "a"))
                    assert state_of(uplink, "a") == "active", "what is open stays open"
                    secret(tls.keyfile, fresh.private_key_pem.bytes().decode())
                    await until(lambda: relay.accepted == 2 and state_of(uplink, "a") == "active")
                    assert load.nowhere == 0
                    assert load.waited_s < max(2 * RTT_S + 0.3, 4 * load.usual_s)
            assert stored(next((tmp_path / "sink").glob("*.db"))) == list(range(load.sent))

    server_files(pki)
    asyncio.run(main())
    assert left(caplog) == 1


def server_files(pki: Pki) -> None:
    issued = pki.ca.issue_cert("127.0.0.1")
    secret(pki.folder / "s.crt", pem(issued), 0o644)
    secret(pki.folder / "s.key", issued.private_key_pem.bytes().decode())


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    return Pki(tmp_path)


# ── how files change ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_link_that_leads_to_another_file_is_a_renewal(tmp_path: Path) -> None:
    """As certbot, Kubernetes and hand-made scripts do it: the name stays, what it points at changes."""

    async def main() -> None:
        outbox = MemoryOutbox()
        for name in ("old", "new"):
            (tmp_path / name).mkdir()
            secret(tmp_path / name / "token", f"{name}-token")
        (tmp_path / "current").symlink_to("old")
        async with Sink(Store()) as sink:
            endpoint = Endpoint(url=sink.url, name="a", token_file=tmp_path / "current" / "token")
            async with running(outbox, endpoint) as uplink:
                await until(lambda: state_of(uplink, "a") == "active")
                (tmp_path / "next").symlink_to("new")
                (tmp_path / "next").rename(tmp_path / "current")
                await until(lambda: sink.authorizations == ["Bearer old-token", "Bearer new-token"])
                await until(lambda: sink.byes == ["its credentials were renewed"])
                outbox.put(1)
                await until(lambda: sink.store.rows() == [1])

    asyncio.run(main())


def test_the_standby_is_renewed_too(tmp_path: Path) -> None:
    async def main() -> None:
        outbox, store = MemoryOutbox(), Store()
        token = secret(tmp_path / "token", "old")
        async with Sink(store) as first, Sink(store) as second:
            ends = [Endpoint(url=each.url, name=name, token_file=token) for each, name in ((first, "a"), (second, "b"))]
            async with running(outbox, *ends) as uplink:
                await until(lambda: (state_of(uplink, "a"), state_of(uplink, "b")) == ("active", "standby"))
                secret(token, "new")
                await until(lambda: first.authorizations == second.authorizations == ["Bearer old", "Bearer new"])
                await until(lambda: first.byes == second.byes == ["its credentials were renewed"])
                await until(lambda: (state_of(uplink, "a"), state_of(uplink, "b")) == ("active", "standby"))

    asyncio.run(main())


def test_a_new_token_that_is_refused_leaves_the_old_session_alone(tmp_path: Path) -> None:
    async def main() -> None:
        outbox = MemoryOutbox()
        token = secret(tmp_path / "token", "good")
        async with (
            Sink(Store(), token="good") as sink,
            running(outbox, Endpoint(url=sink.url, name="a", token_file=token)) as uplink,
        ):
            await until(lambda: state_of(uplink, "a") == "active")
            secret(token, "mistyped")
            await until(lambda: "HTTP 401" in trouble_of(uplink, "a"))
            outbox.put(1)
            await until(lambda: sink.store.rows() == [1])
            assert state_of(uplink, "a") == "active"
            assert len(sink.authorizations) == 2, "nobody hammers"
            sink.token = "better"
            secret(token, "better")
            await until(lambda: sink.byes == ["its credentials were renewed"])
            await until(lambda: state_of(uplink, "a") == "active")

    asyncio.run(main())


# ── the state machine ────────────────────────────────────────────────────────────────────────────────────────────────


def opened(*versions: bytes) -> Failover:
    """Endpoint 0 active, endpoint 1 standby, and so on."""
    machine = Failover([False] * len(versions), Standby.AUTO, lambda: 0.0)
    actions = machine.tick(1000.0)
    for version in versions:
        (connect,) = actions
        assert isinstance(connect, Connect)
        actions = [a for a in machine.opened(connect.connection, "s", 1000.0, version) if not isinstance(a, Activate)]
    assert actions == []
    return machine


def test_the_old_session_is_left_in_the_same_step_in_which_the_new_one_takes_over() -> None:
    machine = opened(b"v1")
    assert machine.renewed(0, b"v1", 1001.0) == []
    assert machine.renewed(0, b"v2", 1002.0) == [Connect(2, 0, True)]
    assert machine.renewed(0, b"v2", 1003.0) == [], "one attempt at a time"
    assert machine.opened(2, "s", 1004.0, b"v2") == [Activate(2), Retire(1, "its credentials were renewed")]


def test_files_that_change_again_meanwhile_are_taken_up_after_that() -> None:
    machine = opened(b"v1")
    machine.renewed(0, b"v2", 1002.0)
    machine.renewed(0, b"v3", 1003.0)
    machine.opened(2, "s", 1004.0, b"v2")
    machine.failed(1, Reaction(Kind.RETRY, "bye"), b"v1", 1004.5)
    assert machine.renewed(0, b"v3", 1005.0) == [Connect(3, 0, True)]


def test_a_refused_renewal_rests_and_the_next_one_does_not_wait_for_that() -> None:
    machine = opened(b"v1")
    machine.renewed(0, b"v2", 1002.0)
    assert machine.failed(2, Reaction(Kind.TOKEN, "401", QUARTER_HOUR_S), b"v2", 1003.0) == []
    assert machine.tick(1500.0) == []
    assert machine.renewed(0, b"v3", 1501.0) == [Connect(3, 0, True)]
    machine.failed(3, Reaction(Kind.TOKEN, "401", QUARTER_HOUR_S), b"v3", 1502.0)
    assert machine.tick(1502.0 + QUARTER_HOUR_S) == [Connect(4, 0, True)]


def test_a_renewed_standby_keeps_its_place_in_the_line() -> None:
    """Tokens that live for minutes must not keep a gateway from its better endpoint for ever."""
    machine = Failover([False, False], Standby.AUTO, lambda: 0.0)
    machine.tick(1000.0)
    machine.failed(1, Reaction(Kind.RETRY, "down", 10.0), b"v1", 1000.0)
    machine.opened(2, "s", 1001.0, b"w")
    (connect,) = machine.tick(1011.0)
    assert connect == Connect(3, 0, True)
    machine.opened(3, "s", 1011.0, b"v1")
    number = 3
    for minute in range(1, 6):
        now = 1011.0 + 50 * minute
        (connect,) = machine.renewed(0, b"v%d" % (minute + 1), now)
        assert isinstance(connect, Connect)
        assert machine.opened(connect.connection, "s", now, b"v%d" % (minute + 1)) == [
            Retire(number, "its credentials were renewed")
        ]
        machine.failed(number, Reaction(Kind.RETRY, "bye"), b"", now)
        number = connect.connection
    assert Activate(number) in machine.tick(1011.0 + 301)


# ── nobody renews ────────────────────────────────────────────────────────────────────────────────────────────────────

NOW_S = datetime(2031, 1, 1, tzinfo=UTC).timestamp()


def said(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    found = [(each.levelname, each.getMessage().removeprefix("uplink: a: ")) for each in caplog.records]
    caplog.clear()
    return found


def test_a_certificate_that_nobody_renews_is_told_once_in_time_and_once_at_its_end(
    pki: Pki, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "gateway")
    begins = datetime.fromtimestamp(NOW_S, UTC)
    tls = pki.client(begins=begins, ends=begins + timedelta(days=100))
    watch = Watch(Endpoint(url="wss://a.example/", name="a", tls=tls))
    for day in (1, 50, 79):
        watch.look(NOW_S + day * DAY_S)
    assert said(caplog) == []
    assert watch.status() == {"what": "client certificate", "days_left": 21.0, "warning": None}
    for _ in range(3):
        watch.look(NOW_S + 88 * DAY_S)
    assert said(caplog) == [("WARNING", "our client certificate ends in 12 days and nobody has renewed it")]
    assert watch.status()["warning"] == "our client certificate ends in 12 days"
    for _ in range(3):
        watch.look(NOW_S + 101 * DAY_S)
    assert said(caplog) == [("ERROR", "our client certificate has ended: renew it")]
    assert watch.status()["warning"] == "our client certificate has ended"
    pki.client(begins=begins, ends=begins + timedelta(days=300))
    watch.look(NOW_S + 101 * DAY_S)
    assert said(caplog) == [("INFO", "our client certificate was renewed: 199 days left")]


@pytest.mark.parametrize(
    ("claims", "left_s", "warns"),
    [
        ({"iat": NOW_S, "exp": NOW_S + 3600}, 800, False),
        ({"iat": NOW_S, "exp": NOW_S + 3600}, 700, True),
        ({"iat": NOW_S, "exp": NOW_S + 3600 * 24 * 3650}, 31 * DAY_S, False),
        ({"iat": NOW_S, "exp": NOW_S + 3600 * 24 * 3650}, 29 * DAY_S, True),
    ],
)
def test_a_token_that_nobody_renews_is_told_in_proportion(
    tmp_path: Path, claims: dict[str, float], left_s: float, warns: bool
) -> None:
    token = secret(tmp_path / "token", jwt(claims))
    watch = Watch(Endpoint(url="wss://a.example/", name="a", token_file=token))
    watch.look(claims["exp"] - left_s)
    assert (watch.status()["warning"] is not None) is warns


def test_without_a_date_of_its_own_a_token_is_as_old_as_its_file(tmp_path: Path) -> None:
    token = secret(tmp_path / "token", jwt({"exp": NOW_S + 3600}))
    os.utime(token, (NOW_S, NOW_S))
    watch = Watch(Endpoint(url="wss://a.example/", name="a", token_file=token))
    watch.look(NOW_S + 2800)
    assert watch.status()["warning"] is None
    watch.look(NOW_S + 3000)
    assert watch.status()["warning"] == "our token ends in 10 minutes"


def test_while_nobody_knows_the_time_nothing_ends(pki: Pki, caplog: pytest.LogCaptureFixture) -> None:
    watch = Watch(Endpoint(url="wss://a.example/", name="a", tls=pki.client(ends=datetime(2027, 1, 1, tzinfo=UTC))))
    watch.look(None)
    assert watch.status() is None
    assert caplog.records == []


def test_what_ends_stands_in_the_status_of_the_uplink(pki: Pki) -> None:
    class Synced(SystemClock):
        def state(self) -> ClockState:
            return msgspec.structs.replace(super().state(), trust=Trust.SYNCED)

    async def main() -> None:
        tls = pki.client(ends=datetime.now(UTC) + timedelta(days=3, hours=1))
        settings = UplinkSettings(endpoint=(Endpoint(url="wss://127.0.0.1:1/", name="a", tls=tls),))
        uplink = Uplink(settings, MemoryOutbox(), MemoryCommands(), Synced(), About("test 1"))
        task = asyncio.create_task(uplink.run())
        await until(lambda: uplink.status()["endpoints"][0]["credentials"])
        assert uplink.status()["endpoints"][0]["credentials"]["warning"] == "our client certificate ends in 3 days"
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    asyncio.run(main())
