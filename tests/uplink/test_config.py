"""The `[uplink]` table, and the table of reactions."""

from __future__ import annotations

import tomllib

import pytest

from gateway.settings import read
from gateway.uplink import reactions
from gateway.uplink.config import Standby, UplinkSettings
from gateway.uplink.reactions import HOUR_S, QUARTER_HOUR_S, Kind


def mistakes(text: str) -> list[str]:
    return [mistake.message for mistake in read(UplinkSettings, tomllib.loads(text))[1]]


def test_a_full_table_is_read() -> None:
    settings, found = read(
        UplinkSettings,
        tomllib.loads("""
            standby = "cold"
            [[endpoint]]
            url = "wss://a.example.com/uplink"
            token_file = "/run/credentials/gateway/token"
            connect_timeout = "5s"
            [[endpoint]]
            url = "wss://b.example.com:8443/uplink"
            name = "b"
            metered = true
            tls = { cafile = "ca.pem", certfile = "cert.pem", keyfile = "key.pem" }
        """),
    )
    assert not found
    assert settings is not None
    assert settings.standby is Standby.COLD
    assert [endpoint.label for endpoint in settings.endpoint] == ["a.example.com", "b"]
    assert settings.endpoint[0].connect_timeout == 5.0


def test_an_uplink_without_endpoints_is_valid() -> None:
    assert mistakes("") == []


@pytest.mark.parametrize(
    ("endpoint", "says"),
    [
        ('url = "https://a"', "where to connect"),
        ('url = "wss://a/#x"', "where to connect"),
        ('url = "wss://u:p@a/"', "no credentials in the URL"),
        ('url = "wss:///x"', "names no host"),
        ('url = "wss://a:99999/"', "not a URL"),
        ('url = "ws://a/"\ntoken_file = "t"', "can be read on the way"),
        ('url = "ws://a/"\ntls = { cafile = "c" }', "ws:// has no TLS"),
        ('url = "wss://a/"\ntls = { certfile = "c" }', "`keyfile` is missing"),
        ('url = "wss://a/"\n[[endpoint]]\nurl = "wss://a/other"', "a second endpoint called `a`"),
    ],
)
def test_what_cannot_work_is_said(endpoint: str, says: str) -> None:
    (message,) = mistakes(f"[[endpoint]]\n{endpoint}")
    assert says in message


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]"])
def test_a_token_may_go_to_this_machine_in_the_clear(host: str) -> None:
    assert mistakes(f'[[endpoint]]\nurl = "ws://{host}:8080/"\ntoken_file = "t"') == []


@pytest.mark.parametrize(
    ("code", "kind", "wait_s"),
    [
        (1000, Kind.RETRY, 0),
        (1001, Kind.RETRY, 0),
        (1002, Kind.RETRY, 60),
        (1006, Kind.RETRY, 0),
        (1008, Kind.REST, QUARTER_HOUR_S),
        (1012, Kind.RETRY, 0),
        (1013, Kind.RETRY, 30),
        (4401, Kind.TOKEN, QUARTER_HOUR_S),
        (4403, Kind.REST, QUARTER_HOUR_S),
        (4406, Kind.REST, HOUR_S),
        (4408, Kind.RETRY, 0),
        (4409, Kind.EVICTED, 60),
        (4410, Kind.RETRY, 0),
        (4999, Kind.RETRY, 0),
    ],
)
def test_close_codes(code: int, kind: Kind, wait_s: float) -> None:
    """[B2]"""
    reaction = reactions.to_close(code, "")
    assert (reaction.kind, reaction.wait_s) == (kind, wait_s)


@pytest.mark.parametrize(
    ("status", "after", "kind", "wait_s"),
    [
        (301, None, Kind.RETRY, 60),
        (400, None, Kind.REST, QUARTER_HOUR_S),
        (401, None, Kind.TOKEN, QUARTER_HOUR_S),
        (403, None, Kind.REST, QUARTER_HOUR_S),
        (404, None, Kind.REST, QUARTER_HOUR_S),
        (426, None, Kind.REST, HOUR_S),
        (429, 120.0, Kind.RETRY, 120),
        (502, None, Kind.RETRY, 0),
        (503, 7.0, Kind.RETRY, 7),
    ],
)
def test_http_statuses(status: int, after: float | None, kind: Kind, wait_s: float) -> None:
    """[B2, C4]"""
    reaction = reactions.to_status(status, after)
    assert (reaction.kind, reaction.wait_s) == (kind, wait_s)
