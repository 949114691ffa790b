"""The states of a circuit breaker, as one row of `circuit_breakers` holds them, and what leads from one to the next.

Pure: no clock, no database. A method returns the state that follows, or the same object where nothing changes.
"""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

FIRST_PAUSE_SECONDS = 2.0
MAX_REFUSED_USERS = 10_000
SUCCESSES_OF_OTHERS = 2  # so many accepted jobs show that a refusal is the fault of the refused task


@dataclass(frozen=True, slots=True)
class BreakerState:
    """One row. Without a row the breaker is closed."""

    version: int = 0
    billable_open: bool = False
    free_open: bool = False
    reason: str = ""
    pause_seconds: float = 0.0
    opened_at: datetime | None = None
    open_until: datetime | None = None
    """The end of the pause. None while it is open: no task waits, so one new submit is admitted as a trial."""
    probe_until: datetime | None = None
    """A probe is under way until then. The time also identifies the probe."""
    successes: int = 0
    """Accepted jobs, of which only the first two after each opening are counted."""
    successes_at_open: int = 0

    @property
    def is_open(self) -> bool:
        return self.billable_open or self.free_open

    @property
    def admits_trial(self) -> bool:
        return self.is_open and self.open_until is None

    def blocks(self, *, is_free: bool) -> bool:
        return self.free_open or (self.billable_open and not is_free)

    def accepts_others_since(self, successes: int | None) -> bool:
        """Closed, and two more jobs were accepted than at that count."""
        return not self.is_open and successes is not None and self.successes >= successes + SUCCESSES_OF_OTHERS

    def opened(
        self, now: datetime, probe: datetime | None, reason: str, max_pause_seconds: float, *, is_free: bool
    ) -> "BreakerState":
        """A call of this kind was refused. A probe doubles the pause; a call that was sent before does not."""
        is_probe = probe is not None and probe == self.probe_until
        if not is_probe and (self.free_open if is_free else self.billable_open):
            return self
        pause = min(max((2 if is_probe else 1) * self.pause_seconds, FIRST_PAUSE_SECONDS), max_pause_seconds)
        return replace(
            self,
            billable_open=self.billable_open or not is_free,
            free_open=self.free_open or is_free,
            reason=reason,
            pause_seconds=pause,
            opened_at=self.opened_at or now,
            open_until=now + timedelta(seconds=pause),
            probe_until=None,
            successes_at_open=self.successes_at_open if self.is_open else self.successes,
        )

    def closed(self, now: datetime, *, is_free: bool, is_accepted: bool = False) -> "BreakerState":
        """A call of this kind had a good answer. That to a free call closes only what free calls opened."""
        if is_free and self.billable_open:
            return self.half_open(now) if self.free_open else self
        is_counted = is_accepted and self.successes < self.successes_at_open + SUCCESSES_OF_OTHERS
        if not self.is_open and not is_counted:
            return self
        successes = self.successes + is_counted
        return BreakerState(self.version, successes=successes, successes_at_open=self.successes_at_open)

    def half_open(self, now: datetime, *, admits_trial: bool = False) -> "BreakerState":
        """The key is accepted. Whether jobs are, one job must try at once: that of a waiting task, or a trial."""
        if not self.billable_open:
            return self.closed(now, is_free=True)
        return replace(self, free_open=False, open_until=None if admits_trial else now, probe_until=None)

    def pause_ended(self, now: datetime) -> "BreakerState":
        """A call may take the probe at once, however long the pause still was."""
        if self.open_until is None or self.open_until <= now:
            return self
        return replace(self, open_until=now)

    def probed(self, now: datetime, probe: datetime, *, is_free: bool) -> "BreakerState":
        """A call takes the probe, where the pause is over and no other call has it."""
        is_paused = any(end is not None and now < end for end in (self.open_until, self.probe_until))
        if is_paused or not self.blocks(is_free=is_free):
            return self
        return replace(self, open_until=now, probe_until=probe)

    def unanswered(self, now: datetime, probe: datetime | None) -> "BreakerState":
        """The probe ended without a result: the same pause once more."""
        if probe is None or probe != self.probe_until:
            return self
        return replace(self, open_until=now + timedelta(seconds=self.pause_seconds), probe_until=None)


class RefusedUsers:
    """The users whose newest job was refused, 10,000 at most."""

    def __init__(self) -> None:
        self._ids: dict[int, None] = {}  # the oldest entry first

    def __contains__(self, user_id: int | None) -> bool:
        return user_id in self._ids

    def record(self, user_id: int, *, is_refused: bool) -> None:
        if not is_refused:
            self._ids.pop(user_id, None)
            return
        self._ids[user_id] = None
        if len(self._ids) > MAX_REFUSED_USERS:
            del self._ids[next(iter(self._ids))]
