"""The keys of an endpoint that say how it is reached and whom we trust, and the page that explains them."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from gateway.config.load import check_text
from gateway.connectors.registry import Registry
from gateway.settings import read
from gateway.uplink import config
from gateway.uplink.config import UplinkSettings
from tests.uplink.pki import secret

PAGE = Path(config.__file__).parent / "README.md"
PIN, SPARE = "sha256/" + "A" * 43 + "=", "sha256/" + "B" * 43 + "="


def mistakes(endpoint: str) -> list[str]:
    return [each.message for each in read(UplinkSettings, tomllib.loads(f"[[endpoint]]\n{endpoint}"))[1]]


@pytest.mark.parametrize(
    ("endpoint", "says"),
    [
        (f'url = "wss://a/"\ntls.pins = ["{PIN}"]', "one pin is a trap"),
        (f'url = "wss://a/"\ntls.pins = ["{PIN}", "{PIN}"]', "one pin is a trap"),
        (f'url = "wss://a/"\ntls.pins = ["{PIN}", "sha1/abc"]', "does not fit"),
        (f'url = "ws://a/"\ntls.pins = ["{PIN}", "{SPARE}"]', "ws:// has no TLS"),
        ('url = "wss://a/"\ninterface = "way-too-long-name"', "does not fit"),
        ('url = "wss://a/"\ninterface = "../eth0"', "does not fit"),
        ('url = "wss://a/"\nproxy = "https://p:1"', "does not fit"),
        ('url = "wss://a/"\nproxy = "socks5h://p:1"', "does not fit"),
        ('url = "wss://a/"\nproxy = "http://u:p@p:1"', "no credentials in the URL: use proxy_auth_file"),
        ('url = "wss://a/"\nproxy = "http://p"', "named by host and port"),
        ('url = "wss://a/"\nproxy = "http://:3128"', "named by host and port"),
        ('url = "wss://a/"\nproxy = "socks5://p:99999"', "not a URL"),
        ('url = "wss://a/"\nproxy_auth_file = "f"', "there is no `proxy`"),
        ('url = "wss://a..b/"', "a..b can be no name of a host"),
        ('url = "wss://ä..b/"', "ä..b can be no name of a host"),
        (f'url = "wss://{"a" * 64}.example/"', "can be no name of a host"),
        (f'url = "wss://{"long." * 51}example/"', "can be no name of a host"),
        ('url = "wss://a/"\nproxy = "http://ä..b:1"', "ä..b can be no name of a host"),
        ('url = "wss://a/"\nproxy_auth = "u:p"', "secrets do not stand in this file"),
        ('url = "ws://127.0.0.1/"\ntoken_file = "t"\nproxy = "http://p:1"', "can be read on the way"),
    ],
)
def test_what_cannot_work_is_said(endpoint: str, says: str) -> None:
    (message,) = mistakes(endpoint)
    assert says in message
    assert "u:p" not in message


@pytest.mark.parametrize(
    "endpoint",
    [
        f'url = "wss://a/"\ntls.pins = ["{PIN}", "{SPARE}"]',
        'url = "wss://a/"\ninterface = "enx00e04c680001"',
        'url = "wss://a/"\nproxy = "socks5://[fd00::1]:1080/"',
        'url = "wss://größe.example./"',
        'url = "wss://[fd00::1]:8443/"',
        'url = "wss://a/"\nproxy = "http://p:3128"\nproxy_auth_file = "f"',
    ],
)
def test_what_works_is_taken(endpoint: str) -> None:
    assert mistakes(endpoint) == []


def test_every_example_of_the_page_is_good() -> None:
    blocks = re.findall(r"^```toml\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 3
    for block in blocks:
        raw = tomllib.loads(block)
        assert read(UplinkSettings, raw["uplink"])[1] == [], block


def test_the_map_of_the_page_names_every_file_of_the_room() -> None:
    named = set(re.findall(r"^\| `(\w+\.py)` \|", PAGE.read_text(), re.MULTILINE))
    assert named == {path.name for path in PAGE.parent.glob("*.py")} - {"__init__.py"}


def test_the_check_of_a_file_hides_a_login_and_looks_at_its_file(tmp_path: Path) -> None:
    text = '[uplink]\n[[uplink.endpoint]]\nurl = "wss://a/"\nproxy = "http://p:1"\n'
    shown = check_text(f'{text}proxy_auth = "plant:geheim"\n', "c.toml", {}, Registry())
    assert "proxy_auth = …" in shown.mistakes[0].underlined("")
    file = secret(tmp_path / "login", "plant:geheim", 0o644)
    found = check_text(f'{text}proxy_auth_file = "{file}"\n', "c.toml", {}, Registry())
    assert any(f"chmod 600 {file}" in str(each) for each in found.warnings)
