"""The real server over real sockets: who may come in, what is stored and acked, who is thrown out, how it stops."""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import threading
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trustme
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidMessage, InvalidStatus

from gateway.errors import ConfigError, StoreError
from gateway.ingest.connection import MAX_UNDER_WAY
from gateway.ingest.server import IngestServer
from gateway.ingest.tokens import Role
from gateway.protocol.messages import MAX_MESSAGE_BYTES, MAX_OPEN_COMMANDS, SUBPROTOCOL
from ingest.cloud import PROCESS, Gateway, body, cloud, gateway, stream_id, until, url


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 30))


async def rows(server: IngestServer, sql: str = "SELECT value FROM reading ORDER BY id") -> list[Any]:
    return await server.committer.call(server.sink.query, sql)


# ── delivery ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_batches_are_stored_acked_and_resumed_from(tmp_path: Path) -> None:
    async def test() -> None:
        s = stream_id()
        async with cloud(tmp_path) as server:
            async with gateway(server) as g:
                welcome = await g.hello(s)
                assert welcome["sink"] == server.sink_id
                assert welcome["marks"] == {}
                for seq in range(1, 11):
                    await g.batch(s, seq)
                await g.acked(s, 10)
                assert await rows(server) == [(seq,) for seq in range(1, 11)]
            async with gateway(server) as g:
                assert (await g.hello(s))["marks"] == {s: 10}
                await g.batch(s, 12)
                assert (await g.expect("nack"))["expected"] == 11
                await g.batch(s, 10)
                await g.batch(s, 11)
                await g.acked(s, 11)
        async with cloud(tmp_path) as server, gateway(server) as g:
            assert (await g.hello(s))["marks"] == {s: 11}
            assert await rows(server) == [(seq,) for seq in range(1, 12)]

    run(test())


def test_the_client_keeps_its_compression_context_and_the_server_keeps_none(tmp_path: Path) -> None:
    async def test() -> None:
        async with cloud(tmp_path) as server, gateway(server) as g:
            [deflate] = g.ws.protocol.extensions
            assert "local_max_window_bits=15" in repr(deflate)
            assert "local_no_context_takeover=False" in repr(deflate)
            assert "remote_no_context_takeover=True" in repr(deflate)

    run(test())


def test_the_same_batches_over_two_sessions_at_once_are_stored_once(tmp_path: Path) -> None:
    async def test() -> None:
        s = stream_id()
        async with cloud(tmp_path) as server, gateway(server) as one, gateway(server) as two:
            await one.hello(s)
            await two.hello(s, standby=True)
            for seq in range(1, 31):
                await one.batch(s, seq)
                await two.batch(s, seq)
            await one.acked(s, 30)
            await two.acked(s, 30)
            assert await rows(server) == [(seq,) for seq in range(1, 31)]

    run(test())


def test_what_promotes_a_session_is_not_overtaken_by_what_another_one_brings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        s = stream_id()
        async with cloud(tmp_path) as server, gateway(server) as one, gateway(server) as two:
            await one.hello(s)
            await two.hello(s, standby=True)
            active = server.active

            async def late(connection: Any) -> None:
                await asyncio.sleep(0.2)  # the store is busy
                await active(connection)

            monkeypatch.setattr(server, "active", late)
            await two.batch(s, 1)
            await until(
                lambda: any(each.session.active for each in server.fleet.of("g1") if each.session.hello.standby)
            )
            await one.batch(s, 2)
            assert (await one.receive())["type"] == "ack", "no nack of what was only on its way"

    run(test())


def test_a_gateway_that_floods_is_held_back_and_loses_nothing(tmp_path: Path) -> None:
    async def test() -> None:
        s = stream_id()
        count = MAX_UNDER_WAY * 4
        async with cloud(tmp_path) as server, gateway(server) as g:
            await g.hello(s)
            for seq in range(1, count + 1):
                await g.batch(s, seq)
            await g.acked(s, count)
            assert await rows(server, "SELECT count(*) FROM reading") == [(count,)]

    run(test())


