"""Claims due tasks in batches, runs their visits side by side, keeps their leases, gives them back in batches.

It lives beside ARQ in the worker process and needs no Redis: the bell only makes it look sooner.
"""

import asyncio
import contextlib
import random
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice

import structlog

from app import metrics
from app.endings import end
from app.errors import Unavailable
from app.runtime import Runtime
from app.see2ai.actions import Action
from app.tasks.advance import Stale, run_steps, count_stale
from app.tasks.claim import ClaimUnknown, Return, TaskFilter, Visit, claim_due, find_work, release, renew_leases
from app.tasks.decide import Fail as FailMove
from app.tasks.decide import Later, after_fault, as_it_was, backoff_seconds
from app.tasks.finish import finish_task

log = structlog.get_logger()

IDLE_SECONDS = 1.0  # how often an idle worker looks without a bell
MOST_IN_A_CLAIM = 100
QUICK_HANDS = 128
SLOW_HANDS = 64
GATHER_SECONDS = 0.02  # how long returned rows wait for company
MOST_IN_A_RETURN = 200
SEND_GRACE_SECONDS = 65.0  # a submit on its way must be heard out, or the job is paid for and lost
OTHERS_GRACE_SECONDS = 5.0


@dataclass(slots=True)
class Lane:
    """Some of the worker's hands, and the share of the tasks that they are for."""

    task_filter: TaskFilter
    size: int
    claimed: dict[asyncio.Task[None], Visit] = field(default_factory=dict)
    claiming: int = 0  # hands that wait for what a claim brings

    def free(self) -> int:
        return self.size - len(self.claimed) - self.claiming


def lanes_of(actions: Mapping[str, Action]) -> Iterator[Lane]:
    """Nothing slow takes the hands of others: neither a provider those of another, nor submits those of looks.

    A submit may hang for a minute, and downloads and references wait for strangers for longer. What they do to pictures
    and films once those are here is bounded where it is done. A lane leaves out what is another provider's, so a task
    whose action no release knows any more is still taken, and ends. A task that was left by two crashes may take the
    process down again: it is claimed alone among its like, so that no other is counted a third crash for it.
    """
    for provider in sorted({action.provider for action in actions.values()}):
        others = tuple(name for name, action in actions.items() if action.provider != provider)
        yield Lane(TaskFilter(("submit", "submitting"), False, others), QUICK_HANDS)
        yield Lane(TaskFilter(("poll",), False, others), QUICK_HANDS)
        yield Lane(TaskFilter(("prepare",), False, others), SLOW_HANDS)
        yield Lane(TaskFilter(("host",), False, others), SLOW_HANDS)
    yield Lane(TaskFilter(("prepare", "submit", "submitting", "poll", "host"), True), 1)


