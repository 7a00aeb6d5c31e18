"""Who we are and whom we trust, over real TLS."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme

from gateway.uplink.config import Endpoint, TlsSettings
from tests.uplink.house import running, state_of, trouble_of, until
from tests.uplink.memory import MemoryOutbox
from tests.uplink.sink import Sink, Store


class Pki:
    def __init__(self, folder: Path) -> None:
        self.ca = trustme.CA()
        self.cafile = folder / "ca.pem"
        self.ca.cert_pem.write_to_path(str(self.cafile))
        self.folder = folder

    def server(self, name: str = "127.0.0.1", *, mutual: bool = False, ends: datetime | None = None) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.ca.issue_cert(name, not_after=ends).configure_cert(context)
        if mutual:
            self.ca.configure_trust(context)
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def client(self) -> TlsSettings:
        cert = self.ca.issue_cert("gw-1")
        certfile, keyfile = self.folder / "cert.pem", self.folder / "key.pem"
        keyfile.touch(mode=0o600)
        cert.private_key_pem.write_to_path(str(keyfile))
        cert.cert_chain_pems[0].write_to_path(str(certfile))
        return TlsSettings(cafile=self.cafile, certfile=certfile, keyfile=keyfile)


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    return Pki(tmp_path)


def secret(path: Path, text: str, mode: int = 0o600) -> Path:
    path.touch(mode=0o600)
    path.write_text(text)
    path.chmod(mode)
    return path


def rests(context: ssl.SSLContext, tls: TlsSettings, **more: Path) -> str:
    """What status says of an endpoint that must be left alone."""

    async def main() -> str:
        outbox = MemoryOutbox()
        outbox.put(1)
        async with Sink(Store(), tls=context) as sink:
            endpoint = Endpoint(url=sink.url, name="a", tls=tls, **more)  # type: ignore[arg-type]
            async with running(outbox, endpoint) as uplink:
                await until(lambda: state_of(uplink, "a") == "resting")
                await asyncio.sleep(0.05)
                assert uplink.status()["endpoints"][0]["failures"] == 1, "nobody hammers"
                assert sink.store.rows() == []
                return trouble_of(uplink, "a")

    return asyncio.run(main())


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


def test_a_client_certificate_is_shown(pki: Pki) -> None:
    async def main() -> None:
        outbox = MemoryOutbox()
        outbox.put(1)
        async with (
            Sink(Store(), tls=pki.server(mutual=True)) as sink,
            running(outbox, Endpoint(url=sink.url, name="a", tls=pki.client())),
        ):
            await until(lambda: sink.store.rows() == [1])

    asyncio.run(main())


def test_a_server_that_misses_our_certificate_is_rested(pki: Pki) -> None:
    """A plain OpenSSL server: asyncio's drops the connection before its alert is out."""
    listener = socket.create_server(("127.0.0.1", 0))
    context = pki.server(mutual=True)

    def refuse() -> None:
        with contextlib.suppress(OSError):
            while True:
                with contextlib.suppress(ssl.SSLError):
                    context.wrap_socket(listener.accept()[0], server_side=True)

    async def main() -> str:
        url = f"wss://127.0.0.1:{listener.getsockname()[1]}/"
        endpoint = Endpoint(url=url, name="a", tls=TlsSettings(cafile=pki.cafile))
        async with running(MemoryOutbox(), endpoint) as uplink:
            await until(lambda: state_of(uplink, "a") == "resting")
            return trouble_of(uplink, "a")

    server = threading.Thread(target=refuse)
    server.start()
    try:
        assert "certificate required" in asyncio.run(main())
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        server.join()


def test_an_expired_certificate_is_refused(pki: Pki) -> None:
    ends = datetime.now(UTC) - timedelta(days=1)
    assert "expired" in rests(pki.server(ends=ends), TlsSettings(cafile=pki.cafile))


def test_a_certificate_for_another_host_is_refused(pki: Pki) -> None:
    assert "IP address mismatch" in rests(pki.server("elsewhere.example"), TlsSettings(cafile=pki.cafile))


def test_a_certificate_of_an_unknown_authority_is_refused(pki: Pki) -> None:
    assert "local issuer" in rests(pki.server(), TlsSettings())


def test_tls_1_1_is_refused(pki: Pki) -> None:
    async def main() -> None:
        context = pki.server()
        context.minimum_version = ssl.TLSVersion.TLSv1_1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
        context.set_ciphers("ALL:@SECLEVEL=0")
        outbox = MemoryOutbox()
        async with Sink(Store(), tls=context) as sink:
            endpoint = Endpoint(url=sink.url, name="a", tls=TlsSettings(cafile=pki.cafile))
            async with running(outbox, endpoint, random=lambda: 0.99) as uplink:
                await until(lambda: "TLS" in trouble_of(uplink, "a"))
                assert sink.hellos == []

    asyncio.run(main())


@pytest.mark.parametrize("what", ["token", "key"])
def test_a_secret_that_others_can_read_is_refused_by_name(pki: Pki, tmp_path: Path, what: str) -> None:
    tls = pki.client()
    assert tls.keyfile is not None
    if what == "key":
        tls.keyfile.chmod(0o644)
        said, path = rests(pki.server(), tls), tls.keyfile
    else:
        path = secret(tmp_path / "token", "s3cret", 0o604)
        said = rests(pki.server(), tls, token_file=path)
    assert f"chmod 600 {path}" in said
    assert "s3cret" not in said


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
