"""Who we are and whom we trust, over real TLS."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import ssl
import threading
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from gateway.uplink.auth import Credentials
from gateway.uplink.certificate import pin
from gateway.uplink.config import Endpoint, TlsSettings
from gateway.uplink.link import open_link
from gateway.uplink.reactions import Kind, Refused
from tests.uplink.house import running, state_of, trouble_of, until
from tests.uplink.memory import MemoryOutbox
from tests.uplink.pki import Pki, secret
from tests.uplink.sink import Sink, Store


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    return Pki(tmp_path)


def rests(context: ssl.SSLContext, tls: TlsSettings, host: str = "127.0.0.1", **more: Path) -> str:
    """What status says of an endpoint that must be left alone."""

    async def main() -> str:
        outbox = MemoryOutbox()
        outbox.put(1)
        async with Sink(Store(), tls=context) as sink:
            url = f"wss://{host}:{sink.port}/uplink"
            endpoint = Endpoint(url=url, name="a", tls=tls, **more)  # type: ignore[arg-type]
            async with running(outbox, endpoint) as uplink:
                await until(lambda: state_of(uplink, "a") == "resting")
                await asyncio.sleep(0.05)
                assert uplink.status()["endpoints"][0]["failures"] == 1, "nobody hammers"
                assert sink.store.rows() == []
                assert sink.authorizations == []
                return trouble_of(uplink, "a")

    return asyncio.run(main())


def accepts(context: ssl.SSLContext, tls: TlsSettings, host: str = "127.0.0.1") -> bool:
    """A row gets through."""

    async def main() -> bool:
        outbox = MemoryOutbox()
        outbox.put(1)
        bind = "::1" if host == "[::1]" else "127.0.0.1"
        async with Sink(Store(), tls=context, host=bind) as sink:
            endpoint = Endpoint(url=f"wss://{host}:{sink.port}/uplink", name="a", tls=tls)
            async with running(outbox, endpoint):
                await until(lambda: sink.store.rows() == [1])
        return True

    return asyncio.run(main())


def refused(context: ssl.SSLContext, tls: TlsSettings, attempts: list[int] | None = None) -> tuple[Kind, str]:
    """By a plain OpenSSL server: asyncio's drops the connection before its alert is out."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = listener.accept()
                if attempts is not None:
                    attempts.append(1)
                with context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False) as up:
                    up.settimeout(5)
                    with contextlib.suppress(OSError):
                        _shake_hands(up)

    async def main() -> tuple[Kind, str]:
        url = f"wss://127.0.0.1:{listener.getsockname()[1]}/"
        endpoint = Endpoint(url=url, name="a", tls=tls)
        with pytest.raises(Refused) as caught:
            await open_link(endpoint, Credentials(endpoint).read())
        return caught.value.reaction.kind, str(caught.value)

    server = threading.Thread(target=serve)
    server.start()
    try:
        return asyncio.run(main())
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        server.join()


def _shake_hands(server: ssl.SSLSocket) -> None:
    """Until the other side hangs up: a reset by ours would overtake our alert."""
    try:
        server.do_handshake()
        server.recv(1)
    except ssl.SSLError:
        socket.socket.shutdown(server, socket.SHUT_WR)
        while socket.socket.recv(server, 4096):
            pass


def self_signed(folder: Path) -> ssl.SSLContext:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    (folder / "self.crt").write_bytes(certificate.public_bytes(encoding))
    (folder / "self.key").write_bytes(key.private_bytes(encoding, form, serialization.NoEncryption()))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "self.crt", folder / "self.key")
    return context


def test_a_token_over_tls_is_sent_in_the_header(pki: Pki, tmp_path: Path) -> None:
    sink = Sink(Store(), tls=pki.server(), token="s3cret")

    async def main() -> None:
        outbox = MemoryOutbox()
        token = secret(tmp_path / "token", "s3cret\n")
        async with sink:
            endpoint = Endpoint(url=sink.url, name="a", token_file=token, tls=TlsSettings(cafile=pki.cafile))
            async with running(outbox, endpoint):
                outbox.put(1)
                await until(lambda: sink.store.rows() == [1])

    asyncio.run(main())
    assert sink.authorizations == ["Bearer s3cret"]


# ── servers that are refused ─────────────────────────────────────────────────────────────────────────────────────────


def test_an_expired_certificate_is_refused(pki: Pki) -> None:
    ends = datetime.now(UTC) - timedelta(days=1)
    assert "certificate has expired" in rests(pki.server(ends=ends), TlsSettings(cafile=pki.cafile))


