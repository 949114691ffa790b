"""A circuit breaker for the provider: opened by 401, 402 and 403, which no waiting user can mend; slowed by 429.

While it is open nothing is asked; when a pause is over one visit goes first, and its answer closes the circuit or
doubles the pause. It lives in one process: every worker finds out for itself with a single refused call.
"""

import random
import time
from collections.abc import Callable

import structlog

from app import metrics

log = structlog.get_logger()

FIRST_PAUSE_SECONDS = 2.0
BUSY_SECONDS = 2.0
JITTER_SECONDS = 1.0
PROBE_LOOK_SECONDS = 1.0  # how long the others stay away while one is asking
PROBE_SECONDS = 70.0  # longer than the longest call, after which a lost probe is forgotten


class Circuit:
    """Closed until `refused`; then `pause_seconds` says how long a visit should stay away (0: go)."""

    def __init__(self, max_pause_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_pause = max_pause_seconds
        self._clock = clock
        self._pause = 0.0
        self._closed_at = 0.0  # when the current pause ends
        self._probe_until = 0.0  # past, or when the visit that was let through is given up
        self._polls_from = 0.0  # a 429 keeps this provider's polls away until then
        self.reason = ""

    @property
    def is_open(self) -> bool:
        return self._pause > 0

    def pause_seconds(self) -> float:
        """0 where the caller may ask SEE2AI now; while open, only one caller a pause is let through."""
        if not self.is_open:
            return 0.0
        now = self._clock()
        if now < self._closed_at:
            return self._closed_at - now + random.uniform(0, JITTER_SECONDS)  # noqa: S311
        if now < self._probe_until:
            # Its answer comes in a moment and decides: nobody should sleep as long as a lost probe is waited for.
            return PROBE_LOOK_SECONDS + random.uniform(0, JITTER_SECONDS)  # noqa: S311
        self._probe_until = now + PROBE_SECONDS
        return 0.0

    def poll_pause_seconds(self) -> float:
        """As `pause_seconds`, and while the provider finds our polls too many: 0 where one may go."""
        hold = self._polls_from - self._clock()
        return hold + random.uniform(0, JITTER_SECONDS) if hold > 0 else self.pause_seconds()  # noqa: S311

    def slow_polls(self, seconds: float | None) -> None:
        """A poll was answered 429: all polls of this provider wait, as long as it said or a moment."""
        self._polls_from = self._clock() + min(seconds or BUSY_SECONDS, self._max_pause)

    def refused(self, reason: str) -> float:
        """Opens, or keeps open for twice as long; the pause in seconds."""
        now = self._clock()
        if not self.is_open or now < self._probe_until:
            self._pause = min(max(self._pause * 2, FIRST_PAUSE_SECONDS), self._max_pause)
            self._closed_at, self._probe_until = now + self._pause, 0.0
            log.error("see2ai_circuit_open", reason=reason, pause_seconds=self._pause)
        self.reason = reason
        metrics.CIRCUIT_OPEN.set(1)
        return max(self._closed_at - now, 0.0) + random.uniform(0, JITTER_SECONDS)  # noqa: S311

    def unheard(self) -> None:
        """A probe that told nothing (no connection, an error of SEE2AI's own): the same pause once more."""
        if self.is_open and self._clock() < self._probe_until:
            self._closed_at, self._probe_until = self._clock() + self._pause, 0.0

    def answered(self) -> None:
        """SEE2AI took our key: closes."""
        if self.is_open:
            log.warning("see2ai_circuit_closed")
            metrics.CIRCUIT_OPEN.set(0)
        self._pause = self._probe_until = 0.0
        self.reason = ""