def test_a_store_that_falls_behind_narrows_the_window_and_opens_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        s = stream_id()
        async with cloud(tmp_path) as server, gateway(server) as g:
            await g.hello(s)
            await g.batch(s, 1)
            await g.acked(s, 1)  # the session asks the store for nothing more of its own
            release = threading.Event()
            held = asyncio.create_task(server.committer.call(release.wait, 60.0))
            try:
                for seq in range(2, 22):
                    await g.batch(s, seq)
                await until(lambda: server.committer.waiting > 10)
            finally:
                release.set()
            await held
            assert (await g.expect("flow"))["window"]["batches"] == 4
            assert "window" in await g.expect("flow")
            await g.batch(s, 22)
            await g.acked(s, 22)

    for place in ("committer", "server"):
        monkeypatch.setattr(f"gateway.ingest.{place}.MAX_GROUP", 3)
    run(test())


def test_poison_does_not_block_its_lane(tmp_path: Path) -> None:
    async def test() -> None:
        s = stream_id()
        async with cloud(tmp_path) as server, gateway(server) as g:
            await g.hello(s)
            await g.batch(s, 1, b'{"not":"a body"}')
            await g.batch(s, 2)
            await g.acked(s, 2)
            assert await rows(server) == [(2,)]
            assert await rows(server, "SELECT seq, body FROM dead_letter") == [(1, b'{"not":"a body"}')]

    run(test())


def test_the_stream_of_another_gateway_cannot_be_claimed(tmp_path: Path) -> None:
    async def test() -> None:
        s = stream_id()
        async with cloud(tmp_path) as server, gateway(server) as victim, gateway(server, name="g2") as thief:
            await victim.hello(s)
            await victim.batch(s, 1)
            await victim.acked(s, 1)
            assert (await thief.hello(s))["marks"] == {}
            await thief.batch(s, 1, body(["stolen"]))
            await thief.acked(s, 1)
            await victim.batch(s, 2)
            await victim.acked(s, 2)
            sql = "SELECT gateway, value FROM readings ORDER BY id"
            assert await rows(server, sql) == [("g1", 1), ("g2", "stolen"), ("g1", 2)]

    run(test())


# ── the door ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def refused(server: IngestServer, headers: dict[str, str], subprotocol: str = SUBPROTOCOL) -> tuple[int, str]:
    with pytest.raises(InvalidStatus) as caught:
        await connect(
            url(server),
            subprotocols=[subprotocol],  # type: ignore[list-item]
            additional_headers=headers,
            proxy=None,
        )
    return caught.value.response.status_code, caught.value.response.body.decode()


def test_who_cannot_be_recognised_is_told_so(tmp_path: Path) -> None:
    async def test() -> None:
        async with cloud(tmp_path) as server:
            good = server.tokens.add("g1", Role.GATEWAY, 0)
            viewer = server.tokens.add("anna", Role.VIEWER, 0)
            assert await refused(server, {}) == (401, "a gateway shows a bearer token or a client certificate\n")
            assert (await refused(server, {"Authorization": "Bearer wrong"}))[0] == 401
            assert (await refused(server, {"Authorization": f"Basic {good}"}))[0] == 401
            assert await refused(server, {"Authorization": f"Bearer {viewer}"}) == (401, "this token is for viewers\n")
            status, text = await refused(server, {"Authorization": f"Bearer {good}"}, "mqtt")
            assert status == 400
            assert SUBPROTOCOL in text

    run(test())


def test_revoking_ends_the_session_and_the_token(tmp_path: Path) -> None:
    async def test() -> None:
        async with cloud(tmp_path) as server:
            token = server.tokens.add("g1", Role.GATEWAY, 0)
            async with gateway(server, token) as g:
                await g.hello()
                assert await server.revoke("g1")
                assert await g.closed() == 4403
            assert (await refused(server, {"Authorization": f"Bearer {token}"}))[0] == 401
            assert not await server.revoke("nobody")

    run(test())


