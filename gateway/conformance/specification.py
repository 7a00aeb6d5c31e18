"""The numbered sentences of the protocol's text: what a finding quotes is what the specification says."""

from __future__ import annotations

import re
from importlib import resources


def requirements() -> dict[str, str]:
    """Number → sentence, in the order of the text."""
    text = resources.files("gateway.protocol").joinpath("README.md").read_text(encoding="utf-8")
    found = re.findall(r"^- \*\*([A-Z]\d+[a-z]?)\*\* (.*?)(?=\n\n|\n- |\n\||\n```|\Z)", text, re.MULTILINE | re.DOTALL)
    return {number: " ".join(sentence.split()) for number, sentence in found}
