"""How a job runs and ends where a rule shapes it. Data only."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

NEVER = "never"
FAILURE_STATES = (
    *("failed", "failure", "error", "cancelled", "canceled"),
    *("rejected", "expired", "timeout", "needs_repair"),
)
SUCCESS_STATES = ("success", "succeeded", "completed", "complete", "done", "finished")
IMAGE_FIELDS = ("image_url", "final_url", "provider_final_url")
"""Where a UniWorld answer may carry its image."""
MAX_SECONDS = 10**9
MAX_RESULTS = 20
MAX_PROGRESS = 999
MAX_SIZE_BYTES = 10**12
STRICT = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def _check_end(state: str) -> str:
    known = (*FAILURE_STATES, *SUCCESS_STATES, NEVER)
    if state.lower() not in known:
        raise PydanticCustomError("sandbox_rule", f"Should be one of {', '.join(known)}")
    return state


Seconds = Annotated[float, Field(ge=0, le=MAX_SECONDS)]
EndState = Annotated[str, AfterValidator(_check_end)]
Progress = Annotated[int, Field(ge=0, le=MAX_PROGRESS)]


class Scenario(BaseModel):
    """How one job runs and ends. The defaults are what the action does without any rule."""

    model_config = STRICT

    take_seconds: Seconds | None = None
    approval_seconds: Seconds | None = None
    approved: bool = False
    end: EndState | None = None
    text: str = ""
    state: str = Field("", min_length=1)
    state_field: Literal["state", "status", "both"] | None = None
    progress: Annotated[list[Progress], Field(min_length=1)] = []
    image_field: Literal[IMAGE_FIELDS] | None = None  # type: ignore[valid-type]
    polls_without_url: Annotated[int, Field(ge=0)] | Literal["always"] = 0
    result_count: int = Field(1, ge=0, le=MAX_RESULTS)
    result_url: str = Field("", min_length=1)
    result_lifetime_seconds: Seconds | None = None
    size_bytes: int | None = Field(None, ge=0, le=MAX_SIZE_BYTES)

    @property
    def never_ends(self) -> bool:
        return self.end_state == NEVER

    @property
    def end_state(self) -> str:
        """The state at the end in lower case; empty where the action's own is meant."""
        return (self.end or "").lower()

    @property
    def expires_unapproved(self) -> bool:
        return self.approval_seconds is not None and not self.approved

    @property
    def succeeds(self) -> bool:
        return self.end_state not in FAILURE_STATES and not self.expires_unapproved
