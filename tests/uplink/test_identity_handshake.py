"""Who a gateway is, the handshake says: nothing that comes after it, and nothing that stands in the URL."""

from __future__ import annotations

import asyncio
import json
import ssl
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from gateway.ingest.server import IngestServer
from gateway.ingest.tokens import Role
from tests.ingest.cloud import Gateway, body, cloud, stream_id
from tests.uplink.pki import Pki, pem, secret

CLAIM = {"gateway": "other", "name": "other", "identity": "other", "id": "other", "client_id": "other", "from": "other"}
HEADERS = {"X-Gateway": "other", "X-Client-Cert": "other", "X-Forwarded-User": "other", "X-SSL-Client-CN": "other"}


def known_to(server: IngestServer, query: str) -> set[str]:
    return {row[0] for row in server.sink.query(query)}


async def claim(server: IngestServer, *, path: str = "/", **more: Any) -> None:
    """Says in every place that it is the other one, and delivers a reading."""
    host, port = server.addresses[0]
    scheme = "wss" if more.get("ssl") else "ws"
    headers = {**HEADERS, **more.pop("headers", {})}
    async with connect(
        f"{scheme}://{host}:{port}{path}",
        subprotocols=["gateway.uplink.v1"],  # type: ignore[list-item]
        additional_headers=headers,
        proxy=None,
        **more,
    ) as ws:
        speaker, stream = Gateway(ws), stream_id()
        sent = ws.send

        async def claiming(text: str) -> None:
            await sent(json.dumps({**json.loads(text), **CLAIM}))

        ws.send = claiming  # type: ignore[method-assign,assignment]
        await speaker.hello(stream)
        await speaker.batch(stream, 1, json.dumps({**json.loads(body([1])), **CLAIM}).encode())
        await speaker.acked(stream, 1)
        for who in ("name FROM gateway WHERE hello_ms IS NOT NULL", "gateway FROM stream", "gateway FROM series"):
            assert known_to(server, f"SELECT {who}") == {"mine"}


@pytest.mark.parametrize("path", ["/", "/other", "/?gateway=other&token=TOKEN", "/gateways/other"])
def test_a_token_says_who_it_is_and_nothing_else_does(tmp_path: Path, path: str) -> None:
    async def main() -> None:
        async with cloud(tmp_path) as server:
            mine = await server.committer.call(server.tokens.add, "mine", Role.GATEWAY, 0)
            other = await server.committer.call(server.tokens.add, "other", Role.GATEWAY, 0)
            await claim(server, path=path.replace("TOKEN", other), headers={"Authorization": f"Bearer {mine}"})

    asyncio.run(main())


def test_a_token_in_the_url_opens_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        async with cloud(tmp_path) as server:
            mine = await server.committer.call(server.tokens.add, "mine", Role.GATEWAY, 0)
            for path in (f"/?token={mine}", f"/?access_token={mine}", f"/{mine}"):
                with pytest.raises(InvalidStatus, match="401"):
                    await claim(server, path=path)

    asyncio.run(main())


def test_a_certificate_says_who_it_is_and_a_token_of_another_does_not_help(tmp_path: Path) -> None:
    pki = Pki(tmp_path)
    issued = pki.ca.issue_cert("127.0.0.1")
    cert = secret(tmp_path / "s.crt", pem(issued), 0o644)
    key = secret(tmp_path / "s.key", issued.private_key_pem.bytes().decode())
    tls = pki.client("mine")
    context = ssl.create_default_context(cafile=str(pki.cafile))
    assert tls.certfile is not None
    context.load_cert_chain(tls.certfile, tls.keyfile)

    async def main() -> None:
        async with cloud(tmp_path, cert=cert, key=key, client_ca=pki.cafile) as server:
            other = await server.committer.call(server.tokens.add, "other", Role.GATEWAY, 0)
            await claim(server, ssl=context)
            with pytest.raises(InvalidStatus, match="401"):
                await claim(server, ssl=context, headers={"Authorization": f"Bearer {other}"})

    asyncio.run(main())