def test_tokens_are_not_kept_as_they_are(tmp_path: Path) -> None:
    async def test() -> None:
        async with cloud(tmp_path) as server:
            token = server.tokens.add("g1", Role.GATEWAY, 0)
        for file in (tmp_path / "data").iterdir():
            assert token.encode() not in file.read_bytes()

    run(test())


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def _files(folder: Path, authority: trustme.CA) -> dict[str, Path]:
    server = authority.issue_cert("127.0.0.1", "localhost")
    server.private_key_and_cert_chain_pem.write_to_path(str(folder / "server.pem"))
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    return {"cert": folder / "server.pem", "client_ca": folder / "ca.pem"}


def _context(authority: trustme.CA, certificate: trustme.LeafCert | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    if certificate is not None:
        certificate.configure_cert(context)
    return context


def test_a_client_certificate_names_its_gateway(tmp_path: Path, authority: trustme.CA) -> None:
    async def test() -> None:
        s = stream_id()
        common = _context(authority, authority.issue_cert("alt.example", common_name="press-7"))
        named = _context(authority, authority.issue_cert("pump-3.example"))
        async with cloud(tmp_path, **_files(tmp_path, authority)) as server:
            for context, name in ((common, "press-7"), (named, "pump-3.example")):
                async with gateway(server, context=context, certified=True) as g:
                    await g.hello(s)
                    await g.batch(s, 1)
                    await g.acked(s, 1)
                    assert (name,) in await rows(server, "SELECT gateway FROM stream")
            await server.revoke("press-7")
            with pytest.raises(InvalidStatus) as caught:
                async with gateway(server, context=common, certified=True):
                    pass
            assert caught.value.response.status_code == 403

    run(test())


def test_certificates_of_strangers_and_mixed_identities_are_refused(tmp_path: Path, authority: trustme.CA) -> None:
    async def test() -> None:
        stranger = trustme.CA()
        async with cloud(tmp_path, **_files(tmp_path, authority)) as server:
            bare = _context(authority)
            with pytest.raises(InvalidStatus) as caught:
                async with gateway(server, context=bare, certified=True):
                    pass
            assert caught.value.response.status_code == 401
            foreign = _context(authority, stranger.issue_cert("press-7"))
            with pytest.raises((ssl.SSLError, ConnectionError, InvalidMessage)):
                async with gateway(server, context=foreign, certified=True):
                    pass
            async with gateway(server, context=bare) as g:  # a token alone will do
                await g.hello()
            with pytest.raises(InvalidStatus) as caught:
                async with gateway(server, context=_context(authority, authority.issue_cert("press-7"))):
                    pass
            assert b"different gateways" in caught.value.response.body

    run(test())


def test_a_certificate_that_is_none_is_a_mistake_of_configuration(tmp_path: Path) -> None:
    async def test(**settings: Any) -> None:
        async with cloud(tmp_path, **settings):
            pass

    (tmp_path / "bad.pem").write_text("nothing")
    for settings in ({"cert": tmp_path / "bad.pem"}, {"key": tmp_path / "bad.pem"}):
        with pytest.raises(ConfigError):
            asyncio.run(test(**settings))


# ── violations ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        ("{", 1007),
        ("[]", 1007),
        ('{"type":"nonsense"}', 1007),
        ('{"type":"stats","values":{"x":' + "[" * 100_000 + "]" * 100_000 + "}}", 1007),
        ('{"type":"batch","stream":"x","lane":"live","seq":1,"body":{}}', 1002),
        (b"\x00\x01", 1003),
        ("x" * (MAX_MESSAGE_BYTES + 1), 1009),
        ('{"type":"hello","process":"' + PROCESS + '"}', 1007),
    ],
)
def test_garbage_closes_the_session_and_nothing_else(tmp_path: Path, frame: str | bytes, code: int) -> None:
    async def test() -> None:
        s = stream_id()
        async with cloud(tmp_path) as server, gateway(server, name="good") as good:
            await good.hello(s)
            async with gateway(server, name="bad") as bad:
                await bad.hello(process="e" * 32)
                await bad.ws.send(frame)
                assert await bad.closed() == code
            await good.batch(s, 1)
            await good.acked(s, 1)

    run(test())