class Stepper:
    """One a process. `run` until `stop`; `wake` when the bell rings."""

    def __init__(self, runtime: Runtime, *, idle_seconds: float = IDLE_SECONDS) -> None:
        self._runtime = runtime
        self._idle_seconds = idle_seconds
        self._lanes = tuple(lanes_of(runtime.actions))
        self._returns: deque[Return] = deque()
        self._has_returns = asyncio.Event()
        self._woken = asyncio.Event()
        self._is_stopping = False

    def wake(self) -> None:
        """Look now."""
        self._woken.set()

    async def run(self) -> None:
        """Works until `stop` is called, then lets what is under way come to a safe point."""
        helpers = [asyncio.create_task(self._keep_leases()), asyncio.create_task(self._return_rows())]
        try:
            await self._claim_until_stopped()
            await self._wind_down()
        finally:
            await end(*helpers)
            await self._flush_returns()

    def stop(self) -> None:
        self._is_stopping = True
        self.wake()

    async def _claim_until_stopped(self) -> None:
        failures = 0
        while not self._is_stopping:
            self._woken.clear()
            try:
                may_be_more = await self._claim_once()
                failures = 0
            except Unavailable:
                failures += 1
                await asyncio.sleep(backoff_seconds(failures, 5.0))
                continue
            except Exception:
                failures += 1
                log.exception("claim_failed")
                await asyncio.sleep(backoff_seconds(failures, 30.0))
                continue
            if not may_be_more:
                with contextlib.suppress(TimeoutError):
                    wait = self._idle_seconds * random.uniform(0.8, 1.2)  # noqa: S311
                    await asyncio.wait_for(self._woken.wait(), wait)

    async def _claim_once(self) -> bool:
        """Each lane's hands are filled. Whether there may be more: a full batch was had and there are hands left."""
        if len(self._returns) >= MOST_IN_A_RETURN:
            return False  # more is done than can be written: it would wait here until its lease runs out
        lanes = [lane for lane in self._lanes if lane.free() > 0]
        found = await find_work(self._runtime.sessions, [lane.task_filter for lane in lanes])
        claimed = [await self._claim(lane) for lane, is_due in zip(lanes, found, strict=True) if is_due]
        return any(claimed)

    async def _claim(self, lane: Lane) -> bool:
        runtime = self._runtime
        limit = min(lane.free(), MOST_IN_A_CLAIM)
        if limit <= 0:
            return False  # a visit went on to this lane meanwhile
        lane.claiming = limit
        try:
            visits = await claim_due(runtime.sessions, lane.task_filter, limit, runtime.settings.lease_seconds)
        except ClaimUnknown as error:
            for visit in error.visits:
                self._release(visit, as_it_was(visit, 0.0))
            raise
        finally:
            lane.claiming = 0
        for visit in visits:
            if visit.version == 1:  # the first claim of all: `created` became `queued`
                runtime.notices.publish(visit.user_id, visit.task_no)
            task = asyncio.create_task(self._run(visit))
            lane.claimed[task] = visit
            task.add_done_callback(self._on_done)
        return len(visits) == limit and lane.free() > 0

    def _on_done(self, task: asyncio.Task[None]) -> None:
        for lane in self._lanes:
            if task in lane.claimed:
                self._remove(lane, task)

    def _remove(self, lane: Lane, task: asyncio.Task[None]) -> None:
        if lane.free() == 0:
            self.wake()
        del lane.claimed[task]

    def _may_go_on(self, visit: Visit) -> Callable[[str], bool]:
        """A visit takes its next step where that step's lane has a hand free; else the row waits for one."""

        def move(step: str) -> bool:
            task = asyncio.current_task()
            mine = next((lane for lane in self._lanes if task in lane.claimed), None)
            if task is None or mine is None or mine.task_filter.has(step, visit.action):
                return True
            to = next(lane for lane in self._lanes if lane.task_filter.has(step, visit.action))
            if to.free() <= 0:
                return False
            self._remove(mine, task)
            to.claimed[task] = visit
            return True

        return move

    async def _run(self, visit: Visit) -> None:
        """One visit, and what becomes of the row after it. Every line it logs has the task's number."""
        structlog.contextvars.bind_contextvars(task_no=visit.task_no)
        try:
            later = await run_steps(self._runtime, visit, self._may_go_on(visit))
            if later is not None:
                self._release(visit, later)
            elif visit.step == "host":
                self.wake()
        except Stale:
            count_stale(visit)
        except Unavailable:
            self._release(visit, as_it_was(visit, 1.0))
        except asyncio.CancelledError:
            # Here and not where it is cancelled: a library may swallow that, and the visit goes on with its row.
            self._release(visit, as_it_was(visit, 0.0))
            raise
        except Exception as error:
            metrics.VISIT_FAULTS.labels(visit.step).inc()
            log.exception("visit_failed", task_no=visit.task_no, step=visit.step)
            await self._after_fault(visit, repr(error))

    async def _after_fault(self, visit: Visit, note: str) -> None:
        if visit.step == "submitting":
            return  # sent or not, nobody knows: its lease runs out and it is found again
        move = after_fault(visit, note)
        if isinstance(move, Later):
            self._release(visit, move)
        elif isinstance(move, FailMove):
            with contextlib.suppress(Unavailable):
                await finish_task(self._runtime, visit, move, visit.history)
                self._runtime.notices.publish(visit.user_id, visit.task_no)

    def _release(self, visit: Visit, later: Later) -> None:
        self._returns.append(
            Return(
                visit=visit,
                delay_seconds=later.delay_seconds,
                attempts=later.attempts,
                crashes=later.crashes,
                progress=later.progress,
                status=visit.status,
                upstream=later.upstream,
            )
        )
        self._has_returns.set()

    async def _return_rows(self) -> None:
        while True:
            await self._has_returns.wait()
            await asyncio.sleep(GATHER_SECONDS)
            self._has_returns.clear()
            await self._flush_returns()

    async def _flush_returns(self) -> None:
        """Until the database took them; while stopping, or for a bug of ours, only as long as their leases hold.

        A row leaves the queue only once it is written: whoever is cancelled here loses none, and a row written
        twice is refused by its version. So a row that another took meanwhile is left alone, and one that nobody
        took does not count as left by a crash, however long the database was away.
        """
        while self._returns:
            batch = list(islice(self._returns, MOST_IN_A_RETURN))
            try:
                await release(self._runtime.sessions, batch)
                self._publish(batch)
            except Exception as error:
                log.warning("rows_not_given_back", tasks=len(batch), error=repr(error)[:300])
                is_worth_waiting = isinstance(error, Unavailable) and not self._is_stopping
                batch = [] if is_worth_waiting else [one for one in batch if not one.visit.is_held()]
                await asyncio.sleep(0.5)
            if len(self._returns) >= MOST_IN_A_RETURN:
                self.wake()
            for one in batch:
                self._returns.remove(one)

    def _publish(self, returned: list[Return]) -> None:
        """Most rows come back as they were claimed."""
        for one in returned:
            if one.progress != one.visit.progress:
                self._runtime.notices.publish(one.visit.user_id, one.visit.task_no)

    async def _keep_leases(self) -> None:
        lease_seconds = self._runtime.settings.lease_seconds
        while True:
            await asyncio.sleep(lease_seconds / 3)
            visits = [visit for lane in self._lanes for visit in lane.claimed.values() if visit.is_held()]
            if not visits:
                continue
            try:
                await renew_leases(self._runtime.sessions, visits, lease_seconds)
            except Exception as error:
                log.warning("leases_not_kept", tasks=len(visits), error=repr(error)[:200])

    async def _wind_down(self) -> None:
        """Submits under way are heard out; the rest is given a moment, then cancelled, which gives its row back."""
        await self._wait_for_visits(OTHERS_GRACE_SECONDS)
        for lane in self._lanes:
            for task, visit in list(lane.claimed.items()):
                if visit.step not in {"submit", "submitting"}:
                    task.cancel()
        await self._wait_for_visits(SEND_GRACE_SECONDS)

    async def _wait_for_visits(self, seconds: float) -> None:
        tasks = [task for lane in self._lanes for task in lane.claimed]
        if tasks:
            await asyncio.wait(tasks, timeout=seconds)
