"""What the README shows works: the configuration is good, the commands exist, the links lead somewhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from gateway.cli import parser
from gateway.config.load import check_text
from gateway.connectors.registry import Registry

ROOT = Path(__file__).parent.parent
PAGES = sorted(path for path in ROOT.rglob("README.md") if not {".venv", "node_modules"} & set(path.parts))


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_the_readme_has_a_configuration_and_it_is_good() -> None:
    (text,) = blocks(ROOT / "README.md", "toml")
    report = check_text(text, "README.md", {}, Registry())
    assert [str(mistake) for mistake in report.mistakes] == []
    assert report.config is not None
    assert len(report.config.buses) == 2


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_every_gateway_command_in_a_shell_block_is_one(page: Path) -> None:
    for block in blocks(page, "sh"):
        for line in block.splitlines():
            command = line.split("#")[0].split("|")[0].split(">")[0].strip()
            if command.startswith("gateway "):
                parser().parse_args(shlex.split(command)[1:])  # SystemExit with its complaint when it is none


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_every_link_to_a_file_of_this_repository_leads_there(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{relative(page)} links to {target}"


@pytest.mark.parametrize("script", ["gateway/demo/start.sh", "tests/run.sh", "systemd/install.sh"])
def test_the_scripts_that_the_readme_names_are_there_and_executable(script: str) -> None:
    assert script in (ROOT / "README.md").read_text()
    assert (ROOT / script).stat().st_mode & 0o111
