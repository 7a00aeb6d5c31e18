"""Runs checks one after the other, and says of each requirement what was found."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum
from typing import Final, NamedTuple

from gateway.conformance.bench import Bench, Target
from gateway.conformance.checks import CHECKS, UNSEEN
from gateway.conformance.peer import Refused
from gateway.conformance.register import Check, Failed, Unseen
from gateway.conformance.specification import requirements
from gateway.conformance.witness import ALWAYS, Witness
from gateway.errors import AuthError, LinkError

CHECK_S: Final = 60.0
"""No check takes half of it, unless the server answers nothing."""
_SHOWN: Final = 12
"""Lines of the log that a finding keeps: the newest."""
_KEPT_STREAMS: Final = 16


class Verdict(StrEnum):
    KEPT = "kept"
    BROKEN = "broken"
    ADVISED = "advised"
    """A SHOULD that is not followed."""
    UNSEEN = "not observable"


class Finding(NamedTuple):
    number: str
    verdict: Verdict
    says: str
    """The specification."""
    came: str = ""
    """What the server did instead, or why it cannot be seen."""
    log: tuple[str, ...] = ()
    """What was said last: `→` to the server, `←` by it."""


class Outcome(NamedTuple):
    findings: list[Finding]
    marks: dict[str, int]
    """Stream → mark, for a later run to ask for."""
    streams: int
    batches: int
    results: int
    """What may stay in the store."""

    @property
    def broken(self) -> bool:
        return any(finding.verdict is Verdict.BROKEN for finding in self.findings)


def numbers() -> dict[str, str]:
    """Every requirement of a server, in the order of the text: number → why it cannot be seen, or empty."""
    seen = {check.number: "" for check in CHECKS} | dict.fromkeys(ALWAYS, "") | UNSEEN
    return {number: seen[number] for number in requirements() if number in seen}


def chosen(only: Sequence[str]) -> list[str]:
    """Those that begin so; all of them when nothing is asked for."""
    return [number for number in numbers() if not only or any(number.startswith(each) for each in only)]


async def run(
    target: Target, only: Sequence[str], remembered: dict[str, int], told: Callable[[Finding], None]
) -> Outcome:
    """`told` hears each finding as it is made. Raises LinkError, AuthError: nothing can be tried at all."""
    await _knock(target)
    witness, text = Witness(), requirements()
    wanted = set(chosen(only))
    findings: list[Finding] = []
    for check in CHECKS:
        if check.number in wanted:
            findings.append(await _try(check, target, witness, remembered, text[check.number]))
            told(findings[-1])
    for finding in _watched(witness, wanted, text, watched_any=bool(findings)):
        findings.append(finding)
        told(finding)
    for number, why in UNSEEN.items():
        if number in wanted:
            findings.append(Finding(number, Verdict.UNSEEN, text[number], why))
            told(findings[-1])
    order = list(text)
    findings.sort(key=lambda finding: order.index(finding.number))
    kept = dict(list(witness.marks.items())[-_KEPT_STREAMS:])
    return Outcome(findings, kept, witness.streams, witness.batches, witness.results)


async def _knock(target: Target) -> None:
    bench = Bench(target, Witness())
    async with bench:
        try:
            await bench.dial()
        except Refused as error:
            if error.status in (401, 403):
                raise AuthError(f"{target.url} refuses this identity: {error}") from error
            raise LinkError(f"{target.url}: {error}") from error


async def _try(check: Check, target: Target, witness: Witness, remembered: dict[str, int], says: str) -> Finding:
    broken_before = dict(witness.broken)
    bench = Bench(target, witness, remembered)
    try:
        async with asyncio.timeout(CHECK_S), bench:
            await check.run(bench)
    except Unseen as why:
        return Finding(check.number, Verdict.UNSEEN, says, str(why))
    except (Failed, Refused) as error:
        return _broken(check.number, says, str(error), bench.log)
    except TimeoutError:
        return _broken(check.number, says, f"it came to no end within {CHECK_S:g} s", bench.log)
    finally:
        for number in witness.broken.keys() - broken_before.keys():
            witness.logs[number] = tuple(bench.log[-_SHOWN:])
    return Finding(check.number, Verdict.KEPT, says)


def _broken(number: str, says: str, came: str, log: Sequence[str]) -> Finding:
    verdict = Verdict.ADVISED if "SHOULD" in says and "MUST" not in says else Verdict.BROKEN
    return Finding(number, verdict, says, came, tuple(log[-_SHOWN:]))


def _watched(witness: Witness, wanted: set[str], text: dict[str, str], watched_any: bool) -> Iterable[Finding]:
    for number in ALWAYS:
        if number not in wanted:
            continue
        if number in witness.broken:
            yield _broken(number, text[number], witness.broken[number], witness.logs.get(number, ()))
        elif not watched_any or witness.unseen(number):
            yield Finding(number, Verdict.UNSEEN, text[number], "no such message came; run all checks")
        else:
            yield Finding(number, Verdict.KEPT, text[number])
