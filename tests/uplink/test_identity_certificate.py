"""Pins, dates of certificates and tokens, against the library that made them and against noise."""

from __future__ import annotations

import base64
import hashlib
import json
from datetime import UTC, datetime

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import DecodeError
from gateway.uplink.certificate import Validity, certificate_validity, pin, token_validity


def certificate(
    key: CertificateIssuerPrivateKeyTypes,
    begins: datetime = datetime(2026, 1, 1, tzinfo=UTC),
    ends: datetime = datetime(2036, 1, 1, tzinfo=UTC),
    name: str = "a",
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .not_valid_before(begins)
        .not_valid_after(ends)
        .serial_number(x509.random_serial_number())
        .public_key(key.public_key())
        .sign(key, None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256())
    )


def der(of: x509.Certificate) -> bytes:
    return of.public_bytes(serialization.Encoding.DER)


EC = ec.generate_private_key(ec.SECP256R1())
SAMPLE = der(certificate(EC))


@pytest.mark.parametrize(
    "key",
    [
        EC,
        rsa.generate_private_key(65537, 2048),
        rsa.generate_private_key(65537, 4096),
        ed25519.Ed25519PrivateKey.generate(),
    ],
    ids=["ec", "rsa-2048", "rsa-4096", "ed25519"],
)
def test_the_pin_is_that_of_the_key(key: CertificateIssuerPrivateKeyTypes) -> None:
    """As everybody else computes it [RFC 7469 2.4], and the same for another certificate of this key."""
    spki = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    expected = "sha256/" + base64.b64encode(hashlib.sha256(spki).digest()).decode()
    assert pin(der(certificate(key))) == pin(der(certificate(key, name="b" * 60))) == expected


def test_a_certificate_of_an_authority_is_read_too() -> None:
    leaf = trustme.CA().issue_cert("a.example.com", "10.0.0.1").cert_chain_pems[0].bytes()
    parsed = x509.load_pem_x509_certificate(leaf)
    assert certificate_validity(der(parsed)).ends_s == parsed.not_valid_after_utc.timestamp()


@given(
    st.datetimes(datetime(1950, 1, 1), datetime(2030, 1, 1)),  # noqa: DTZ001
    st.datetimes(datetime(2030, 1, 2), datetime(9999, 12, 31, 23, 59, 59)),  # noqa: DTZ001
)
def test_validity_is_read_in_both_forms_of_time(begins: datetime, ends: datetime) -> None:
    begins, ends = (each.replace(tzinfo=UTC, microsecond=0) for each in (begins, ends))
    assert certificate_validity(der(certificate(EC, begins, ends))) == (begins.timestamp(), ends.timestamp())


@given(st.binary(max_size=200))
def test_noise_is_no_certificate(data: bytes) -> None:
    for read in (pin, certificate_validity):
        with pytest.raises(DecodeError):
            read(data)


@given(st.integers(0, len(SAMPLE) - 1), st.binary(min_size=1, max_size=8), st.integers(0, 300))
def test_a_damaged_certificate_is_read_or_refused(at: int, put: bytes, cut: int) -> None:
    damaged = (SAMPLE[:at] + put + SAMPLE[at + len(put) :])[: len(SAMPLE) - cut]
    for read in (pin, certificate_validity):
        try:
            read(damaged)
        except DecodeError:
            pass


# ── tokens ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def jwt(claims: object) -> str:
    text = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    return f"eyJhbGciOiJFUzI1NiJ9.{text}.c2lnbmF0dXJl"


@pytest.mark.parametrize(
    ("claims", "validity"),
    [
        ({"exp": 2000, "iat": 1000, "nbf": 900, "sub": "gw-1", "aud": ["a"]}, (1000, 2000)),
        ({"exp": 2000, "nbf": 900}, (900, 2000)),
        ({"exp": 2000.5}, (None, 2000.5)),
        ({"sub": "gw-1"}, None),
        ({"exp": "tomorrow"}, None),
        ([1, 2], None),
    ],
)
def test_the_end_of_a_token_is_read(claims: object, validity: Validity | None) -> None:
    assert token_validity(jwt(claims)) == validity


@given(st.text(max_size=200) | st.text("ey.J_-=", max_size=60))
def test_any_other_token_has_no_end(token: str) -> None:
    assert token_validity(token) is None


def test_a_token_nested_without_end_has_none() -> None:
    text = base64.urlsafe_b64encode(b'{"x":' + b"[" * 10_000).decode()
    assert token_validity(f"a.{text}.b") is None