def test_the_reason_comes_before_the_close(tmp_path: Path) -> None:
    async def test() -> None:
        async with cloud(tmp_path) as server, gateway(server) as g:
            await g.hello()
            await g.ws.send('{"type":"hello"}')
            assert "not a message" in (await g.expect("error"))["reason"]

    run(test())


def test_who_says_nothing_is_sent_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with cloud(tmp_path) as server, gateway(server) as g:
            assert await g.closed() == 4408

    monkeypatch.setattr("gateway.protocol.server.HELLO_WITHIN_S", 0.1)
    run(test())


def test_noise_on_the_port_disturbs_nobody(tmp_path: Path) -> None:
    async def test() -> None:
        async with cloud(tmp_path) as server:
            host, port = server.addresses[0]
            for noise in (
                b"",
                b"\x16\x03\x01garbage",
                b"GET / HTTP/1.0\r\n\r\n",
                b"PUT / HTTP/1.1\r\nHost: x\r\n\r\n",
                os.urandom(4000),
            ):
                _, writer = await asyncio.open_connection(host, port)
                writer.write(noise)
                writer.close()
            async with gateway(server) as g:
                await g.hello()

    run(test())


# ── sessions ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_newer_process_evicts_the_older_one_which_is_then_refused(tmp_path: Path) -> None:
    async def test() -> None:
        async with cloud(tmp_path) as server, gateway(server) as old, gateway(server) as standby:
            await old.hello()
            await standby.hello(standby=True)
            async with gateway(server) as new:
                await new.hello(process="d" * 32)
                assert await old.closed() == 4409
                assert await standby.closed() == 4409
                async with gateway(server) as again:
                    with pytest.raises(Exception, match="4409"):
                        await again.hello()
                await new.batch(s := stream_id(), 1)
                await new.acked(s, 1)
            await until(lambda: not list(server.fleet))
            async with gateway(server) as again:
                await again.hello()

    run(test())


def test_a_gateway_that_calls_itself_by_new_names_for_ever_fills_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        async with cloud(tmp_path) as server, AsyncExitStack() as stack:
            token = server.tokens.add("g1", Role.GATEWAY, 0)
            sessions = [await stack.enter_async_context(gateway(server, token)) for _ in range(12)]
            for number, g in enumerate(sessions):
                await g.hello(process=f"{number:032x}")
            assert list(server.fleet._gateways["g1"].evicted) == [f"{number:032x}" for number in (8, 9, 10)]

    monkeypatch.setattr("gateway.ingest.fleet.MAX_EVICTED", 3)
    run(test())


def test_a_fifth_session_of_one_process_ends_the_oldest(tmp_path: Path) -> None:
    async def test() -> None:
        async with cloud(tmp_path) as server:
            token = server.tokens.add("g1", Role.GATEWAY, 0)
            sessions: list[Gateway] = []
            contexts = [gateway(server, token) for _ in range(5)]
            for context in contexts:
                sessions.append(await context.__aenter__())
                await sessions[-1].hello(standby=True)
            assert await sessions[0].closed() == 1000
            assert len([each for each in server.fleet.of("g1") if not each.closing]) == 4
            for context in contexts:
                await context.__aexit__(None, None, None)

    run(test())


