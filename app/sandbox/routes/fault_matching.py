"""Finds the fault that the rules ask for at one request, waits where they ask for a delay, and records it."""

import anyio
from fastapi import Request

from app.sandbox.rules.rule import FaultRule
from app.sandbox.rules.rule_set import RuleSet
from app.sandbox.state import get_entry


async def match_fault(request: Request, place: str, *rule_sets: RuleSet) -> FaultRule | None:
    """The fault of the first rule set that has one for this place, after the delays of all before it."""
    entry = get_entry(request)
    for rules in rule_sets:
        delay_seconds, rule = rules.match_fault(place, entry.action)
        await anyio.sleep(delay_seconds)
        if rule is not None:
            entry.fault = rule.describe(place)
            return rule
    return None
