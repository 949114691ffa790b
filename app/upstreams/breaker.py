"""A circuit breaker for one provider: opened by 401, 402 and 403, which no waiting user can mend; slowed by 429.

While it is open nothing is asked; when a pause is over one visit goes first, and its answer closes the circuit or
doubles the pause. Calls are of two kinds: jobs cost money, looks (polls, uploads) are free. A refused look keeps both
away; a refused job keeps jobs away and leaves looks alone, because an empty purse refuses only jobs: jobs that run are
looked after, and their answers do not close what only a job can. A good look that was taken for the circuit's own sake
lets a job try at once, and where no task waits that could, it invites one; the circuit counts as open until that job's
answer.

It knows no database: `record` is what other processes should know, `load_state` takes what another of them found out
(`app/engine/breaker_sync.py` carries both). Where nobody carries anything, each process finds out for itself.
"""

import asyncio
import math
import random
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import structlog

from app.telemetry import metrics
from app.upstreams.protocol import ResultKind, UpstreamResult

log = structlog.get_logger()

FIRST_PAUSE_SECONDS = 2.0
THROTTLE_SECONDS = 2.0
JITTER_SECONDS = 1.0
PROBE_WAIT_SECONDS = 1.0  # how long the others stay away while one is asking
PROBE_SECONDS = 70.0  # longer than a submit or a poll, after which a lost probe is forgotten


@dataclass(frozen=True, slots=True)
class BreakerState:
    """A circuit as processes tell it each other; seconds count from now. `version` names the state it follows."""

    version: int = 0
    billable_open: bool = False
    free_open: bool = False
    reason: str = ""
    pause_seconds: float = 0.0
    open_seconds: float = 0.0  # since it opened
    seconds_until_probe: float = 0.0  # until one may ask; below zero: due for so long; -inf: one is invited
    probe_seconds: float = 0.0  # until the one that asks is given up; not above zero: nobody asks


