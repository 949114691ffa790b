"""The two kinds of rules: one makes a fault or a delay, the other shapes a job. Each says when it applies."""

from typing import Any, Literal, Self

from pydantic import BaseModel, Field, model_validator
from pydantic_core import PydanticCustomError

from app.sandbox.action_names import ACTION_NAMES
from app.sandbox.error_responses import DETAIL_FORMS, INSUFFICIENT_BALANCE
from app.sandbox.rules.scenario import STRICT, Scenario, Seconds

PLACES = frozenset({"submit", "poll", "result", "upload"})
FAULT_PLACES: dict[str, frozenset[str]] = {
    **dict.fromkeys(("hang", "reset", "html", "redirect", "drip", "huge", "gzip-bomb"), PLACES),
    **dict.fromkeys(("malformed", "wrapped"), frozenset({"submit", "poll", "upload"})),
    **dict.fromkeys(("no-task-id", "reuse-task-id"), frozenset({"submit"})),
    "wrong-task-id": frozenset({"poll"}),
    **dict.fromkeys(("not-an-image", "svg", "webp", "content-type", "empty"), frozenset({"result"})),
    **dict.fromkeys(("truncated", "lies-about-length", "pixel-bomb"), frozenset({"result"})),
}
"""Each fault and the places that know it."""
FAULTS = tuple(FAULT_PLACES)
ARGUMENTS = {
    **dict.fromkeys(("retry_after", "detail", "text"), "fail"),
    "seconds": "hang",
    "url": "redirect",
    "media_type": "content-type",
    "claimed_bytes": "lies-about-length",
}
"""Each key that says more about a fault, and the fault that it belongs to."""
REQUIRED_ARGUMENTS = {"redirect": "url", "content-type": "media_type"}
MAX_TIMES = 10**9
MAX_CLAIMED_BYTES = 10**15
UNAUTHORIZED = 401


class Rule(BaseModel):
    """When a rule applies. `times` is how often, without it always; `probability` is drawn each time."""

    model_config = STRICT

    action: Literal[ACTION_NAMES] | None = None  # type: ignore[valid-type]
    times: int | None = Field(None, ge=0, le=MAX_TIMES)
    probability: float = Field(1.0, ge=0, le=1)


class FaultRule(Rule):
    """A fault at one place, or at each place that knows the fault. Without a fault it only delays."""

    where: Literal["submit", "poll", "result", "upload", "all"] = "all"
    delay_seconds: Seconds = 0.0
    fail: int | None = Field(None, ge=400, le=599)
    retry_after: int | None = Field(None, ge=0, le=10**9)
    detail: Literal[DETAIL_FORMS] = "string"  # type: ignore[valid-type]
    text: str = ""
    balance: Literal["empty"] | None = None
    fault: Literal[FAULTS] | None = None  # type: ignore[valid-type]
    seconds: Seconds | None = None
    url: str = ""
    media_type: str = Field("", pattern=r"^[!-~][ -~]*$")
    claimed_bytes: int | None = Field(None, ge=0, le=MAX_CLAIMED_BYTES)

    @model_validator(mode="after")
    def _check(self) -> Self:
        given = [key for key in ("fail", "balance", "fault") if getattr(self, key) is not None]
        if len(given) > 1:
            raise _rule_error(f"{' and '.join(given)} need a rule each")
        if not given and "delay_seconds" not in self.model_fields_set:
            raise _rule_error("a rule needs fail, fault, balance, delay_seconds, or a key that shapes the job")
        if not self.places:
            raise _rule_error(f"{self.fault or 'balance'} is not known at {self.where}")
        for key in sorted(self.model_fields_set & ARGUMENTS.keys()):
            if self.kind != ARGUMENTS[key] or self.balance is not None:
                raise _rule_error(f"{key} belongs to {ARGUMENTS[key]}")
        required = REQUIRED_ARGUMENTS.get(self.kind)
        if required and not getattr(self, required):
            raise _rule_error(f"{self.kind} needs {required}")
        return self

    @property
    def kind(self) -> str:
        """`fail`, or the name of the fault; empty where the rule only delays."""
        return "fail" if self.status_code else self.fault or ""

    @property
    def status_code(self) -> int:
        """The status of the error response; 0 where the rule makes none."""
        return UNAUTHORIZED if self.balance else self.fail or 0

    @property
    def message(self) -> str:
        return INSUFFICIENT_BALANCE if self.balance else self.text

    @property
    def places(self) -> frozenset[str]:
        """Where the rule applies; empty where `where` names a place that does not know the fault."""
        known = frozenset({"submit"}) if self.balance else FAULT_PLACES.get(self.fault or "", PLACES)
        return known if self.where == "all" else known & {self.where}

    def describe(self, place: str) -> str:
        """As the request log shows it, e.g. `submit fail 503`."""
        return f"{place} {self.kind}" + (f" {self.status_code}" if self.status_code else "")


class JobRule(Rule, Scenario):
    """Shapes the jobs that are submitted while it applies."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.approved and self.approval_seconds is None:
            raise _rule_error("approved belongs to approval_seconds")
        if self.text and self.end is None:
            raise _rule_error("text belongs to end")
        return self

    @property
    def scenario(self) -> dict[str, Any]:
        """The keys given, as Scenario takes them."""
        return self.model_dump(include=self.model_fields_set & set(Scenario.model_fields))


JOB_KEYS = frozenset(Scenario.model_fields) - frozenset(FaultRule.model_fields)
"""One of these makes a rule a JobRule."""


def _rule_error(message: str) -> PydanticCustomError:
    return PydanticCustomError("sandbox_rule", message)