@pytest.mark.parametrize("name", ["elsewhere.example", "localhost", "127.0.0.2"])
def test_a_certificate_for_another_host_is_refused(pki: Pki, name: str) -> None:
    assert "IP address mismatch" in rests(pki.server(name), TlsSettings(cafile=pki.cafile))


def test_a_certificate_for_an_address_does_not_serve_a_name(pki: Pki) -> None:
    assert "Hostname mismatch" in rests(pki.server(), TlsSettings(cafile=pki.cafile), host="localhost")


def test_a_certificate_of_an_unknown_authority_is_refused(pki: Pki, tmp_path: Path) -> None:
    assert "local issuer" in rests(pki.server(), TlsSettings())
    assert "local issuer" in rests(pki.server(), TlsSettings(cafile=Pki(tmp_path, "other").cafile))


def test_a_certificate_that_signed_itself_is_refused(pki: Pki, tmp_path: Path) -> None:
    assert "self-signed" in rests(self_signed(tmp_path), TlsSettings(cafile=pki.cafile))


def test_a_private_authority_replaces_those_of_the_system(
    pki: Pki, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(pki.cafile))
    assert accepts(pki.server(), TlsSettings()), "what the system trusts is trusted where nothing else is said"
    assert "local issuer" in rests(pki.server(), TlsSettings(cafile=Pki(tmp_path, "other").cafile))


def test_a_certificate_that_is_not_yet_valid_is_refused_until_our_clock_is_set(pki: Pki) -> None:
    context = pki.server(begins=datetime.now(UTC) + timedelta(days=1), ends=datetime.now(UTC) + timedelta(days=9))
    kind, said = refused(context, TlsSettings(cafile=pki.cafile))
    assert (kind, said) == (Kind.RETRY, "certificate of the server refused: certificate is not yet valid")


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1:DeprecationWarning")
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
def test_what_came_before_tls_1_2_is_refused(pki: Pki, version: ssl.TLSVersion) -> None:
    context = pki.server()
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = version
    kind, said = refused(context, TlsSettings(cafile=pki.cafile))
    assert (kind, said) == (Kind.REST, "the server refused our TLS handshake: tlsv1 alert protocol version")


@pytest.mark.parametrize(
    "ciphers", ["ECDHE-ECDSA-AES256-SHA", "ECDHE-ECDSA-AES128-SHA256", "AES128-GCM-SHA256", "DHE-RSA-AES128-GCM-SHA256"]
)
def test_ciphers_without_forward_secrecy_or_authentication_are_refused(pki: Pki, ciphers: str) -> None:
    context = pki.server()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(ciphers)
    kind, said = refused(context, TlsSettings(cafile=pki.cafile))
    assert (kind, said) == (Kind.REST, "the server refused our TLS handshake: sslv3 alert handshake failure")


def test_an_attempt_that_was_refused_is_not_repeated_with_less(pki: Pki) -> None:
    """One connection and no more: the endpoint rests, and nothing weaker was offered."""
    rests(pki.server("elsewhere.example"), TlsSettings(cafile=pki.cafile))  # counts the attempts
    offered: list[int] = []
    context = pki.server()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("AES128-SHA")
    refused(context, TlsSettings(cafile=pki.cafile), offered)
    assert len(offered) == 1


# ── servers that are accepted ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize(("name", "host"), [("127.0.0.1", "127.0.0.1"), ("localhost", "localhost"), ("::1", "[::1]")])
def test_good_servers_are_accepted_by_name_and_by_address(
    pki: Pki, version: ssl.TLSVersion, name: str, host: str
) -> None:
    context = pki.server(name)
    context.minimum_version = context.maximum_version = version
    assert accepts(context, TlsSettings(cafile=pki.cafile), host)


@pytest.mark.parametrize("ciphers", ["ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-ECDSA-CHACHA20-POLY1305"])
def test_good_ciphers_of_tls_1_2_are_accepted(pki: Pki, ciphers: str) -> None:
    context = pki.server()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(ciphers)
    assert accepts(context, TlsSettings(cafile=pki.cafile))


# ── pins ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

SPARE = "sha256/" + "A" * 43 + "="
OTHER = "sha256/" + "B" * 43 + "="


def test_a_server_whose_key_is_not_pinned_is_refused_and_its_pin_is_said(pki: Pki, tmp_path: Path) -> None:
    """A good certificate is not enough; and before the pin is checked nothing of ours is shown."""
    token = secret(tmp_path / "token", "s3cret")
    said = rests(pki.server(), TlsSettings(cafile=pki.cafile, pins=(SPARE, OTHER)), token_file=token)
    found = re.fullmatch(
        r"the key of the server is not one of the pins: its certificate has (sha256/[A-Za-z0-9+/]{43}=)", said
    )
    assert found is not None


