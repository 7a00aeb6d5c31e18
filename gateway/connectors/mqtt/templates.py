"""Pure: the templates of Home Assistant's discovery, as far as they only point into a payload.

    {{ value }}                         the payload as text
    {{ value_json.a.b['c d'][0] }}      a place in the payload as JSON
    … * 1000 / 3 + 2 - 1, ( … )         arithmetic with numbers
    … | float | int | round(1) | abs | multiply(2) | add(1) | default(0) | is_defined | string | lower | upper | trim

Nothing is evaluated but this. A template that says more (a block, a condition, a function, another filter) is refused
with a sentence that names what it was. What is not there stays `ABSENT`: there is no reading then. Where a default
stands in for it the result says so (`made`), because it is no measurement.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import ROUND_HALF_EVEN, Decimal
from typing import NamedTuple

from gateway.codec.document import decode_json
from gateway.codec.path import ABSENT
from gateway.errors import DecodeError
from gateway.model import Json

_TOKEN = re.compile(
    r"""\s*(?:(?P<number>\d+(?:\.\d+)?)|(?P<text>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")|(?P<name>[A-Za-z_]\w*)"""
    r"""|(?P<sign>[-+*/()|.,\[\]])|(?P<other>\S))""",
)
_MAX_TEMPLATE = 1_024
_MAX_DEPTH = 20


class Refused(ValueError):
    """The template says more than a place; the text names what."""


class _Scope:
    """One evaluation."""

    __slots__ = ("_json", "made", "payload")

    def __init__(self, payload: str) -> None:
        self.payload = payload
        self.made = False
        """A default took the place of what is not there."""
        self._json: Json = _scope_unread

    @property
    def json(self) -> Json:
        """Raises DecodeError."""
        if self._json is _scope_unread:
            self._json = decode_json(self.payload.encode("utf-8", "surrogatepass"))
        return self._json


_scope_unread = object()
_Part = Callable[[_Scope], Json]


class Result(NamedTuple):
    """What a template made of a payload."""

    found: Json
    """Or `ABSENT`."""
    made: bool = False
    """It is a default, and no measurement."""


class Template:
    """One template, compiled. Raises Refused."""

    def __init__(self, text: str) -> None:
        if len(text) > _MAX_TEMPLATE:
            raise Refused(f"more than {_MAX_TEMPLATE} characters")
        self.text = text
        if "{%" in text:
            raise Refused("a {% block %}")
        inner = text.strip()
        if not inner.startswith("{{") or not inner.endswith("}}") or "{{" in inner[2:]:
            raise Refused("text around a value")
        self._part = _Parser(inner[2:-2].strip("-")).whole()

    def of(self, payload: str) -> Result:
        """Raises DecodeError: the payload is not JSON though the template reads it as that, or holds something else
        than the template works with."""
        scope = _Scope(payload)
        found = self._part(scope)
        return Result(found, scope.made)


class _Parser:
    def __init__(self, text: str) -> None:
        self._tokens: list[tuple[str, str]] = []
        for match in _TOKEN.finditer(text.rstrip()):
            kind = match.lastgroup or "other"
            if kind == "other":
                raise Refused(f"`{match[kind]}`")
            self._tokens.append((kind, match[kind]))
        self._at = 0
        self._depth = 0

    def whole(self) -> _Part:
        part = self._sum()
        if self._at < len(self._tokens):
            raise Refused(f"`{self._tokens[self._at][1]}`")
        return part

    def _peek(self) -> str:
        kind, text = self._tokens[self._at] if self._at < len(self._tokens) else ("end", "")
        return text if kind == "sign" else ""

    def _next(self) -> tuple[str, str]:
        if self._at == len(self._tokens):
            raise Refused("an end in the middle")
        self._at += 1
        return self._tokens[self._at - 1]

    def _expect(self, sign: str) -> None:
        kind, text = self._next()
        if (kind, text) != ("sign", sign):
            raise Refused(f"`{text}`")

    def _sum(self) -> _Part:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise Refused("too many parentheses")
        left = self._product()
        while self._peek() in ("+", "-"):
            sign = self._next()[1]
            left = _arithmetic(sign, left, self._product())
        self._depth -= 1
        return left

    def _product(self) -> _Part:
        left = self._filtered()
        while self._peek() in ("*", "/"):
            sign = self._next()[1]
            left = _arithmetic(sign, left, self._filtered())
        return left

    def _filtered(self) -> _Part:
        part = self._place()
        while self._peek() == "|":
            self._next()
            kind, name = self._next()
            make = _FILTERS.get(name) if kind == "name" else None
            if make is None:
                raise Refused(f"the filter `{name}`")
            part = make(part, *self._arguments(name))
        return part

    def _arguments(self, name: str) -> list[Json]:
        found: list[Json] = []
        if self._peek() == "(":
            self._next()
            while self._peek() != ")":
                if found:
                    self._expect(",")
                found.append(self._literal())
            self._next()
        least, most = _ARGUMENTS[name]
        if not least <= len(found) <= most:
            raise Refused(f"the filter `{name}` with {len(found)} arguments")
        return found

    def _literal(self) -> Json:
        negative = self._peek() == "-"
        if negative:
            self._next()
        kind, text = self._next()
        if kind == "number":
            number = float(text) if "." in text else int(text)
            return -number if negative else number
        if kind == "text" and not negative:
            return _unquoted(text)
        if kind == "name" and text.lower() in _CONSTANTS and not negative:
            return _CONSTANTS[text.lower()]
        raise Refused(f"`{text}`")

    def _place(self) -> _Part:
        kind, text = self._next()
        if (kind, text) == ("sign", "("):
            part = self._sum()
            self._expect(")")
            return part
        if kind == "number":
            number = float(text) if "." in text else int(text)
            return lambda scope: number
        if kind != "name":
            raise Refused(f"`{text}`")
        if text == "value":
            return lambda scope: scope.payload
        if text != "value_json":
            raise Refused(f"`{text}`")
        steps = self._steps()
        return lambda scope: _walk(scope.json, steps)

    def _steps(self) -> tuple[str | int, ...]:
        steps: list[str | int] = []
        while self._peek() in (".", "["):
            if self._next()[1] == ".":
                kind, text = self._next()
                if kind != "name" and not text.isdecimal():
                    raise Refused(f"`{text}`")
                if self._peek() == "(":
                    raise Refused(f"the function `{text}`")
                steps.append(int(text) if text.isdecimal() else text)
                continue
            step = self._literal()
            if isinstance(step, bool) or not isinstance(step, str | int):
                raise Refused(f"`[{step}]`")
            steps.append(step)
            self._expect("]")
        return tuple(steps)


_CONSTANTS: dict[str, Json] = {"true": True, "false": False, "none": None}


def _unquoted(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text[1:-1])


def _walk(document: Json, steps: tuple[str | int, ...]) -> Json:
    try:
        for step in steps:
            if isinstance(document, list) if isinstance(step, str) else not isinstance(document, list):
                return ABSENT
            document = document[step]
    except (KeyError, IndexError, TypeError):
        return ABSENT
    return document


def rendered(found: Json) -> str:
    """A value as a template prints it: `True`, `None`, 21.5."""
    return found if isinstance(found, str) else str(found)


# ── what is done with a value ────────────────────────────────────────────────────────────────────────────────────────


def _number(found: Json) -> int | float:
    if isinstance(found, int | float) and not isinstance(found, bool):
        return found
    if isinstance(found, str):
        try:
            return int(found) if re.fullmatch(r"\s*[+-]?\d{1,20}\s*", found, re.ASCII) else float(found)
        except ValueError:
            pass
    raise DecodeError("no number where the template counts")


def _arithmetic(sign: str, left: _Part, right: _Part) -> _Part:
    def work(scope: _Scope) -> Json:
        a, b = left(scope), right(scope)
        if a is ABSENT or b is ABSENT:
            return ABSENT
        for each in (a, b):
            if isinstance(each, bool) or not isinstance(each, int | float):
                raise DecodeError("no number where the template counts")
        try:
            return a + b if sign == "+" else a - b if sign == "-" else a * b if sign == "*" else a / b
        except (ZeroDivisionError, OverflowError) as error:
            raise DecodeError("the template cannot count this") from error

    return work


def _to_number(whole: bool) -> Callable[..., _Part]:
    def make(part: _Part, *standin: Json) -> _Part:
        def work(scope: _Scope) -> Json:
            found = part(scope)
            try:
                if found is ABSENT:
                    raise DecodeError("nothing where the template counts")
                number = _number(found)
                return int(number) if whole else float(number)
            except (DecodeError, OverflowError, ValueError) as error:
                if standin:
                    scope.made = True
                    return standin[0]
                if found is ABSENT:
                    return ABSENT
                raise DecodeError("no number where the template counts") from error

        return work

    return make


def _default(part: _Part, standin: Json = "", boolean: Json = False) -> _Part:
    def work(scope: _Scope) -> Json:
        found = part(scope)
        if found is ABSENT or (boolean and not found):
            scope.made = True
            return standin
        return found

    return work


def _plain(change: Callable[..., Json]) -> Callable[..., _Part]:
    """A filter of what is there."""

    def make(part: _Part, *arguments: Json) -> _Part:
        def work(scope: _Scope) -> Json:
            found = part(scope)
            if found is ABSENT:
                return ABSENT
            try:
                return change(found, *arguments)
            except (TypeError, ValueError, ArithmeticError, AttributeError) as error:
                raise DecodeError("the template does not fit the payload") from error

        return work

    return make


def _round(found: Json, digits: Json = 0, how: Json = "common") -> Json:
    if how != "common" or not isinstance(digits, int) or not -15 <= digits <= 15:
        raise ValueError(how)
    number = float(_number(found))
    if number - number != 0:
        return number
    rounded = float(Decimal(repr(number)).quantize(Decimal(1).scaleb(-digits), ROUND_HALF_EVEN))
    return int(rounded) if digits == 0 and abs(rounded) < 2**53 else rounded


_FILTERS: dict[str, Callable[..., _Part]] = {
    "float": _to_number(whole=False),
    "int": _to_number(whole=True),
    "round": _plain(_round),
    "abs": _plain(lambda found: abs(_number(found))),
    "multiply": _plain(lambda found, by: _number(found) * by),
    "add": _plain(lambda found, more: _number(found) + more),
    "default": _default,
    "d": _default,
    "is_defined": _plain(lambda found: found),
    "string": _plain(rendered),
    "lower": _plain(lambda found: rendered(found).lower()),
    "upper": _plain(lambda found: rendered(found).upper()),
    "trim": _plain(lambda found: rendered(found).strip()),
}
_ARGUMENTS = {
    **dict.fromkeys(_FILTERS, (0, 0)),
    "float": (0, 1), "int": (0, 1), "round": (0, 2), "multiply": (1, 1), "add": (1, 1), "default": (0, 2), "d": (0, 2),
}  # fmt: skip
