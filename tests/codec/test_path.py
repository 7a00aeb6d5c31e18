"""Paths into JSON documents."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.codec.path import ABSENT, Path, leaves, text_of

DOCUMENT = {
    "AM2301": {"Temperature": 21.5, "Name": "attic"},
    "phases": [{"v": 230.1}, {"v": 229.8}],
    "em.0": {'a "b"': 7, "": "nothing", "back\\slash": 1},
    "switch:0": {"on": False},
    "gone": None,
    "0": "a key, not an index",
    "grid": [[1, 2], [3, 4]],
}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("AM2301.Temperature", 21.5),
        ("phases[1].v", 229.8),
        ('"em.0"."a \\"b\\""', 7),
        ('"em.0".""', "nothing"),
        ('"em.0"."back\\\\slash"', 1),
        ("switch:0.on", False),
        ("gone", None),
        ("0", "a key, not an index"),
        ("grid[1][0]", 3),
        ("missing", ABSENT),
        ("AM2301.missing.deeper", ABSENT),
        ("phases[2].v", ABSENT),
        ("phases.v", ABSENT),
        ("AM2301[0]", ABSENT),
        ("AM2301.Name[0]", ABSENT),
        ("AM2301.Name.x", ABSENT),
        ("gone.x", ABSENT),
        ("gone[0]", ABSENT),
    ],
)
def test_a_path_finds_what_is_there_and_nothing_else(text: str, found: object) -> None:
    result = Path.of(text).find(DOCUMENT)
    assert result == found
    assert type(result) is type(found)


def test_a_list_may_be_the_document() -> None:
    assert Path.of("[1].id").find([{"id": 1}, {"id": 2}]) == 2
    assert Path.of("[1].id").find({"1": {"id": 2}}) is ABSENT


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "a.",
        ".a",
        "a..b",
        "a[",
        "a[]",
        "a[x]",
        "a[-1]",
        "a.[0]",
        "a]b",
        'a"b"',
        '"a',
        '"a"b',
        "a[0]b",
        '"a\\n"',
    ],
)
def test_what_is_no_path_is_refused_and_the_place_is_named(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a path: .*character"):
        Path.of(text)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(st.text(max_size=5), JSON, min_size=1, max_size=4) | st.lists(JSON, min_size=1, max_size=4))
def test_every_leaf_is_found_again_by_the_text_of_its_path(document: Any) -> None:
    for steps, value in leaves(document):
        path = Path.of(text_of(steps))
        assert path.steps == steps
        assert path.find(document) is value


@given(st.lists(st.text() | st.integers(0, 1000), min_size=1, max_size=6))
def test_any_steps_can_be_written_as_a_path(steps: list[str | int]) -> None:
    assert Path.of(text_of(steps)).steps == tuple(steps)


def test_leaves_come_in_the_order_of_the_document_however_deep_it_is() -> None:
    document: Any = {"a": 1, "b": [2, {"c": 3}], "d": 4}
    assert [value for _, value in leaves(document)] == [1, 2, 3, 4]
    deep: Any = 1
    for _ in range(5000):
        deep = [deep]
    assert [value for _, value in leaves(deep)] == [1]
