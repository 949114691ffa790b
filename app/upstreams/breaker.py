"""A circuit breaker for each provider. Its row in `circuit_breakers` is the truth; each process holds a copy.

A 401, 402 or 403 opens it: the provider refuses the key or the balance, which no waiting user can change. While it is
open nothing is sent. At the end of a pause one call of all processes is the probe. Its answer closes the breaker or
doubles the pause.

Calls are billable (jobs) or free (polls, uploads, the account). A refused free call keeps both kinds away. A refused
job leaves free calls alone, because an empty balance refuses only jobs; so a free call does not close it either.

A change is one UPDATE that names the version it follows. Of two processes that change the same state one is first;
the other reads the row and decides again. `breaker_monitor.py` reads the rows once a second. A call of a closed breaker
costs no query. While the database is away, a process decides by its copy.
"""

import asyncio
import math
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import structlog
from sqlalchemy import Row, bindparam, select, update

from app.database import Connection, Database, insert_ignore, retry_on_conflict, utc_now
from app.errors import Unavailable
from app.tables import circuit_breakers
from app.telemetry import metrics
from app.upstreams.breaker_state import BreakerState, RefusedUsers
from app.upstreams.protocol import ResultKind, UpstreamResult

log = structlog.get_logger()

JITTER_SECONDS = 1.0
BACK_OF_LINE_SECONDS = 3.0  # a refused task waits longer than others, its user's others half of that: not they probe
PROBE_WAIT_SECONDS = 1.0  # how long others wait while a probe is under way: its answer decides soon
PROBE_SECONDS = 70.0  # longer than a submit or a poll; then a lost probe is forgotten
OVERDUE_SECONDS = 5.0  # then a worker probes, because no task does
THROTTLE_SECONDS = 2.0
DATABASE_TIMEOUT_SECONDS = 2.0
MAX_REASON_LENGTH = 255
UNAVAILABLE_TEXT = "生成服务暂时不可用，请稍后重试"
NO_ANSWER = frozenset({ResultKind.NOT_SENT, ResultKind.UNKNOWN_OUTCOME, ResultKind.SERVER_ERROR})
ACCEPTED = frozenset({ResultKind.ACCEPTED, ResultKind.SUCCEEDED})
SHOWS_ACCESS = ACCEPTED | {ResultKind.ACCOUNT_ERROR}

Transition = Callable[[BreakerState, datetime], BreakerState]


@dataclass(slots=True)
class BreakerCall:
    """The permission for one call. Where `wait_seconds` is not 0, the call must not be made before."""

    is_free: bool
    wait_seconds: float
    probe: datetime | None = None
    """Set where this call is the probe: what `probe_until` says then."""
    user_id: int | None = None
    """Whose job it is, where it is one."""


