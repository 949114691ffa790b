"""What one submit is to go through: the troubles on its way and how its job goes. Data only; markers.py reads it."""

from dataclasses import dataclass

DETAIL_FORMS = ("string", "list", "error.message", "message", "error_message", "not-json", "html", "needs-repair")
FAILURE_WORDS = (
    *("failed", "failure", "error", "cancelled", "canceled"),
    *("rejected", "expired", "timeout", "needs_repair"),
)
SUCCESS_WORDS = ("success", "succeeded", "completed", "complete", "done", "finished")
PLACES = ("image_url", "final_url", "provider_final_url")
"""Where a UniWorld answer may carry its picture."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """One way to misbehave at one place. `times` None means always."""

    where: str
    kind: str
    times: int | None = None
    code: int = 0
    seconds: float | None = None
    claimed_bytes: int | None = None
    retry_after_seconds: int | None = None
    detail: str = "string"
    text: str = ""

    @property
    def name(self) -> str:
        """As the journal shows it, e.g. `submit fail 503`."""
        return f"{self.where} {self.kind}" + (f" {self.code}" if self.code else "")


@dataclass(frozen=True, slots=True)
class Plan:
    """What the markers of one submit ask for; without markers it is the defaults. Empty: as the action usually does."""

    troubles: tuple[Trouble, ...] = ()
    take_seconds: float | None = None
    never_finishes: bool = False
    approval_seconds: float | None = None
    is_granted: bool = False
    end_word: str = ""
    end_reason: str = ""
    running_word: str = ""
    progress: tuple[int, ...] = ()
    field: str = ""
    place: str = ""
    looks_without_url: int | None = 0
    images: int = 1
    size_bytes: int | None = None
    expires_seconds: float | None = None
    foreign_url: str = ""

    @property
    def expires_unapproved(self) -> bool:
        return self.approval_seconds is not None and not self.is_granted

    @property
    def succeeds(self) -> bool:
        return self.end_word.lower() not in FAILURE_WORDS and not self.expires_unapproved
