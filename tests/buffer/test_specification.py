"""The promises in the README: each has tests, and the tests that it names exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "gateway/buffer/README.md").read_text()
PROMISED = re.findall(r"^- \*\*(B\d+)\*\*", TEXT, re.MULTILINE)
TABLE = dict(re.findall(r"^\| (B\d+) \| (.+) \|$", TEXT, re.MULTILINE))
TESTS = {
    name
    for area in ("buffer", "mqtt")
    for path in (ROOT / "tests" / area).glob("test_*.py")
    for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)
}


def test_every_promise_has_tests_and_every_test_that_is_named_exists() -> None:
    assert [f"B{number}" for number in range(1, len(PROMISED) + 1)] == PROMISED
    assert list(TABLE) == PROMISED
    for rule, said in TABLE.items():
        named = re.findall(r"`(\w+)`", said)
        assert named, rule
        assert set(named) <= TESTS, (rule, set(named) - TESTS)


def test_every_module_is_on_the_map() -> None:
    modules = {
        path.name for path in (ROOT / "gateway/buffer").glob("*.py") if path.name not in ("__init__.py", "config.py")
    }
    assert modules == set(re.findall(r"`(\w+\.py)`", TEXT.partition("## ")[0]))
