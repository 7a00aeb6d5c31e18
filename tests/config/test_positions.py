"""Places of keys in TOML texts, and what a person is told about a text that is not TOML."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.config.positions import Place, scan, syntax_error
from gateway.settings import KeyPath


def paths(value: Any, path: KeyPath = ()) -> Iterator[KeyPath]:
    yield path
    if isinstance(value, dict):
        for word, inner in value.items():
            yield from paths(inner, (*path, word))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from paths(inner, (*path, i))


TEXT = '''\
# a comment with [brackets] and "quotes"
title = "x"   # comment
"quoted key" = 1
a.b . "c.d" = { e = 1, f.g = [1, { h = 2 }] }
when = 1979-05-27 07:32:00

[buffer]
text = """
[not.a.table]
key = "no" \\
"""
raw = \'\'\'it\'s ''two'' \'\'\'\'\'
list = [ 1, # one
  "two]", [3,
  4],
]
[[bus]]
name = "a"
[[bus]]
name = "b"
[bus.rs485]
on = true
  [[bus.line]]
  x = 1
  [[bus.line]]
  x = 2
[implied.child]
z = 0
[implied]
y = 1
'''

PLACES: dict[KeyPath, tuple[int, int]] = {
    ("title",): (2, 1),
    ("quoted key",): (3, 1),
    ("a", "b", "c.d"): (4, 7),
    ("a", "b", "c.d", "e"): (4, 17),
    ("a", "b", "c.d", "f", "g"): (4, 26),
    ("a", "b", "c.d", "f", "g", 1, "h"): (4, 36),
    ("when",): (5, 1),
    ("buffer",): (7, 2),
    ("buffer", "text"): (8, 1),
    ("buffer", "raw"): (12, 1),
    ("buffer", "list"): (13, 1),
    ("buffer", "list", 1): (14, 3),
    ("buffer", "list", 2, 1): (15, 3),
    ("bus",): (17, 3),
    ("bus", 0): (17, 3),
    ("bus", 0, "name"): (18, 1),
    ("bus", 1): (19, 3),
    ("bus", 1, "rs485"): (21, 6),
    ("bus", 1, "rs485", "on"): (22, 1),
    ("bus", 1, "line", 0): (23, 9),
    ("bus", 1, "line", 1, "x"): (26, 3),
    ("implied",): (29, 2),
    ("implied", "child", "z"): (28, 1),
}


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_every_kind_of_key_has_the_place_where_it_is_written(newline: str) -> None:
    text = TEXT.replace("\n", newline)
    found = scan(text)
    assert set(paths(tomllib.loads(text))) == set(found)
    assert {path: found[path][:2] for path in PLACES} == PLACES


def test_a_place_covers_the_key_and_an_entry_covers_its_first_line() -> None:
    found = scan('abc = ["long", [1,\n2]]\n')
    assert found["abc",] == Place(1, 1, 3)
    assert found["abc", 0] == Place(1, 8, 6)
    assert found["abc", 1] == Place(1, 16, 3)


words = st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), max_size=6)
scalars = (
    st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | words
    | st.datetimes().map(lambda when: when.replace(microsecond=0))
    | st.dates()
    | st.times().map(lambda when: when.replace(microsecond=0))
)
documents = st.dictionaries(
    words,
    st.recursive(
        scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3), max_leaves=12
    ),
    max_size=5,
)


def quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


class Writer:
    """Writes a document in one of the many ways TOML has for it, and notes where it wrote each named key."""

    def __init__(self, draw: Any) -> None:
        self.draw, self.text, self.keys = draw, "", {}

    def key(self, word: str) -> str:
        bare = bool(word) and word.isascii() and word.replace("-", "a").replace("_", "a").isalnum()
        return word if bare and self.draw(st.booleans()) else quoted(word)

    def blank(self) -> str:
        return self.draw(st.sampled_from(["", " ", "\t "]))

    def note(self, path: KeyPath) -> None:
        line = self.text.count("\n") + 1
        self.keys.setdefault(path, (line, len(self.text) - (self.text.rfind("\n") + 1) + 1))

    def document(self, table: dict[str, Any], path: KeyPath = ()) -> None:
        later = {}
        for word, value in table.items():
            rows = isinstance(value, list) and bool(value) and all(isinstance(each, dict) for each in value)
            if (isinstance(value, dict) or rows) and self.draw(st.booleans()):
                later[word] = value
                continue
            self.text += self.blank()
            self.pair((*path, word), value)
            self.text += self.blank() + self.draw(st.sampled_from(["\n", "# a = [ { \" ' \n", "\n\n"]))
        for word, value in later.items():
            for i, each in enumerate(value) if isinstance(value, list) else ((None, value),):
                self.text += self.blank() + ("[" if i is None else "[[")
                for parent in path:
                    if isinstance(parent, str):
                        self.text += self.key(parent) + self.blank() + "." + self.blank()
                inner = (*path, word) if i is None else (*path, word, i)
                self.note(inner)
                self.text += self.key(word) + self.blank() + ("]\n" if i is None else "]]\n")
                self.document(each, inner)

    def pair(self, path: KeyPath, value: Any) -> None:
        self.note(path)
        self.text += self.key(str(path[-1])) + self.blank()
        while isinstance(value, dict) and len(value) == 1 and self.draw(st.booleans()):
            word, value = next(iter(value.items()))
            path = (*path, word)
            self.text += "." + self.blank()
            self.note(path)
            self.text += self.key(word) + self.blank()
        self.text += "=" + self.blank()
        self.value(path, value)

    def value(self, path: KeyPath, value: Any) -> None:
        if isinstance(value, dict):
            self.text += "{" + self.blank()
            for i, (word, inner) in enumerate(value.items()):
                self.text += ("," + self.blank()) if i else ""
                self.pair((*path, word), inner)
            self.text += self.blank() + "}"
        elif isinstance(value, list):
            self.text += "["
            for i, inner in enumerate(value):
                self.text += self.draw(st.sampled_from(["", " ", "\n", " # ]\n"]))
                self.note((*path, i))
                self.value((*path, i), inner)
                self.text += self.blank() + ","
            self.text += "]"
        elif isinstance(value, str):
            self.text += self.string(value)
        elif isinstance(value, bool):
            self.text += str(value).lower()
        elif isinstance(value, int | float):
            self.text += repr(value)
        else:
            self.text += str(value)

    def string(self, value: str) -> str:
        plain = all(each.isprintable() and each not in "'\r" for each in value)
        ways = ["basic", "multi", "literal", "multi literal"] if plain else ["basic", "multi"]
        match self.draw(st.sampled_from(ways)):
            case "literal":
                return f"'{value}'"
            case "multi literal":
                return f"'''{value}'''"
            case "multi":
                return f'"""{quoted(value)[1:-1]}"""'
            case _:
                return quoted(value)


@settings(deadline=None, max_examples=80)
@given(documents, st.data())
def test_every_path_of_a_document_has_the_place_where_its_key_was_written(
    document: dict[str, Any], data: st.DataObject
) -> None:
    writer = Writer(data.draw)
    writer.document(document)
    parsed = tomllib.loads(writer.text)
    assert parsed == document
    found = scan(writer.text)
    assert set(paths(parsed)) == set(found)
    for path, place in writer.keys.items():
        assert found[path][:2] == place, path


SLIPS = [
    ("port = /dev/ttyUSB0", 1, 'text needs quotes: `port = "/dev/ttyUSB0"`'),
    ("timeout = 500ms", 1, 'text needs quotes: `timeout = "500ms"`'),
    ("a = 1\nenabled = yes\nb = 2", 2, "write `enabled = true`"),
    ("enabled = False", 1, "write `enabled = false`"),
    ('x = "a",', 1, "no comma or semicolon at the end of the line"),
    ("x = 5;", 1, "no comma or semicolon at the end of the line"),
    ("x == 5", 1, "write a single = : `x = 5`"),
    ("x: 5", 1, "write a single = : `x = 5`"),
    ("x 5", 1, ""),
    ("[buffer\nx = 1", 1, "close the header with ]"),
    ("[[bus]\nx = 1", 1, "close the header with ]]"),
    ('name = "a\nx = 1', 1, 'the closing " is missing'),
    ('path = "C:\\dev"', 1, "write the text in '…'"),
    ('path = "C:\\users"', 1, "write the text in '…'"),
    ("x = ", 1, "to use its default leave the line out"),
    ("a = 1\nx =\nb = 2", 2, "to use its default leave the line out"),
    ("x = null", 1, "leave the line out"),
    ("x = 007", 1, "no leading zeros; write `x = 7`"),
    ("a = 1\na = 2", 2, "`a` stands twice in this table"),
    ("[bus]\na = 1\n[bus]\na = 2", 3, "write [[bus]] with two brackets"),
    ("a = { b = 1,\n c = 2 }", 1, "must end in the same line"),
    ("a = “b”", 1, "plain quotes"),
    ("; comment", 1, "a comment starts with #"),
    ("// comment", 1, "a comment starts with #"),
]


@pytest.mark.parametrize(("text", "line", "advice"), SLIPS)
def test_a_slip_is_shown_in_its_line_with_what_would_be_right(text: str, line: int, advice: str) -> None:
    with pytest.raises(tomllib.TOMLDecodeError) as caught:
        tomllib.loads(text)
    place, message = syntax_error(text, caught.value)
    assert place.line == line, message
    assert advice in message, message


@pytest.mark.parametrize("text", ["token = hunter2", "mqtt_password: hunter2", "'api-token' == hunter2"])
def test_the_advice_on_a_secret_does_not_repeat_it(text: str) -> None:
    with pytest.raises(tomllib.TOMLDecodeError) as caught:
        tomllib.loads(text)
    assert "hunter2" not in syntax_error(text, caught.value)[1]


@settings(deadline=None)
@given(st.text(st.sampled_from("ab=[]{}\"'\\#.,:;\n 01“"), max_size=30))
def test_any_text_that_is_not_toml_gives_a_place_inside_it(text: str) -> None:
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        place, message = syntax_error(text, error)
        assert 1 <= place.line <= text.count("\n") + 1
        assert place.column >= 1
        assert message
    else:
        scan(text)