def test_several_listeners_share_one_sink(tmp_path: Path) -> None:
    async def test() -> None:
        s = stream_id()
        async with (
            cloud(tmp_path, listen=(("127.0.0.1", 0), ("127.0.0.1", 0))) as server,
            gateway(server, listener=0) as one,
            gateway(server, listener=1) as two,
        ):
            assert (await one.hello(s))["sink"] == (await two.hello(s))["sink"]
            await one.batch(s, 1)
            await one.acked(s, 1)
            await two.batch(s, 2)
            await two.acked(s, 2)

    run(test())


def test_an_address_that_is_taken_is_a_mistake_of_configuration(tmp_path: Path) -> None:
    async def test() -> None:
        async with cloud(tmp_path / "one") as server:
            with pytest.raises(ConfigError, match="cannot listen"):
                async with cloud(tmp_path / "two", listen=(server.addresses[0],)):
                    pass

    run(test())


def test_one_folder_has_one_server(tmp_path: Path) -> None:
    async def test() -> None:
        async with cloud(tmp_path):
            with pytest.raises(StoreError, match="another server"):
                async with cloud(tmp_path):
                    pass

    run(test())


# ── trouble with the disk ────────────────────────────────────────────────────────────────────────────────────────────


def test_a_store_that_takes_nothing_acks_nothing_sends_gateways_away_and_recovers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        s = stream_id()
        async with cloud(tmp_path) as server:
            token = server.tokens.add("g1", Role.GATEWAY, 0)
            broken = tmp_path / "data" / "ingest.db"
            async with gateway(server, token) as g:
                await g.hello(s)
                await g.batch(s, 1)
                await g.acked(s, 1)
                await server.committer.call(server.sink.close)
                broken.rename(tmp_path / "aside")
                broken.write_bytes(b"\xff" * 4096)
                await g.batch(s, 2)
                assert (await g.expect("nack"))["expected"] == 2
                await g.batch(s, 2)
                assert await g.closed() == 1013
            async with gateway(server, token) as g:
                await g.send(type="hello", process=PROCESS, software="t", clock=CLOCK)
                assert await g.closed() == 1013
            (tmp_path / "aside").rename(broken)
            async with gateway(server, token) as g:
                assert (await g.hello(s))["marks"] == {s: 1}
                await g.batch(s, 2)
                await g.acked(s, 2)
            assert await rows(server) == [(1,), (2,)]

    CLOCK = json.loads('{"boot":"b","offset_ms":0,"error_ms":-1,"trust":"unsynced"}')
    with caplog.at_level("INFO", "gateway.ingest"):
        run(test())
    said = [record.message for record in caplog.records if record.name.endswith("committer")]
    assert len(said) == 2, "once when it begins, once when it is over"
    assert "nothing acked" in said[0]
    assert "again" in said[1]


# ── stopping ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_stop_asks_to_move_takes_nobody_new_and_then_closes_with_1012(tmp_path: Path) -> None:
    async def test() -> None:
        s = stream_id()
        async with cloud(tmp_path) as server:
            token = server.tokens.add("g1", Role.GATEWAY, 0)
            async with gateway(server, token) as stays, gateway(server, token) as goes:
                await stays.hello(s)
                await goes.hello(standby=True)
                drained = asyncio.create_task(server.drain())
                move = await goes.expect("move")
                assert move["deadline_ms"] == 200
                await goes.send(type="bye")
                assert await goes.closed() == 1000
                assert (await refused(server, {"Authorization": f"Bearer {token}"}))[0] == 503
                await stays.batch(s, 1)
                await stays.acked(s, 1)
                assert await stays.closed() == 1012
                await drained

    run(test())


def test_a_stop_without_gateways_is_quick(tmp_path: Path) -> None:
    async def test() -> None:
        async with asyncio.timeout(5), cloud(tmp_path, drain_s=60.0):
            pass

    run(test())


# ── commands ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def command(number: str = "c1", ttl_ms: int = 5000) -> Any:
    from gateway.protocol.messages import CommandMessage

    return CommandMessage(id=number, device="meter", op="write", point="p", value=21.5, ttl_ms=ttl_ms, sent_ms=0)


