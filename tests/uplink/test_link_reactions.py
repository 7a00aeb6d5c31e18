"""The table of the specification [B2] against real servers: each code and status, and what is then done."""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import NamedTuple

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.typing import Subprotocol

from gateway.uplink import reactions
from gateway.uplink.config import Speech
from gateway.uplink.link import open_link
from gateway.uplink.reactions import Kind, Reaction, Refused, retry_after_s
from tests.uplink.test_link_dial import NOTHING, answering, at, refusal, says

_SPECIFICATION = Path(reactions.__file__).parent.parent / "protocol" / "README.md"


class Row(NamedTuple):
    kind: Kind
    wait_s: float
    spread_s: float


def meaning(text: str) -> Row:
    """What the third column of the table says."""
    rest = re.search(r"\*\*rest\*\* (\d+) (s|min|h)", text)
    if rest:
        wait_s = int(rest[1]) * {"s": 1, "min": 60, "h": 3600}[rest[2]]
        kind = Kind.TOKEN if "token file" in text else Kind.EVICTED if "clone" in text else Kind.REST
        return Row(kind, wait_s, 0)
    assert "**move on**" in text or "**retry**" in text, text
    wait = re.search(r"not before (\d+) s", text)
    spread = re.search(r"random\(0, (\d+) s\)", text) or re.search(r"random\(0, spread\), (\d+) s", text)
    return Row(Kind.RETRY, int(wait[1]) if wait else 0, int(spread[1]) if spread else 0)


def table() -> dict[str, Row]:
    """Close code, or `HTTP` and status → what is to be done."""
    rows = re.search(r"\| code \| meaning \| gateway \|\n\|[-|]+\|\n(.*?)\n\n", _SPECIFICATION.read_text(), re.DOTALL)
    assert rows is not None
    found: dict[str, Row] = {}
    for line in rows[1].split("\n"):
        codes, _, does = [cell.strip() for cell in line.strip("|").split("|")]
        http = ""
        for word in re.findall(r"HTTP|\d[\dx]{2,3}", codes):
            if word == "HTTP":
                http = "HTTP "
            else:
                key = (http if len(word) == 3 else "") + word
                assert key not in found
                found[key] = meaning(does)
    other = re.search(r"A code that is not here is (\*\*.*\*\*)\.", _SPECIFICATION.read_text())
    assert other is not None
    return {**found, "other": meaning(other[1])}


TABLE = table()


def expected(status: int) -> Row:
    """The table names single statuses, or a class of them by its first digit."""
    return TABLE.get(f"HTTP {status}") or TABLE[f"HTTP {status // 100}xx"]


def row(reaction: Reaction) -> Row:
    return Row(reaction.kind, reaction.wait_s, reaction.spread_s)


def test_the_table_is_read_whole() -> None:
    assert len(TABLE) == 30
    assert TABLE["1013"] == (Kind.RETRY, 30, 30)
    assert TABLE["1012"] == (Kind.RETRY, 0, 5)
    assert TABLE["4401"] == (Kind.TOKEN, 900, 0)
    assert TABLE["4406"] == (Kind.REST, 3600, 0)
    assert TABLE["4409"] == (Kind.EVICTED, 60, 0)
    assert TABLE["HTTP 3xx"] == (Kind.RETRY, 60, 0)


# ── close codes ──────────────────────────────────────────────────────────────────────────────────────────────────────


def closed_by(frame: bytes) -> Reaction:
    """What we make of a server that sends this close frame (or, for none, resets) after the upgrade."""

    async def close(session: ServerConnection) -> None:
        if frame:
            session.transport.write(bytes([0x88, len(frame)]) + frame)
            await session.wait_closed()
        else:
            session.transport.abort()

    async def main() -> Reaction:
        protocols = [Subprotocol("gateway.uplink.v1")]
        async with serve(close, "127.0.0.1", 0, subprotocols=protocols, close_timeout=0.1) as server:
            link = await open_link(at(server.sockets[0].getsockname()[1]), NOTHING)
            try:
                with pytest.raises(Refused) as caught:
                    await asyncio.wait_for(link.receive(), 5)
            finally:
                link.abort()
            return caught.value.reaction

    return asyncio.run(main())


@pytest.mark.parametrize(
    "code", [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, *range(4400, 4412), 4999]
)
def test_each_close_code_has_the_reaction_of_the_table(code: int) -> None:
    reaction = closed_by(code.to_bytes(2, "big") + b"because")
    assert row(reaction) == (TABLE.get(str(code)) or TABLE["other"])
    assert f"({code}: because)" in reaction.reason


@pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535])
def test_a_close_code_that_must_not_be_sent_breaks_the_protocol(code: int) -> None:
    assert row(closed_by(code.to_bytes(2, "big"))) == TABLE["1002"]


