"""Trouble without prompts: the rules of POST /control, in force until they are cleared."""

import random
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, model_validator

from app.sandbox.markers import parse_trouble
from app.sandbox.names import NAMES
from app.sandbox.plan import DETAIL_FORMS, Trouble
from app.sandbox.refusals import EMPTY_PURSE

_CHANCE = random.SystemRandom()


class Rule(BaseModel):
    """One rule of /control. `times` counts down, null means until cleared; `share` is a probability.

    `fail` is a status code; `marker` a clause of the prompt's grammar (`"poll reset"`), which says where
    itself; a rule with neither only delays. `action` narrows it to one action.
    """

    model_config = ConfigDict(extra="forbid")

    fail: int | None = Field(None, ge=400, le=599)
    marker: str | None = None
    balance: Literal["empty"] | None = None
    where: Literal["submit", "poll", "result", "upload", "all"] = "all"
    action: Literal[NAMES] | None = None  # type: ignore[valid-type]
    times: int | None = Field(None, ge=0)
    share: float = Field(1.0, ge=0, le=1)
    delay_seconds: float = Field(0.0, ge=0)
    retry_after: int | None = Field(None, ge=0)
    detail: Literal[DETAIL_FORMS] = "string"  # type: ignore[valid-type]
    text: str = ""
    _trouble: Trouble | None = PrivateAttr(None)

    @model_validator(mode="after")
    def _make_trouble(self) -> Self:
        if self.marker is not None:
            self._trouble = parse_trouble(self.marker)
            self.where = self._trouble.where  # type: ignore[assignment]
            self.times = self._trouble.times if self.times is None else self.times
        elif self.balance is not None:
            self.where = "submit"
            self._trouble = Trouble("submit", "fail", code=401, text=EMPTY_PURSE)
        elif self.fail is not None:
            self._trouble = Trouble(
                self.where,
                "fail",
                code=self.fail,
                retry_after_seconds=self.retry_after,
                detail=self.detail,
                text=self.text,
            )
        return self

    @property
    def trouble(self) -> Trouble | None:
        """What the rule does; None where it only delays."""
        return self._trouble


class Control:
    """The rules in force. A new set replaces the old one as a whole."""

    def __init__(self) -> None:
        self.rules: list[Rule] = []

    @property
    def is_purse_empty(self) -> bool:
        return any(rule.balance == "empty" and rule.times != 0 for rule in self.rules)

    def strike(self, where: str, action: str | None) -> tuple[float, Trouble | None]:
        """Seconds to wait and the trouble to make for one arrival at an action; counts the rules it used."""
        delay_seconds, trouble = 0.0, None
        for rule in self.rules:
            if rule.where not in {where, "all"} or rule.action not in {action, None}:
                continue
            if rule.times == 0 or trouble is not None:
                continue
            if rule.share < 1 and _CHANCE.random() >= rule.share:
                continue
            if rule.times is not None:
                rule.times -= 1
            delay_seconds += rule.delay_seconds
            trouble = rule.trouble
        return delay_seconds, trouble