def test_a_command_goes_to_the_active_session_and_its_result_answers_the_caller(tmp_path: Path) -> None:
    async def test() -> None:
        async with cloud(tmp_path) as server, gateway(server) as active, gateway(server) as standby:
            await active.hello()
            await standby.hello(standby=True)
            waiting = asyncio.create_task(server.send("g1", command(), queue=False))
            received = await active.expect("command")
            assert (received["id"], received["value"], received["op"]) == ("c1", 21.5, "write")
            assert 0 < received["ttl_ms"] <= 5000
            assert abs(received["sent_ms"] - server.monotonic() * 1000) < 5000
            await active.send(type="result", id="c1", outcome="ok", value=21.5)
            assert (await active.expect("result_ack"))["id"] == "c1"
            issued = await waiting
            assert (issued.state, issued.result) == ("ok", 21.5)
            await active.send(type="result", id="c1", outcome="failed")
            await active.expect("result_ack")
            assert await rows(server, "SELECT outcome FROM result") == [("ok",)]
            await active.send(type="result", id="of nobody", outcome="ok")
            assert (await active.expect("result_ack"))["id"] == "of nobody"

    run(test())


def test_more_commands_than_a_gateway_takes_are_refused_here(tmp_path: Path) -> None:
    """[K7]"""

    async def test() -> None:
        async with cloud(tmp_path) as server, gateway(server) as active:
            await active.hello()
            sending = [
                asyncio.create_task(server.send("g1", msgspec.structs.replace(command(), id=f"c{i}"), queue=False))
                for i in range(300)
            ]
            await until(lambda: sum(each.done() for each in sending) == 300 - MAX_OPEN_COMMANDS)
            refused = [each.result() for each in sending if each.done()]
            assert {each.state for each in refused} == {"rejected"}
            assert all(each.reason.startswith("busy: ") for each in refused)
            for task in sending:
                task.cancel()

    run(test())


def test_an_offline_gateway_is_unavailable_at_once_and_nothing_is_kept(tmp_path: Path) -> None:
    async def test() -> None:
        async with cloud(tmp_path) as server:
            assert (await server.send("g1", command(), queue=False)).state == "unavailable"
            assert await rows(server, "SELECT * FROM command") == []

    run(test())


def test_a_queued_command_waits_for_the_gateway_and_is_sent_again_until_its_result_came(tmp_path: Path) -> None:
    async def test() -> None:
        async with cloud(tmp_path) as server:
            token = server.tokens.add("g1", Role.GATEWAY, 0)
            assert (await server.send("g1", command(ttl_ms=60_000), queue=True)).state == "queued"
            async with gateway(server, token) as g:
                assert "open_commands" not in await g.hello(standby=True)
                await g.send(type="stats", values={})
                first = await g.expect("command")
            async with gateway(server, token) as g:
                assert (await g.hello())["open_commands"] == ["c1"]
                second = await g.expect("command")
                assert second["ttl_ms"] <= first["ttl_ms"]
                await g.send(type="result", id="c1", outcome="rejected", reason="no")
                await g.expect("result_ack")
            async with gateway(server, token) as g:
                assert "open_commands" not in await g.hello()
            assert [(each.state, each.reason) for each in server.commands] == [("rejected", "no")]

    run(test())


def test_a_command_nobody_answers_comes_back_as_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with cloud(tmp_path) as server, gateway(server) as g:
            await g.hello()
            assert (await server.send("g1", command(ttl_ms=50), queue=False)).state == "sent"
            later = msgspec.structs.replace(command(ttl_ms=60_000), id="c2")
            assert (await server.send("g2", later, queue=True)).state == "queued"
            assert not server._waiting, "nobody waits any more"

    monkeypatch.setattr("gateway.ingest.server.RESULT_GRACE_S", 0.05)
    run(test())
