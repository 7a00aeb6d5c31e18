"""Pure: what a certificate and a token say of themselves: the pin of the key, and how long they are valid.

A walk along the outer structure of X.509 [RFC 5280 4.1]. Nothing is verified here: for the server's certificate TLS has
done that, for our own the server will.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final, NamedTuple

import msgspec

from gateway.errors import DecodeError

_SEQUENCE: Final = 0x30
_VERSION: Final = 0xA0
_UTC_TIME: Final = 0x17
_GENERALIZED_TIME: Final = 0x18


class Validity(NamedTuple):
    """Seconds since 1970, UTC."""

    begins_s: float | None
    """None: it does not say."""
    ends_s: float


def pin(der: bytes) -> str:
    """SHA-256 of the certificate's SubjectPublicKeyInfo, as it stands in `pins`. Raises DecodeError."""
    key = _signed(der)[5]
    return f"sha256/{base64.b64encode(hashlib.sha256(key.whole).digest()).decode()}"


def certificate_validity(der: bytes) -> Validity:
    """From when until when. Raises DecodeError."""
    begins, ends = [_seconds(each) for each in _inside(_expect(_signed(der)[3], _SEQUENCE))][:2]
    return Validity(begins, ends)


def token_validity(token: str) -> Validity | None:
    """Of a JSON Web Token [RFC 7519 4.1]; None: it is none, or does not end."""
    try:
        text = token.split(".")[1]
        claims = msgspec.json.decode(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)), type=_Claims)
    except (IndexError, binascii.Error, ValueError, RecursionError):
        return None
    if claims.exp is None:
        return None
    return Validity(claims.iat if claims.iat is not None else claims.nbf, claims.exp)


class _Claims(msgspec.Struct):
    exp: float | None = None
    nbf: float | None = None
    iat: float | None = None


class _Element(NamedTuple):
    tag: int
    whole: bytes
    content: bytes


def _signed(der: bytes) -> list[_Element]:
    """The fields of TBSCertificate from the serial number on: …, validity [3], subject, key [5], …"""
    certificate = next(_inside(der), None)
    signed = next(_inside(_expect(certificate, _SEQUENCE)), None)
    fields = list(_inside(_expect(signed, _SEQUENCE)))
    if fields and fields[0].tag == _VERSION:
        del fields[0]
    if len(fields) < 6:
        raise DecodeError("not a certificate: too few fields")
    return fields


def _inside(data: bytes) -> Iterator[_Element]:
    """The elements that stand one after another in `data` [X.690 8.1]."""
    at = 0
    while at < len(data):
        start = at + 2
        length = data[at + 1] if start <= len(data) else 0
        if length >= 0x80:
            octets = length - 0x80
            length = int.from_bytes(data[start : start + octets], "big")
            start += octets
            if not 1 <= octets <= 4:
                raise DecodeError("not DER: a length of no definite size", at)
        end = start + length
        if end > len(data) or data[at] & 0x1F == 0x1F:
            raise DecodeError("not DER: it ends too early", at)
        yield _Element(data[at], data[at:end], data[start:end])
        at = end


def _expect(element: _Element | None, tag: int) -> bytes:
    if element is None or element.tag != tag:
        raise DecodeError("not a certificate: something else stands where a part of it should")
    return element.content


def _seconds(time: _Element) -> float:
    """UTCTime covers 1950 to 2049 [RFC 5280 4.1.2.5]."""
    text = time.content.decode("ascii", "replace")
    if time.tag == _UTC_TIME:
        text = ("19" if text[:2] >= "50" else "20") + text
    elif time.tag != _GENERALIZED_TIME:
        raise DecodeError("not a certificate: no time stands where one should")
    try:
        return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()
    except ValueError as error:
        raise DecodeError(f"not a certificate: {text[:20]!r} is no time") from error
