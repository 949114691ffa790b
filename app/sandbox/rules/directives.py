"""Directives in a prompt: `[[sandbox: …]]` holds the JSON that `POST /control` takes. Pure; it knows no HTTP."""

import json
import re
from collections.abc import Iterator
from typing import Any

from app.sandbox.error_responses import field_error
from app.sandbox.rules.parse import RuleError, describe, parse_rules
from app.sandbox.rules.rule import Rule

OPENING = re.compile(r"\[\[\s*sandbox", re.IGNORECASE)
START = re.compile(r"\[\[sandbox:\s*", re.IGNORECASE)
END = re.compile(r"\s*\]\]")
EXAMPLE = '[[sandbox: {"fail": 503}]]'
MAX_QUOTED = 40
_DECODER = json.JSONDecoder()


def parse_prompt(prompt: str) -> list[Rule]:
    """The rules of all directives, in their order. Raises RuleError."""
    rules: list[Rule] = []
    for parsed, start, end in _directives(prompt):
        try:
            rules += parse_rules(parsed)
        except RuleError as error:
            text = _quote(prompt[start:end])
            raise RuleError(
                [{**one, "msg": f"sandbox directive {text}: {describe(one)}"} for one in error.errors]
            ) from None
    return rules


def visible_text(prompt: str) -> str:
    """The prompt as an image shows it: without directives, unless nothing else is there. Raises RuleError."""
    parts, position = [], 0
    for _, start, end in _directives(prompt):
        parts.append(prompt[position:start])
        position = end
    return "".join([*parts, prompt[position:]]).strip() or prompt.strip()


def _directives(prompt: str) -> Iterator[tuple[Any, int, int]]:
    """The JSON of each directive, and where the directive starts and ends in the prompt. Raises RuleError."""
    position = 0
    while opening := OPENING.search(prompt, position):
        start = START.match(prompt, opening.start())
        if start is None:
            raise _not_understood(prompt, opening.start(), f"a directive looks like {EXAMPLE}")
        try:
            parsed, json_end = _DECODER.raw_decode(prompt, start.end())
        except (ValueError, RecursionError):
            raise _not_understood(prompt, start.end(), f"expected JSON, as in {EXAMPLE}") from None
        end = END.match(prompt, json_end)
        if end is None:
            raise _not_understood(prompt, json_end, "expected ]] after the JSON")
        yield parsed, opening.start(), end.end()
        position = end.end()


def _not_understood(prompt: str, position: int, expected: str) -> RuleError:
    found = _quote(prompt[position:]) if prompt[position:] else "the end of the prompt"
    message = f"sandbox directive not understood at {found}: {expected}"
    return RuleError([field_error("sandbox_directive", [], message)])


def _quote(text: str) -> str:
    return repr(text if len(text) <= MAX_QUOTED else f"{text[:MAX_QUOTED]}…")
