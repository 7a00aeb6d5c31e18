"""Topic templates and the tree that finds them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paho.mqtt.client import topic_matches_sub

from gateway.connectors.mqtt.topics import Template, Topics, covers, overlap, reduced, render

level = st.sampled_from(["a", "b", "", "c d", "ü", "$x"])
wild = st.sampled_from(["a", "b", "", "+", "ü"])
topics = st.lists(level, min_size=1, max_size=4).map("/".join).filter(bool)
filters = st.builds(
    lambda levels, rest: "/".join([*levels, "#"] if rest else levels),
    st.lists(wild, min_size=1, max_size=4),
    st.booleans(),
).filter(bool)


@settings(deadline=None, max_examples=400)
@given(st.lists(filters, max_size=6), topics)
def test_the_tree_finds_what_the_client_library_would_match(patterns: list[str], topic: str) -> None:
    tree: Topics[str] = Topics()
    for pattern in patterns:
        tree.add(Template.of(pattern), pattern)
    found = sorted(match.value for match in tree.match(topic))
    assert found == sorted(pattern for pattern in patterns if topic_matches_sub(pattern, topic))


@settings(deadline=None, max_examples=300)
@given(filters, filters, topics)
def test_what_covers_matches_more(wide: str, narrow: str, topic: str) -> None:
    if covers(wide, narrow) and topic_matches_sub(narrow, topic):
        assert topic_matches_sub(wide, topic)


@settings(deadline=None, max_examples=200)
@given(st.lists(filters, max_size=6), topics)
def test_reducing_filters_loses_no_topic(patterns: list[str], topic: str) -> None:
    kept = reduced(patterns)
    assert any(topic_matches_sub(p, topic) for p in patterns) == any(topic_matches_sub(p, topic) for p in kept)
    assert not any(covers(a, b) for a in kept for b in kept if a != b)


def test_placeholders_capture_one_level_and_wildcards_are_the_tail() -> None:
    tree: Topics[str] = Topics()
    tree.add(Template.of("plant/{area}/{device}/+/#"), "x")
    (match,) = tree.match("plant/hall/press 1/out/a/b")
    assert match.captures == {"area": "hall", "device": "press 1"}
    assert match.tail == "out/a/b"
    assert tree.match("plant/hall") == []


@settings(deadline=None, max_examples=400)
@given(filters, filters, topics)
def test_filters_that_share_a_topic_overlap(one: str, other: str, topic: str) -> None:
    assert overlap(one, other) == overlap(other, one)
    if topic_matches_sub(one, topic) and topic_matches_sub(other, topic):
        assert overlap(one, other)


@pytest.mark.parametrize(
    ("one", "other", "shared"),
    [("a/+", "+/b", True), ("a/#", "+/b", True), ("a", "a/#", True), ("a/+", "b/+", False), ("a/+", "a/+/c", False)],
)
def test_which_filters_overlap(one: str, other: str, shared: bool) -> None:
    assert overlap(one, other) is shared


def test_rendering_puts_captures_back_and_leaves_the_unknown() -> None:
    assert render("cmnd/{device}/{point}", {"device": "a{point}"}) == "cmnd/a{point}/{point}"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "1 to 65,535"),
        ("a\0b", "1 to 65,535"),
        ("a/#/b", "last level"),
        ("a/b+", "whole level"),
        ("a/x{device}", "whole level"),
        ("{d}/{d}", "twice"),
        ("a/{Device}", "whole level"),
    ],
)
def test_a_topic_that_cannot_be_is_refused_with_a_reason(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Template.of(text)
