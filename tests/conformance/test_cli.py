"""`gateway conformance` as a person and a program meet it."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path

import pytest
import trustme

from gateway.cli import main
from gateway.conformance.checks import UNSEEN
from gateway.conformance.run import numbers
from gateway.conformance.specification import requirements
from gateway.ingest.tokens import Role
from tests.conformance import wrong_server
from tests.conformance.wrong_server import TOKEN
from tests.ingest.cloud import cloud, url


@pytest.fixture
def token(tmp_path: Path) -> Path:
    file = tmp_path / "token"
    file.write_text(TOKEN)
    file.chmod(0o600)
    return file


def command(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["conformance", *words])
    return int(ended.value.code or 0)


async def against(*faults: str, words: tuple[str, ...]) -> int:
    async with wrong_server.running(*faults) as wrong:
        return await asyncio.to_thread(command, "--url", wrong.url, "--patience", "1", *words)


def test_what_is_kept_is_one_line_and_exit_code_0(token: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert asyncio.run(against(words=("--token-file", str(token), "--only", "A5"))) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[1:4]] == [["✓", "A5a"], ["✓", "A5b"], ["✓", "A5c"]]
    assert lines[4] == "3 kept"
    assert "device `conformance`" in lines[5]


def test_what_is_broken_says_what_was_sent_what_came_and_what_the_text_says(
    token: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert asyncio.run(against("nacks again and again", words=("--token-file", str(token), "--only", "A5a"))) == 1
    said = capsys.readouterr().out
    assert "✗ A5a  After a nack the server MUST discard all records of that stream" in said
    assert '→ {"type":"batch"' in said
    assert '← {"type":"nack"' in said
    assert "instead: 7 nacks for one hole" in said
    assert "1 broken" in said


def test_a_program_gets_one_document(token: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--token-file", str(token), "--json", "--only", "M2", "--only", "K2")
    assert asyncio.run(against("makes up marks", words=words)) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["conforms"] is False
    verdicts = {finding["number"]: finding["verdict"] for finding in document["findings"]}
    assert verdicts == {"M2a": "kept", "M2b": "broken", "K2": "not observable"}


def test_the_list_has_every_requirement_of_a_server(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("--list") == 0
    listed = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert listed.keys() == numbers().keys()
    assert all(why in listed[number] for number, why in UNSEEN.items())


def test_every_number_is_one_of_the_specification() -> None:
    assert numbers().keys() <= requirements().keys()
    assert UNSEEN.keys() <= numbers().keys()


def test_a_server_that_is_not_there_or_does_not_want_us_is_said(
    tmp_path: Path, token: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
        assert command("--url", f"ws://127.0.0.1:{port}/", "--token-file", str(token)) == 69
    assert "no connection: Connection refused" in capsys.readouterr().err
    token.write_text("another")
    assert asyncio.run(against(words=("--token-file", str(token)))) == 1
    assert "refuses this identity: HTTP 401" in capsys.readouterr().err
    assert command("--url", "ws://gateway.example.com/", "--token-file", str(token)) == 78, "a token in the clear"
    assert command("--url", "http://127.0.0.1/") == 78
    assert command("--url", "ws://127.0.0.1/", "--only", "Z9") == 78
    assert command() == 78


@pytest.mark.parametrize("certified", [False, True])
def test_tls_is_verified_and_a_certificate_is_shown_where_there_is_one(tmp_path: Path, certified: bool) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "server.pem"))
    client = authority.issue_cert(common_name="conformance")
    client.cert_chain_pems[0].write_to_path(str(tmp_path / "client.pem"))
    client.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    (tmp_path / "key.pem").chmod(0o600)
    files = {"cert": tmp_path / "server.pem", "client_ca": tmp_path / "ca.pem"}

    async def main() -> int:
        async with cloud(tmp_path, **files) as server:
            token = await server.committer.call(server.tokens.add, "conformance", Role.GATEWAY, 0)
            (tmp_path / "token").write_text(token)
            (tmp_path / "token").chmod(0o600)
            shown = ("--certfile", "client.pem", "--keyfile", "key.pem") if certified else ("--token-file", "token")
            words = [word if word.startswith("--") else str(tmp_path / word) for word in shown]
            words += ["--url", url(server, "wss"), "--only", "C2b", "--only", "R2a"]
            assert await asyncio.to_thread(command, *words) == 69, "an authority that nobody knows"
            return await asyncio.to_thread(command, "--cafile", str(tmp_path / "ca.pem"), *words)

    assert asyncio.run(main()) == 0


def test_what_was_acked_is_remembered_for_the_next_run(tmp_path: Path, token: Path) -> None:
    memory = tmp_path / "memory"
    words = ("--token-file", str(token), "--memory", str(memory))
    assert asyncio.run(against(words=(*words, "--only", "R2a"))) == 0
    assert 10 in json.loads(memory.read_text()).values()
    assert asyncio.run(against(words=(*words, "--only", "R6b"))) == 1, "another server, which knows nothing of it"
