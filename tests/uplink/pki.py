"""A private authority, what it issues, and files that hold it, for the tests of identity and trust."""

from __future__ import annotations

import ssl
from datetime import datetime
from pathlib import Path

import trustme

from gateway.uplink.config import TlsSettings


def secret(path: Path, text: str, mode: int = 0o600) -> Path:
    """Put there in one step, as whoever renews a secret does."""
    fresh = path.with_name(f"{path.name}.new")
    fresh.touch(mode=0o600)
    fresh.write_text(text)
    fresh.chmod(mode)
    fresh.rename(path)
    return path


def pem(certificate: trustme.LeafCert) -> str:
    return b"".join(each.bytes() for each in certificate.cert_chain_pems).decode()


class Pki:
    def __init__(self, folder: Path, name: str = "ca") -> None:
        self.ca = trustme.CA()
        self.cafile = folder / f"{name}.pem"
        self.ca.cert_pem.write_to_path(str(self.cafile))
        self.folder = folder

    def server(
        self,
        name: str = "127.0.0.1",
        *,
        mutual: bool = False,
        begins: datetime | None = None,
        ends: datetime | None = None,
    ) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.ca.issue_cert(name, not_before=begins, not_after=ends).configure_cert(context)
        if mutual:
            self.ca.configure_trust(context)
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def client(
        self, name: str = "gw-1", *, begins: datetime | None = None, ends: datetime | None = None, file: str = "gw"
    ) -> TlsSettings:
        """A certificate and its key in files; again with the same `file`: renewed, the certificate first."""
        issued = self.ca.issue_cert(name, common_name=name, not_before=begins, not_after=ends)
        certfile, keyfile = self.folder / f"{file}.crt", self.folder / f"{file}.key"
        secret(certfile, pem(issued), 0o644)
        secret(keyfile, issued.private_key_pem.bytes().decode())
        return TlsSettings(cafile=self.cafile, certfile=certfile, keyfile=keyfile)