def test_a_pinned_key_is_accepted_the_spare_as_well(pki: Pki) -> None:
    context = pki.server()
    _, said = refused(context, TlsSettings(cafile=pki.cafile, pins=(SPARE, OTHER)))
    found = said.rpartition(" ")[2]
    assert accepts(context, TlsSettings(cafile=pki.cafile, pins=(found, SPARE)))
    assert accepts(context, TlsSettings(cafile=pki.cafile, pins=(SPARE, found)))


def test_a_pin_does_not_replace_the_certificate(pki: Pki, tmp_path: Path) -> None:
    context = self_signed(tmp_path)
    certificate = (tmp_path / "self.crt").read_text()
    mine = pin(ssl.PEM_cert_to_DER_cert(certificate))
    assert "self-signed" in rests(context, TlsSettings(cafile=pki.cafile, pins=(mine, SPARE)))


# ── our own certificate ──────────────────────────────────────────────────────────────────────────────────────────────


def test_a_client_certificate_is_shown(pki: Pki) -> None:
    assert accepts(pki.server(mutual=True), pki.client())


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize(
    ("mine", "says"),
    [
        ("none", ("certificate required", "handshake failure")),
        ("expired", ("certificate expired",)),
        ("of another authority", ("unknown ca",)),
    ],
)
def test_a_server_that_does_not_like_our_certificate_is_rested(
    pki: Pki, tmp_path: Path, version: ssl.TLSVersion, mine: str, says: tuple[str, ...]
) -> None:
    tls = TlsSettings(cafile=pki.cafile)
    if mine == "expired":
        ends = datetime.now(UTC) - timedelta(days=1)
        tls = pki.client(begins=ends - timedelta(days=9), ends=ends)
    elif mine == "of another authority":
        other = Pki(tmp_path, "other").client()
        tls = TlsSettings(cafile=pki.cafile, certfile=other.certfile, keyfile=other.keyfile)
    context = pki.server(mutual=True)
    context.minimum_version = context.maximum_version = version
    kind, said = refused(context, tls)
    assert kind is Kind.REST
    assert any(said.endswith(f"the server refused our TLS handshake: {alert}") for alert in alerts(says)), said


def alerts(says: tuple[str, ...]) -> list[str]:
    return [f"{prefix} alert {each}" for each in says for prefix in ("tlsv1", "tlsv13", "sslv3")]


# ── secrets in files ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("what", ["token", "key"])
@pytest.mark.parametrize("mode", [0o604, 0o602, 0o644, 0o660, 0o620, 0o601, 0o777])
def test_a_secret_that_others_can_read_or_change_is_refused_by_name(
    pki: Pki, tmp_path: Path, what: str, mode: int
) -> None:
    tls = pki.client()
    assert tls.keyfile is not None
    if what == "key":
        tls.keyfile.chmod(mode)
        said, path = rests(pki.server(), tls), tls.keyfile
    else:
        path = secret(tmp_path / "token", "s3cret", mode)
        said = rests(pki.server(), tls, token_file=path)
    assert said.endswith(f"has mode {mode:03o}: others can read or change it; chmod 600 {path}")
    assert "s3cret" not in said


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o640, 0o440])
def test_a_secret_that_is_lent_to_the_service_is_taken(pki: Pki, mode: int) -> None:
    """0440 is what one of systemd's credentials shows: the mask of its access list."""
    tls = pki.client()
    assert tls.keyfile is not None
    tls.keyfile.chmod(mode)
    assert accepts(pki.server(mutual=True), tls)


@pytest.mark.parametrize("text", ["", "two words", "ünicode", "line\nbreak"])
def test_a_token_file_holds_one_token(pki: Pki, tmp_path: Path, text: str) -> None:
    path = secret(tmp_path / "token", text)
    assert str(path) in rests(pki.server(), TlsSettings(cafile=pki.cafile), token_file=path)


def test_a_renewed_token_is_used_at_once(pki: Pki, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.uplink.uplink.LOOK_AT_FILES_EVERY_S", 0.02)

    async def main() -> None:
        outbox = MemoryOutbox()
        outbox.put(1)
        token = secret(tmp_path / "token", "old")
        async with Sink(Store(), tls=pki.server(), token="fresh") as sink:
            endpoint = Endpoint(url=sink.url, name="a", token_file=token, tls=TlsSettings(cafile=pki.cafile))
            async with running(outbox, endpoint) as uplink:
                await until(lambda: state_of(uplink, "a") == "resting")
                secret(token, "fresh!")
                secret(token, "fresh")
                await until(lambda: sink.store.rows() == [1])
                assert len(sink.authorizations) <= 3

    asyncio.run(main())
