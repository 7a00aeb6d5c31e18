"""JSON as devices write it."""

from __future__ import annotations

import math

import pytest

from gateway.codec.document import decode_json
from gateway.errors import DecodeError


def test_integers_are_exact_however_long() -> None:
    assert decode_json(b"[18446744073709551615, -9223372036854775808, 18446744073709551617]") == [
        2**64 - 1,
        -(2**63),
        2**64 + 1,
    ]


def test_what_python_programs_publish_is_read_as_what_it_says() -> None:
    found = decode_json(b'{"t": NaN, "h": -Infinity, "p": 1013}')
    assert math.isnan(found["t"])
    assert (found["h"], found["p"]) == (-math.inf, 1013)


def test_of_two_equal_keys_the_last_counts() -> None:
    assert decode_json(b'{"t": 1, "t": 2}') == {"t": 2}


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\0",
        b"{",
        b"{'secret': 1}",
        b'{"secret": 01}',
        b'{"secret": 1e400}',
        b'"secret \xff"',
        b'"secret \\ud800"',
        b'\xef\xbb\xbf"secret"',
        b"[" * 100_000,
        b"[" * 100_000 + b"NaN",
        b"1" * 5000,
    ],
)
def test_what_is_no_json_is_said_without_quoting_it(payload: bytes) -> None:
    with pytest.raises(DecodeError, match=r"^not JSON: \w+$") as caught:
        decode_json(payload)
    assert "secret" not in str(caught.value)
