"""The two greetings, byte by byte: every way of cutting the answer, every refusal, and noise."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.uplink.proxy import MAX_ANSWER_BYTES, Login, Talk, talk
from gateway.uplink.reactions import Kind, Reaction, Refused

WAY = "proxy p:1 to a.example:443"
LOGIN = Login("user", "pä:ss")


def hold(conversation: Talk, chunks: list[bytes]) -> list[bytes] | Reaction:
    """What was sent, when the way is open; else why not. After the last chunk the proxy closes."""
    sent = [next(conversation)]
    waiting = iter(chunks)
    try:
        while True:
            sent.append(conversation.send(next(waiting, b"")))
    except StopIteration:
        assert next(waiting, None) is None, "it did not listen to the end"
        return [each for each in sent if each]
    except Refused as error:
        return error.reaction


def http(answer: str, login: Login | None = None, host: str = "a.example", port: int = 443) -> list[bytes] | Reaction:
    return hold(talk("http", host, port, login, WAY), [answer.encode()])


def socks(*chunks: bytes, login: Login | None = None, host: str = "a.example") -> list[bytes] | Reaction:
    return hold(talk("socks5", host, 443, login, WAY), list(chunks))


# ── HTTP ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("host", "target"), [("a.example", "a.example:443"), ("10.0.0.1", "10.0.0.1:443"), ("fd00::1", "[fd00::1]:443")]
)
def test_connect_names_the_target_as_it_is(host: str, target: str) -> None:
    assert http("HTTP/1.1 200 OK\r\n\r\n", host=host) == [
        f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode()
    ]


def test_the_login_of_an_http_proxy_is_basic() -> None:
    (request,) = http("HTTP/1.0 200 Connection established\r\nVia: x\r\n\r\n", LOGIN)
    assert b"\r\nProxy-Authorization: Basic dXNlcjpww6Q6c3M=\r\n" in bytes(request)


@pytest.mark.parametrize(
    "status", ["HTTP/1.1 200 OK", "HTTP/1.0 200 Connection established", "HTTP/1.1 204", "HTTP/1.1 200 "]
)
def test_any_2xx_opens_the_way_however_it_is_cut(status: str) -> None:
    answer = f"{status}\r\nProxy-Agent: tinyproxy\r\nContent-Length: 3\r\n\r\n".encode()
    for at in range(1, len(answer)):
        assert isinstance(hold(talk("http", "a.example", 443, None, WAY), [answer[:at], answer[at:]]), list)


@pytest.mark.parametrize(
    ("status", "kind", "wait_s", "says"),
    [
        (407, Kind.REST, 900, "does not accept our name and password"),
        (401, Kind.REST, 900, "does not accept our name and password"),
        (403, Kind.REST, 900, "does not let us through"),
        (405, Kind.REST, 900, "does not let us through"),
        (302, Kind.RETRY, 60, "not what a proxy answers"),
        (100, Kind.RETRY, 60, "not what a proxy answers"),
        (429, Kind.RETRY, 7, "cannot connect"),
        (502, Kind.RETRY, 7, "cannot connect"),
        (503, Kind.RETRY, 7, "cannot connect"),
        (504, Kind.RETRY, 7, "cannot connect"),
    ],
)
def test_each_refusal_of_an_http_proxy_has_its_reaction(status: int, kind: Kind, wait_s: float, says: str) -> None:
    reaction = http(f"HTTP/1.1 {status} Because\r\nretry-after: 7\r\n\r\n<html>", LOGIN)
    assert isinstance(reaction, Reaction)
    assert (reaction.kind, reaction.wait_s) == (kind, wait_s)
    assert reaction.reason.startswith(f"{WAY}: HTTP {status}: ")
    assert says in reaction.reason
    assert "pä" not in reaction.reason


@pytest.mark.parametrize(
    "answer",
    [
        "SSH-2.0-x\r\n\r\n",
        "HTTP/2 200 OK\r\n\r\n",
        "HTTP/1.1 2000 OK\r\n\r\n",
        "HTTP/1.1 ２００ OK\r\n\r\n",
        "HTTP/1.1 200OK\r\n\r\n",
        "\r\n\r\n",
        "HTTP/1.1 200 OK\r\n\r\n\x16",
        "HTTP/1.1 200 OK\r\n" + "x: y\r\n" * MAX_ANSWER_BYTES,
    ],
)
def test_what_no_http_proxy_says_is_left_for_a_minute(answer: str) -> None:
    reaction = http(answer)
    assert isinstance(reaction, Reaction)
    assert (reaction.kind, reaction.wait_s) == (Kind.RETRY, 60)


@pytest.mark.parametrize("answer", ["", "HTTP/1.1 200 OK\r\n"])
def test_an_http_proxy_that_hangs_up_is_retried(answer: str) -> None:
    assert http(answer) == Reaction(Kind.RETRY, f"{WAY}: the proxy closed the connection")


# ── SOCKS5 ───────────────────────────────────────────────────────────────────────────────────────────────────────────

OPENED = bytes.fromhex("05000001 00000000 0000")


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("a.example", b"\x03\x09a.example"),
        ("10.0.0.1", b"\x01\x0a\x00\x00\x01"),
        ("fd00::1", b"\x04" + bytes.fromhex("fd000000000000000000000000000001")),
    ],
)
def test_socks_names_the_target_as_it_is(host: str, address: bytes) -> None:
    assert socks(b"\x05\x00", OPENED, host=host) == [b"\x05\x01\x00", b"\x05\x01\x00" + address + b"\x01\xbb"]


def test_the_login_of_a_socks_proxy_is_sent_when_it_asks() -> None:
    sent = socks(b"\x05\x02", b"\x01\x00", OPENED, login=LOGIN)
    assert isinstance(sent, list)
    assert sent[:2] == [b"\x05\x02\x00\x02", b"\x01\x04user\x06p\xc3\xa4:ss"]


def test_the_login_is_kept_from_a_socks_proxy_that_does_not_ask() -> None:
    sent = socks(b"\x05\x00", OPENED, login=LOGIN)
    assert isinstance(sent, list)
    assert b"user" not in b"".join(sent)


@pytest.mark.parametrize("bound", [b"\x01\x7f\x00\x00\x01", b"\x04" + bytes(16), b"\x03\x03abc", b"\x03\x00"])
def test_an_answer_is_read_however_it_is_cut(bound: bytes) -> None:
    answer = b"\x05\x00\x00" + bound + b"\x12\x34"
    for at in range(1, len(answer)):
        assert isinstance(socks(b"\x05", b"\x00", answer[:at], answer[at:]), list)


@pytest.mark.parametrize(
    ("reply", "kind", "says"),
    [
        (1, Kind.RETRY, "general failure"),
        (2, Kind.REST, "its rules do not allow this"),
        (3, Kind.RETRY, "network unreachable"),
        (4, Kind.RETRY, "host unreachable"),
        (5, Kind.RETRY, "connection refused"),
        (6, Kind.RETRY, "no answer in time"),
        (7, Kind.REST, "does not know CONNECT"),
        (8, Kind.REST, "this kind of address"),
        (77, Kind.RETRY, "error 77"),
    ],
)
def test_each_reply_of_a_socks_proxy_has_its_reaction(reply: int, kind: Kind, says: str) -> None:
    reaction = socks(b"\x05\x00", bytes([5, reply]) + OPENED[2:])
    assert isinstance(reaction, Reaction)
    assert reaction.kind is kind
    assert says in reaction.reason


@pytest.mark.parametrize(
    ("chunks", "login", "says"),
    [
        ([b"\x05\xff"], None, "wants a name and password"),
        ([b"\x05\xff"], LOGIN, "takes no name and password"),
        ([b"\x05\x02", b"\x01\x01"], LOGIN, "does not accept our name and password"),
    ],
)
def test_a_socks_proxy_that_does_not_know_us_is_rested(chunks: list[bytes], login: Login | None, says: str) -> None:
    reaction = socks(*chunks, login=login)
    assert isinstance(reaction, Reaction)
    assert (reaction.kind, reaction.wait_s) == (Kind.REST, 900)
    assert says in reaction.reason


@pytest.mark.parametrize(
    "chunks",
    [
        [b"\x04\x00"],
        [b"\x05\x01"],
        [b"\x05\x02"],
        [b"\x05\x00\x05"],
        [b"\x05\x00", OPENED + b"\x16"],
        [b"\x05\x00", b"\x05\x00\x00\x02" + bytes(3)],
        [b"HTTP/1.1 400 Bad Request\r\n\r\n"],
    ],
)
def test_what_no_socks_proxy_says_is_left_for_a_minute(chunks: list[bytes]) -> None:
    reaction = socks(*chunks)
    assert isinstance(reaction, Reaction)
    assert (reaction.kind, reaction.wait_s) == (Kind.RETRY, 60)


@pytest.mark.parametrize("scheme", ["http", "socks5"])
@given(chunks=st.lists(st.binary(min_size=1, max_size=60), max_size=8))
def test_noise_opens_nothing_and_breaks_nothing(scheme: str, chunks: list[bytes]) -> None:
    conversation = talk(scheme, "a.example", 443, LOGIN, WAY)
    next(conversation)

    def listen() -> None:
        for chunk in [*chunks, *[b""] * 5]:
            conversation.send(chunk)

    with pytest.raises((Refused, StopIteration)):
        listen()