class CircuitBreaker:
    """The breaker of one provider, as this process knows it."""

    def __init__(
        self,
        provider: str,
        database: Database,
        max_pause_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.provider, self.state = provider, BreakerState()
        self._database = database
        self._max_pause_seconds = max_pause_seconds
        self._clock = clock
        self._lock = asyncio.Lock()  # after the first change most of those that wait for it have nothing to change
        self._has_row = False
        self._read_at = (datetime.fromtimestamp(0, UTC), clock())  # the database's clock, and this process's then
        self._throttled_until = 0.0
        self._refused_users = RefusedUsers()
        metrics.BREAKER_OPEN.labels(provider).set(0)

    # ------------------------------------------------------------------ what the copy says

    @property
    def is_open(self) -> bool:
        return self.state.is_open

    @property
    def reason(self) -> str:
        return self.state.reason

    def now(self) -> datetime:
        """The database's clock, counted on from the newest read, in milliseconds as the row holds them."""
        database_time, clock_time = self._read_at
        return database_time + timedelta(milliseconds=math.floor((self._clock() - clock_time) * 1000))

    def open_seconds(self) -> float:
        """For how long it has been open; 0 where it is closed."""
        return (self.now() - self.state.opened_at).total_seconds() if self.state.opened_at else 0.0

    def seconds_until_probe(self) -> float:
        """Until the next probe may be made; below zero where that has been so for a while."""
        ends = [end for end in (self.state.open_until, self.state.probe_until) if end is not None]
        return (max(ends) - self.now()).total_seconds() if ends else 0.0

    def wait_seconds(self, *, is_free: bool = False, user_id: int | None = None) -> float:
        """0 where a call may be made, or may take the probe. A user whose newest job was refused takes it later."""
        throttled_seconds = self._throttled_until - self._clock()
        if is_free and throttled_seconds > 0:
            return throttled_seconds + _jitter()
        state, now = self.state, self.now()
        if not state.blocks(is_free=is_free):
            return 0.0
        if state.open_until is not None:
            back_of_line = BACK_OF_LINE_SECONDS / 2 if user_id in self._refused_users else 0.0
            seconds = (state.open_until - now).total_seconds() + back_of_line
            if seconds > 0:
                return seconds + _jitter()
        return 0.0 if state.probed(now, now, is_free=is_free) is not state else PROBE_WAIT_SECONDS + _jitter()

    # ------------------------------------------------------------------ calls

    @asynccontextmanager
    async def call(
        self,
        *,
        is_free: bool = False,
        waits: bool = True,
        probe_seconds: float = PROBE_SECONDS,
        user_id: int | None = None,
    ) -> AsyncIterator[BreakerCall]:
        """Around one call: asks for permission, and gives the probe back where no result was recorded.

        Without `waits` the call is made in any case. `probe_seconds` is how long a probe may take at most. `user_id`
        says whose job it is.
        """
        wait_seconds = self.wait_seconds(is_free=is_free, user_id=user_id) if waits else 0.0
        call = BreakerCall(is_free, wait_seconds, user_id=user_id)
        if waits and not call.wait_seconds and self.state.blocks(is_free=is_free):
            probe = self.now() + timedelta(seconds=probe_seconds)
            if await self.change(lambda state, now: state.probed(now, probe, is_free=is_free)):
                call.probe = probe
            elif self.state.blocks(is_free=is_free):
                call.wait_seconds = self.wait_seconds(is_free=is_free, user_id=user_id) or PROBE_WAIT_SECONDS
        try:
            yield call
        finally:
            await self._end_unanswered(call)

    async def record_result(
        self, call: BreakerCall, result: UpstreamResult, successes_when_refused: int | None = None
    ) -> UpstreamResult:
        """Learns from an answer; the returned result says what it means for the task.

        `successes_when_refused` is what `state.successes` was at the task's first refusal. A job that is refused again
        after two jobs of others were accepted is REJECTED, and opens nothing: the fault is the task's.
        """
        if call.user_id is not None and result.kind in SHOWS_ACCESS:
            self._refused_users.record(call.user_id, is_refused=result.kind is ResultKind.ACCOUNT_ERROR)
        if result.kind is ResultKind.ACCOUNT_ERROR:
            since = None if call.is_free else successes_when_refused
            await self.trip(call, result.detail, since)
            if self.state.accepts_others_since(since):
                return replace(result, kind=ResultKind.REJECTED, detail=f"only this task is refused: {result.detail}")
            delay = max(self.seconds_until_probe(), 0.0) + BACK_OF_LINE_SECONDS + _jitter()
            return replace(result, retry_after_seconds=delay)
        if result.kind in NO_ANSWER:
            await self._end_unanswered(call)
            return result
        if call.is_free and result.kind is ResultKind.RATE_LIMITED:
            seconds = min(result.retry_after_seconds or THROTTLE_SECONDS, self._max_pause_seconds)
            self._throttled_until = self._clock() + seconds
        accepted = not call.is_free and result.kind in ACCEPTED
        await self.change(lambda state, now: state.closed(now, is_free=call.is_free, is_accepted=accepted))
        return result

    async def trip(self, call: BreakerCall, reason: str, successes_when_refused: int | None = None) -> None:
        """The provider refused a call. Where the row says that jobs of others are accepted, nothing changes."""
        reason = reason[:MAX_REASON_LENGTH]

        def opened(state: BreakerState, now: datetime) -> BreakerState:
            if state.accepts_others_since(successes_when_refused):
                return state
            return state.opened(now, call.probe, reason, self._max_pause_seconds, is_free=call.is_free)

        if await self.change(opened):
            log.error("circuit_open", provider=self.provider, reason=reason, pause_seconds=self.state.pause_seconds)

    async def _end_unanswered(self, call: BreakerCall) -> None:
        if call.probe is not None:
            await self.change(lambda state, now: state.unanswered(now, call.probe))

    # ------------------------------------------------------------------ new submits

    def reject_when_open(self, deadline_seconds: float) -> None:
        """Raises Unavailable once it has been open for as long as a new task may wait; it may well last as long again.

        Only a job can show that this is over. So where no task waits, one new submit is admitted.
        """
        if self.open_seconds() >= deadline_seconds and not self.state.admits_trial:
            self._reject()

    async def admit_trial(self, connection: Connection, deadline_seconds: float) -> None:
        """`reject_when_open` in the transaction that stores the task. The row admits one trial of all processes.

        The copy does not change, because the transaction may be rolled back or repeated.
        """
        self.reject_when_open(deadline_seconds)  # once more: the trial may have been taken meanwhile
        if self.state.admits_trial:
            admitted = await connection.execute(_ADMIT, {"of": self.provider})
            if not admitted.rowcount and self.open_seconds() >= deadline_seconds:
                self._reject()

    def _reject(self) -> None:
        metrics.SUBMITS_REFUSED.labels(self.provider).inc()
        seconds = max(self.seconds_until_probe(), 0.0) + OVERDUE_SECONDS
        raise Unavailable(UNAVAILABLE_TEXT, retry_after_seconds=math.ceil(seconds))

    # ------------------------------------------------------------------ the row

    async def change(self, transition: Transition) -> bool:
        """Applies a transition to the row, then to the copy; whether it changed anything.

        Where the database does not answer in time, the copy alone changes, until the row can be read.
        """
        if transition(self.state, self.now()) is self.state:
            return False
        try:
            async with asyncio.timeout(DATABASE_TIMEOUT_SECONDS), self._lock:
                while (following := transition(self.state, self.now())) is not self.state:
                    if self._has_row and await self._write(following):
                        return self._replace_copy(replace(following, version=following.version + 1))
                    await self._read()
                return False
        except Exception as error:
            log.warning("circuit_not_saved", provider=self.provider, error=repr(error)[:300])
            return self._replace_copy(transition(self.state, self.now()))

    @retry_on_conflict
    async def _write(self, following: BreakerState) -> bool:
        """Writes the row if its version is still the one that `following` follows."""
        values = asdict(following) | {"version": following.version + 1, "updated_at": utc_now()}
        statement = update(circuit_breakers).where(_of, circuit_breakers.c.version == bindparam("known"))
        async with self._database.begin() as connection:
            written = await connection.execute(
                statement.values(**values), {"of": self.provider, "known": following.version}
            )
        return bool(written.rowcount)

    @retry_on_conflict
    async def _read(self) -> None:
        """Reads the row; makes one where there is none."""
        first = asdict(BreakerState()) | {"provider": self.provider, "updated_at": utc_now()}
        async with self._database.begin() as connection:
            insert = insert_ignore(connection.dialect.name, circuit_breakers, "provider").values(**first)
            await connection.execute(insert)
            row = (await connection.execute(ROWS.where(_of), {"of": self.provider})).one()
        self.load(row)

    def load(self, row: Row[*tuple[Any, ...]] | None) -> None:
        """A row of ROWS, just read, takes the place of the copy. Without a row the breaker is closed."""
        was_open, self._has_row = self.is_open, row is not None
        if row is not None:
            self._read_at = (row.now, self._clock())
        self.state = BreakerState() if row is None else BreakerState(**{name: row._mapping[name] for name in _NAMES})
        metrics.BREAKER_OPEN.labels(self.provider).set(self.is_open)
        if self.is_open is not was_open:
            log.info("circuit_learnt", provider=self.provider, is_open=self.is_open, reason=self.reason)

    def _replace_copy(self, state: BreakerState) -> bool:
        before, self.state = self.state, state
        metrics.BREAKER_OPEN.labels(self.provider).set(self.is_open)
        if before.is_open and not self.is_open:
            log.warning("circuit_closed", provider=self.provider)
        return state is not before


def _jitter() -> float:
    return random.uniform(0, JITTER_SECONDS)  # noqa: S311


ROWS = select(*circuit_breakers.c, utc_now().label("now"))
_NAMES = [one.name for one in fields(BreakerState)]
_of = circuit_breakers.c.provider == bindparam("of")
_ADMIT = (
    update(circuit_breakers)
    .where(_of, circuit_breakers.c.opened_at.is_not(None), circuit_breakers.c.open_until.is_(None))
    .values(open_until=utc_now(), version=circuit_breakers.c.version + 1, updated_at=utc_now())
)
