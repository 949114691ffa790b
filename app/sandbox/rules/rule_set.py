"""Rules in their order, and how often each was used: those of `/control`, of a prompt, or of one job."""

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

from app.sandbox.rules.rule import FaultRule, JobRule, Rule

_RANDOM = random.SystemRandom()


class RuleSet:
    """The first rule that applies decides. `uses` may be shared: it counts by the place of a rule among its like."""

    def __init__(self, rules: list[Rule] | None = None, uses: Counter[int] | None = None) -> None:
        self.rules = rules or []
        self._uses: Counter[int] = Counter() if uses is None else uses

    @property
    def is_balance_empty(self) -> bool:
        return any(
            isinstance(rule, FaultRule) and rule.balance is not None and self._is_left(index, rule)
            for index, rule in enumerate(self.rules)
        )

    def as_json(self) -> list[dict[str, Any]]:
        """The keys of each rule as they were given; `times` is how often it still applies."""
        return [
            rule.model_dump(exclude_unset=True)
            | ({} if rule.times is None else {"times": max(0, rule.times - self._uses[index])})
            for index, rule in enumerate(self.rules)
        ]

    def match_fault(self, place: str, action: str | None) -> tuple[float, FaultRule | None]:
        """Seconds to wait and the fault to make, for one request to an action; counts the rules it used."""
        delay_seconds = 0.0
        for index, rule in enumerate(self.rules):
            if isinstance(rule, FaultRule) and place in rule.places and self._use(index, rule, action):
                delay_seconds += rule.delay_seconds
                if rule.kind:
                    return delay_seconds, rule
        return delay_seconds, None

    def match_scenario(self, action: str, is_usable: Callable[[JobRule], bool] = lambda _: True) -> dict[str, Any]:
        """The keys that shape a new job, each as the first rule has it; counts the rules it used."""
        keys: dict[str, Any] = {}
        for index, rule in enumerate(self.rules):
            if isinstance(rule, JobRule) and is_usable(rule) and self._use(index, rule, action):
                keys = rule.scenario | keys
        return keys

    def for_job(self) -> "RuleSet":
        """The same rules for one job: what its submit has used up stays used up."""
        return RuleSet(self.rules, Counter(self._uses))

    def _use(self, index: int, rule: Rule, action: str | None) -> bool:
        """Whether the rule applies now; counts it where it does."""
        if rule.action not in {None, action} or not self._is_left(index, rule):
            return False
        if rule.probability < 1 and _RANDOM.random() >= rule.probability:
            return False
        self._uses[index] += 1
        return True

    def _is_left(self, index: int, rule: Rule) -> bool:
        return rule.times is None or self._uses[index] < rule.times