def test_a_connection_that_breaks_is_1006() -> None:
    assert row(closed_by(b"")) == TABLE["1006"]


def test_a_close_frame_without_a_code_is_retried() -> None:
    async def close(session: ServerConnection) -> None:
        session.transport.write(b"\x88\x00")
        await session.wait_closed()

    async def main() -> Reaction:
        async with serve(close, "127.0.0.1", 0, subprotocols=[Subprotocol("gateway.uplink.v1")]) as server:
            link = await open_link(at(server.sockets[0].getsockname()[1]), NOTHING)
            with pytest.raises(Refused) as caught:
                await asyncio.wait_for(link.receive(), 5)
            return caught.value.reaction

    assert row(asyncio.run(main())) == TABLE["other"]


# ── HTTP ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def answered(text: str) -> Reaction:
    async def main() -> Reaction:
        async with answering(says(text)) as (port, _):
            error, _ = await refusal(at(port))
            return error.reaction

    return asyncio.run(main())


def status(number: int, **headers: str) -> str:
    lines = [f"HTTP/1.1 {number} Because", "Content-Length: 0"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""])


@pytest.mark.parametrize(
    "number",
    [
        *(300, 301, 302, 303, 304, 305, 307, 308, 400, 401, 402, 403, 404, 405, 406, 407, 408, 409, 410, 411, 413, 415),
        *(418, 421, 422, 425, 426, 429, 431, 451, 499, 500, 501, 502, 503, 504, 505, 511, 520, 530, 599),
    ],
)
def test_each_http_status_has_the_reaction_of_the_table(number: int) -> None:
    reaction = answered(status(number))
    assert row(reaction) == expected(number)
    assert f"HTTP {number}" in reaction.reason


@pytest.mark.parametrize("text", [status(200), status(204), "SSH-2.0-OpenSSH_9.2\r\n", ""])
def test_what_is_no_handshake_is_left_for_a_minute(text: str) -> None:
    reaction = answered(text)
    assert reaction.kind is Kind.RETRY
    assert reaction.wait_s == (60 if text else 0), "a connection that ends without a word was lost"


def test_a_server_that_takes_the_upgrade_without_our_protocol_is_rested() -> None:
    async def main() -> Reaction:
        async with serve(ServerConnection.wait_closed, "127.0.0.1", 0) as server:
            error, _ = await refusal(at(server.sockets[0].getsockname()[1]))
            return error.reaction

    assert row(asyncio.run(main())) == TABLE["4406"]


def test_a_plain_endpoint_is_asked_for_no_protocol() -> None:
    asked: list[str | None] = []

    async def listen(session: ServerConnection) -> None:
        assert session.request is not None
        asked.append(session.request.headers.get("Sec-WebSocket-Protocol"))
        await session.wait_closed()

    async def main() -> None:
        async with serve(listen, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            (await open_link(at(port, protocol=Speech.PLAIN), NOTHING)).abort()

    asyncio.run(main())
    assert asked == [None]


# ── Retry-After ──────────────────────────────────────────────────────────────────────────────────────────────────────

_NOW = datetime(2031, 5, 4, 3, 2, 1, tzinfo=UTC)
"""The server's; ours is years away from it."""


def http_date(seconds: float) -> str:
    return format_datetime(_NOW + timedelta(seconds=seconds), usegmt=True)


@pytest.mark.parametrize("number", [408, 425, 429, 500, 502, 503, 504])
@pytest.mark.parametrize(
    ("after", "wait_s"),
    [
        ("120", 120),
        ("0", 0),
        ("86400", 3600),
        ("9" * 400, 3600),
        (http_date(90), 90),
        (http_date(-90), 0),
        (http_date(1e6), 3600),
        ("soon", 0),
        ("-5", 0),
        ("1.5", 0),
        ("", 0),
    ],
)
def test_retry_after_is_kept(number: int, after: str, wait_s: float) -> None:
    reaction = answered(status(number, Retry_After=after, Date=http_date(0)))
    assert row(reaction) == (Kind.RETRY, wait_s, 0)


@pytest.mark.parametrize("number", [401, 403, 404, 426, 302])
def test_retry_after_shortens_no_rest(number: int) -> None:
    assert row(answered(status(number, Retry_After="1"))) == expected(number)


@pytest.mark.parametrize("date", ["", "yesterday", "Sun, 99 May 2031 03:02:01 GMT", "Sun, 04 May 2031 03:02:01 -0000"])
def test_a_date_without_the_servers_own_date_says_nothing(date: str) -> None:
    assert retry_after_s(http_date(60), date) is None


@pytest.mark.parametrize("value", ["٣", "²", "+5", " 5", "0x10", "1e3"])
def test_only_digits_are_seconds(value: str) -> None:
    assert retry_after_s(value, http_date(0)) is None
