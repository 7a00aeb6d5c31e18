"""Pure: findings as text for a terminal and as JSON for a program."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from gateway.conformance.run import Finding, Outcome, Verdict
from gateway.conformance.says import DEVICE
from gateway.protocol.messages import SUBPROTOCOL

_SIGN: Final = {Verdict.KEPT: "✓", Verdict.BROKEN: "✗", Verdict.ADVISED: "!", Verdict.UNSEEN: "–"}
_STYLE: Final = {Verdict.KEPT: "green", Verdict.BROKEN: "bold red", Verdict.ADVISED: "yellow", Verdict.UNSEEN: "dim"}
_WORD: Final = {
    Verdict.KEPT: "kept",
    Verdict.BROKEN: "broken",
    Verdict.ADVISED: "not as advised",
    Verdict.UNSEEN: "not observable",
}
_INDENT: Final = " " * 8


class Line(NamedTuple):
    text: str
    style: str = ""


def head(url: str, checks: int) -> Line:
    return Line(f"{SUBPROTOCOL} at {url}: {checks} requirement{'s' * (checks != 1)}", "bold")


def lines(finding: Finding, width: int) -> Iterator[Line]:
    """One line for what is well; what is not, with everything that is needed to mend it."""
    style = _STYLE[finding.verdict]
    if finding.verdict in (Verdict.KEPT, Verdict.UNSEEN):
        why = f"{_WORD[finding.verdict]}, {finding.came}: " if finding.came else ""
        yield Line(_cut(f" {_SIGN[finding.verdict]} {finding.number:<4} {why}{plain(finding.says)}", width), style)
        return
    yield from _folded(f" {_SIGN[finding.verdict]} {finding.number:<4} ", plain(finding.says), width, style)
    for line in finding.log:
        yield Line(_cut(f"{_INDENT}{line}", width), "dim")
    yield from _folded(f"{_INDENT}instead: ", finding.came, width, style)


def summary(outcome: Outcome) -> Iterator[Line]:
    count = Counter(finding.verdict for finding in outcome.findings)
    style = _STYLE[Verdict.BROKEN if outcome.broken else Verdict.KEPT]
    yield Line(", ".join(f"{count[verdict]} {_WORD[verdict]}" for verdict in Verdict if count[verdict]), style)
    yield Line(
        f"Left in the store: at most {outcome.batches} batches and {outcome.results} results in {outcome.streams}"
        f" streams, all of device `{DEVICE}` and of this identity"
    )


def listed(numbers: dict[str, str], text: dict[str, str], width: int) -> Iterator[Line]:
    """All requirements of a server; with why one cannot be seen."""
    for number, why in numbers.items():
        reason = f"({_WORD[Verdict.UNSEEN]}: {why}) " if why else ""
        yield Line(_cut(f"{number:<4} {reason}{plain(text[number])}", width), "dim" if why else "")


def as_json(url: str, outcome: Outcome) -> dict[str, Any]:
    return {
        "url": url,
        "protocol": SUBPROTOCOL,
        "conforms": not outcome.broken,
        "findings": [finding._asdict() for finding in outcome.findings],
        "left": {"device": DEVICE, "streams": outcome.streams, "batches": outcome.batches, "results": outcome.results},
    }


def plain(says: str) -> str:
    """Without the marks of Markdown."""
    return says.replace("*", "").replace("\\", "")


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _folded(first: str, text: str, width: int, style: str) -> Sequence[Line]:
    wrapped = textwrap.wrap(text, max(20, width - len(first)), break_long_words=True) or [""]
    rest = " " * len(first)
    return [Line((rest if number else first) + part, style) for number, part in enumerate(wrapped)]