class CircuitBreaker:
    """Closed until `refused`; then `pause_seconds` says how long a visit should stay away (0: go)."""

    def __init__(
        self,
        max_pause_seconds: float,
        clock: Callable[[], float] = time.monotonic,
        *,
        provider: str = "see2ai",
        on_news: Callable[[], None] = lambda: None,
    ) -> None:
        self.provider = provider
        self.reason = ""
        self.version = 0  # of the state that was last shared
        self.revision = 0  # how often the state was changed here
        self.lock = asyncio.Lock()  # held while it is shared
        self._told_edits = 0
        self._max_pause = max_pause_seconds
        self._clock = clock
        self._on_news = on_news
        self._billable_open = self._free_open = False
        self._pause = 0.0
        self._opened_at = 0.0
        self._open_until = 0.0  # when the current pause ends; -inf: a job is invited
        self._probe_until = 0.0  # past, or when the visit that was let through is given up
        self._own_probe: bool | None = None  # where that visit is ours: whether it is a look
        self._polls_from = 0.0  # a 429 keeps this process' polls of the provider away until then
        metrics.BREAKER_OPEN.labels(provider).set(0)

    @property
    def is_open(self) -> bool:
        return self._billable_open or self._free_open

    @property
    def is_dirty(self) -> bool:
        """Whether something was found out here that the others have not been told."""
        return self.revision != self._told_edits

    @property
    def admits_trial(self) -> bool:
        """Whether nothing but a job can tell more, and there is none: the next one should be let in, alone."""
        return self.is_open and self._open_until == -math.inf

    def open_seconds(self) -> float:
        """For how long it has been open; 0 where it is closed."""
        return self._clock() - self._opened_at if self.is_open else 0.0

    def seconds_until_probe(self) -> float:
        """Until one may ask again; below zero where that has been due for so long and nobody does."""
        return max(self._open_until, self._probe_until) - self._clock()

    def is_probe(self, *, is_free: bool = False) -> bool:
        """Whether the one that is let through is a call of this kind, by this process."""
        return self.is_open and self._own_probe is is_free and self._clock() < self._probe_until

    # ------------------------------------------------------------------ before a call

    def wait_seconds(self, *, is_free: bool = False, probe_seconds: float | None = None) -> float:
        """0 where the caller may ask the provider now; while open, only one caller a pause is let through.

        `probe_seconds` is how long its answer may take before it is given up, where that is longer than usual.
        """
        if not self.is_open or (is_free and not self._free_open):
            return 0.0
        now = self._clock()
        if now < self._open_until:
            return self._open_until - now + random.uniform(0, JITTER_SECONDS)  # noqa: S311
        if now < self._probe_until:
            # Its answer comes in a moment and decides: nobody should sleep as long as a lost probe is waited for.
            return PROBE_WAIT_SECONDS + random.uniform(0, JITTER_SECONDS)  # noqa: S311
        self.start_probe(is_free=is_free, probe_seconds=probe_seconds)
        return 0.0

    def start_probe(self, *, is_free: bool = False, probe_seconds: float | None = None) -> None:
        """The caller is the one that asks, however long the pause still was."""
        self._open_until = now = self._clock()
        self._probe_until, self._own_probe = now + (probe_seconds or PROBE_SECONDS), is_free
        self._note()

    def admit_trial(self) -> None:
        """The job that was invited has come: it is the one that asks as soon as it is visited."""
        if self.admits_trial:
            self._open_until = self._clock()
            self._note()

    @contextmanager
    def call(self, *, is_free: bool = False) -> Iterator[None]:
        """Around a call that was given leave: where it comes to no answer, the others need not wait for one."""
        try:
            yield
        finally:
            self.record_no_answer(is_free=is_free)  # which changes nothing once an answer was heeded

    def poll_pause_seconds(self) -> float:
        """As `pause_seconds` of a look, and while the provider finds our polls too many: 0 where one may go."""
        hold = self._polls_from - self._clock()
        if hold > 0:
            return hold + random.uniform(0, JITTER_SECONDS)  # noqa: S311
        return self.wait_seconds(is_free=True)

    # ------------------------------------------------------------------ after a call

    def throttle_polls(self, seconds: float | None) -> None:
        """A poll was answered 429: all polls of this provider wait, as long as it said or a moment."""
        self._polls_from = self._clock() + min(seconds or THROTTLE_SECONDS, self._max_pause)

    def record_result(self, result: UpstreamResult, *, is_free: bool = False) -> UpstreamResult:
        """Opens on 401, 402 and 403, whose pause becomes the task's; a real answer closes."""
        if result.kind is ResultKind.ACCOUNT_ERROR:
            pause = self.trip(result.detail, is_free=is_free)
            return UpstreamResult(result.kind, result.detail, retry_after_seconds=pause)
        if result.kind in {ResultKind.NOT_SENT, ResultKind.UNKNOWN_OUTCOME, ResultKind.SERVER_ERROR}:
            self.record_no_answer(is_free=is_free)
        else:
            self.reset(is_free=is_free)
        return result

    def trip(self, reason: str, *, is_free: bool = False) -> float:
        """Opens, or keeps open for twice as long; the pause in seconds."""
        now, was_open, was_probe = self._clock(), self.is_open, self.is_probe(is_free=is_free)
        known = (self._billable_open, self._free_open)
        self._billable_open |= not is_free
        self._free_open |= is_free
        self.reason = reason
        if not was_open:
            self._opened_at = now
        if was_probe or not was_open:
            self._pause = min(max(self._pause * 2, FIRST_PAUSE_SECONDS), self._max_pause)
            self._rest()
            log.error("circuit_open", provider=self.provider, reason=reason, pause_seconds=self._pause)
            metrics.BREAKER_OPEN.labels(self.provider).set(1)
        elif known != (self._billable_open, self._free_open):
            self._note()
        return max(self._open_until - now, 0.0) + random.uniform(0, JITTER_SECONDS)  # noqa: S311

    def record_no_answer(self, *, is_free: bool = False) -> None:
        """A probe that told nothing (no connection, an error of the provider's own): the same pause once more."""
        if self.is_probe(is_free=is_free):
            self._rest()

    def reset(self, *, is_free: bool = False) -> None:
        """The provider took our key: closes, but a look only what looks have opened."""
        if not self.is_open or (is_free and not self._free_open):
            return
        self._free_open = False
        if is_free and self._billable_open:
            self._let_try(self._clock())
            return
        self._billable_open = False
        self._pause = self._probe_until = 0.0
        self.reason, self._own_probe = "", None
        self._note()
        log.warning("circuit_closed", provider=self.provider)
        metrics.BREAKER_OPEN.labels(self.provider).set(0)

    def half_open(self, *, invites: bool) -> None:
        """The provider takes our key, as a free call can tell: one job may try, of those there are or invited."""
        self.reset(is_free=True)
        if self._billable_open:
            self._let_try(-math.inf if invites else self._clock())

    def _rest(self) -> None:
        self._let_try(self._clock() + self._pause)

    def _let_try(self, moment: float) -> None:
        self._open_until, self._probe_until, self._own_probe = moment, 0.0, None
        self._note()

    # ------------------------------------------------------------------ between processes

    def _note(self) -> None:
        self.revision += 1
        self._on_news()

    def state(self) -> BreakerState:
        """What the others should know, as of now."""
        if not self.is_open:
            return BreakerState(self.version)
        now = self._clock()
        return BreakerState(
            self.version,
            self._billable_open,
            self._free_open,
            self.reason,
            self._pause,
            now - self._opened_at,
            self._open_until - now,
            max(self._probe_until - now, 0.0),
        )

    def mark_synced(self, record: BreakerState, edits: int) -> None:
        """The others can read `record`, which was the state after so many `edits`."""
        self.version = record.version + 1
        self._told_edits = edits

    def load_state(self, record: BreakerState) -> None:
        """Another process was first: its state takes the place of ours. A visit of ours that asks is forgotten."""
        was_open, now = self.is_open, self._clock()
        self.version, self._told_edits = record.version, self.revision
        self._billable_open, self._free_open = record.billable_open, record.free_open
        self.reason, self._pause = record.reason, record.pause_seconds
        self._opened_at, self._open_until = now - record.open_seconds, now + record.seconds_until_probe
        self._probe_until, self._own_probe = now + record.probe_seconds, None
        if self.is_open is not was_open:
            log.info("circuit_learnt", provider=self.provider, is_open=self.is_open, reason=self.reason)
        metrics.BREAKER_OPEN.labels(self.provider).set(self.is_open)


class CircuitBreakers(dict[str, CircuitBreaker]):
    """One circuit a provider, made when it is first asked for."""

    def __init__(self, max_pause_seconds: float, providers: Iterable[str] = ()) -> None:
        super().__init__()
        self._max_pause = max_pause_seconds
        self.news = asyncio.Event()
        self.read_at = float("-inf")  # when this process last asked what the others know
        for provider in providers:
            self.__missing__(provider)

    def __missing__(self, provider: str) -> CircuitBreaker:
        self[provider] = made = CircuitBreaker(self._max_pause, provider=provider, on_news=self.news.set)
        return made
