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

from app.aio import cancel_and_wait
from app.engine.claim import (
    ClaimCommitUnknown,
    ClaimedTask,
    Release,
    TaskFilter,
    claim_due,
    has_due,
    release,
    renew_leases,
)
from app.engine.execute import LostLease, record_lost_lease, run_steps
from app.engine.finish import finish_task
from app.engine.transitions import Fail as FailMove
from app.engine.transitions import Reschedule, after_fault, backoff_seconds, unchanged
from app.errors import Unavailable
from app.runtime import Runtime
from app.telemetry import metrics
from app.upstreams.see2ai.actions import Action

log = structlog.get_logger()

IDLE_SECONDS = 1.0  # how often an idle worker looks without a bell
MAX_CLAIM_ROWS = 100
FAST_CONCURRENCY = 128
SLOW_CONCURRENCY = 64
BATCH_WINDOW_SECONDS = 0.02  # how long returned rows wait for company
MAX_RELEASE_ROWS = 200
SEND_GRACE_SECONDS = 65.0  # a submit on its way must be heard out, or the job is paid for and lost
OTHERS_GRACE_SECONDS = 5.0


@dataclass(slots=True)
class Pool:
    """Some of the worker's hands, and the share of the tasks that they are for."""

    task_filter: TaskFilter
    size: int
    claimed: dict[asyncio.Task[None], ClaimedTask] = field(default_factory=dict)
    reserved: int = 0  # hands that wait for what a claim brings

    def free(self) -> int:
        return self.size - len(self.claimed) - self.reserved


def build_pools(actions: Mapping[str, Action]) -> Iterator[Pool]:
    """Nothing slow takes the hands of others: neither a provider those of another, nor submits those of looks.

    A submit may hang for a minute, and downloads and references wait for strangers for longer. What they do to pictures
    and films once those are here is bounded where it is done. A lane leaves out what is another provider's, so a task
    whose action no release knows any more is still taken, and ends. A task that was left by two crashes may take the
    process down again: it is claimed alone among its like, so that no other is counted a third crash for it.
    """
    for provider in sorted({action.provider for action in actions.values()}):
        others = tuple(name for name, action in actions.items() if action.provider != provider)
        yield Pool(TaskFilter(("submit", "submitting"), False, others), FAST_CONCURRENCY)
        yield Pool(TaskFilter(("poll",), False, others), FAST_CONCURRENCY)
        yield Pool(TaskFilter(("prepare",), False, others), SLOW_CONCURRENCY)
        yield Pool(TaskFilter(("host",), False, others), SLOW_CONCURRENCY)
    yield Pool(TaskFilter(("prepare", "submit", "submitting", "poll", "host"), True), 1)


class TaskRunner:
    """One a process. `run` until `stop`; `wake` when the bell rings."""

    def __init__(self, runtime: Runtime, *, idle_seconds: float = IDLE_SECONDS) -> None:
        self._runtime = runtime
        self._idle_seconds = idle_seconds
        self._pools = tuple(build_pools(runtime.actions))
        self._releases: deque[Release] = deque()
        self._has_releases = asyncio.Event()
        self._woken = asyncio.Event()
        self._is_stopping = False

    def wake(self) -> None:
        """Look now."""
        self._woken.set()

    async def run(self) -> None:
        """Works until `stop` is called, then lets what is under way come to a safe point."""
        helpers = [asyncio.create_task(self._renew_leases()), asyncio.create_task(self._release_loop())]
        try:
            await self._claim_until_stopped()
            await self._drain()
        finally:
            await cancel_and_wait(*helpers)
            await self._flush_releases()

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
        if len(self._releases) >= MAX_RELEASE_ROWS:
            return False  # more is done than can be written: it would wait here until its lease runs out
        lanes = [lane for lane in self._pools if lane.free() > 0]
        found = await has_due(self._runtime.database, [lane.task_filter for lane in lanes])
        claimed = [await self._claim(lane) for lane, is_due in zip(lanes, found, strict=True) if is_due]
        return any(claimed)

    async def _claim(self, lane: Pool) -> bool:
        runtime = self._runtime
        limit = min(lane.free(), MAX_CLAIM_ROWS)
        if limit <= 0:
            return False  # a visit went on to this lane meanwhile
        lane.reserved = limit
        try:
            visits = await claim_due(runtime.database, lane.task_filter, limit, runtime.settings.lease_seconds)
        except ClaimCommitUnknown as error:
            for visit in error.claimed:
                self._release(visit, unchanged(visit, 0.0))
            raise
        finally:
            lane.reserved = 0
        for visit in visits:
            if visit.version == 1:  # the first claim of all: `created` became `queued`
                runtime.pubsub.publish(visit.user_id, visit.task_no)
            task = asyncio.create_task(self._run(visit))
            lane.claimed[task] = visit
            task.add_done_callback(self._on_done)
        return len(visits) == limit and lane.free() > 0

    def _on_done(self, task: asyncio.Task[None]) -> None:
        for lane in self._pools:
            if task in lane.claimed:
                self._remove(lane, task)

    def _remove(self, lane: Pool, task: asyncio.Task[None]) -> None:
        if lane.free() == 0:
            self.wake()
        del lane.claimed[task]

    def _can_continue(self, visit: ClaimedTask) -> Callable[[str], bool]:
        """A visit takes its next step where that step's lane has a hand free; else the row waits for one."""

        def decision(step: str) -> bool:
            task = asyncio.current_task()
            mine = next((lane for lane in self._pools if task in lane.claimed), None)
            if task is None or mine is None or mine.task_filter.matches(step, visit.action):
                return True
            to = next(lane for lane in self._pools if lane.task_filter.matches(step, visit.action))
            if to.free() <= 0:
                return False
            self._remove(mine, task)
            to.claimed[task] = visit
            return True

        return decision

    async def _run(self, visit: ClaimedTask) -> None:
        """One visit, and what becomes of the row after it. Every line it logs has the task's number."""
        structlog.contextvars.bind_contextvars(task_no=visit.task_no)
        try:
            later = await run_steps(self._runtime, visit, self._can_continue(visit))
            if later is not None:
                self._release(visit, later)
            elif visit.step == "host":
                self.wake()
        except LostLease:
            record_lost_lease(visit)
        except Unavailable:
            self._release(visit, unchanged(visit, 1.0))
        except asyncio.CancelledError:
            # Here and not where it is cancelled: a library may swallow that, and the visit goes on with its row.
            self._release(visit, unchanged(visit, 0.0))
            raise
        except Exception as error:
            metrics.TASK_STEP_ERRORS.labels(visit.step).inc()
            log.exception("visit_failed", task_no=visit.task_no, step=visit.step)
            await self._after_fault(visit, repr(error))

    async def _after_fault(self, visit: ClaimedTask, note: str) -> None:
        if visit.step == "submitting":
            return  # sent or not, nobody knows: its lease runs out and it is found again
        decision = after_fault(visit, note)
        if isinstance(decision, Reschedule):
            self._release(visit, decision)
        elif isinstance(decision, FailMove):
            with contextlib.suppress(Unavailable):
                await finish_task(self._runtime, visit, decision, visit.history)
                self._runtime.pubsub.publish(visit.user_id, visit.task_no)

    def _release(self, visit: ClaimedTask, later: Reschedule) -> None:
        self._releases.append(
            Release(
                task=visit,
                delay_seconds=later.delay_seconds,
                attempts=later.attempts,
                crashes=later.crashes,
                progress=later.progress,
                status=visit.status,
                upstream_state=later.upstream_state,
            )
        )
        self._has_releases.set()

    async def _release_loop(self) -> None:
        while True:
            await self._has_releases.wait()
            await asyncio.sleep(BATCH_WINDOW_SECONDS)
            self._has_releases.clear()
            await self._flush_releases()

    async def _flush_releases(self) -> None:
        """Until the database took them; while stopping, or for a bug of ours, only as long as their leases hold.

        A row leaves the queue only once it is written: whoever is cancelled here loses none, and a row written
        twice is refused by its version. So a row that another took meanwhile is left alone, and one that nobody
        took does not count as left by a crash, however long the database was away.
        """
        while self._releases:
            batch = list(islice(self._releases, MAX_RELEASE_ROWS))
            try:
                await release(self._runtime.database, batch)
                self._publish(batch)
            except Exception as error:
                log.warning("rows_not_given_back", tasks=len(batch), error=repr(error)[:300])
                is_worth_waiting = isinstance(error, Unavailable) and not self._is_stopping
                batch = [] if is_worth_waiting else [one for one in batch if not one.task.is_held()]
                await asyncio.sleep(0.5)
            if len(self._releases) >= MAX_RELEASE_ROWS:
                self.wake()
            for one in batch:
                self._releases.remove(one)

    def _publish(self, returned: list[Release]) -> None:
        """Most rows come back as they were claimed."""
        for one in returned:
            if one.progress != one.task.progress:
                self._runtime.pubsub.publish(one.task.user_id, one.task.task_no)

    async def _renew_leases(self) -> None:
        lease_seconds = self._runtime.settings.lease_seconds
        while True:
            await asyncio.sleep(lease_seconds / 3)
            visits = [visit for lane in self._pools for visit in lane.claimed.values() if visit.is_held()]
            if not visits:
                continue
            try:
                await renew_leases(self._runtime.database, visits, lease_seconds)
            except Exception as error:
                log.warning("leases_not_kept", tasks=len(visits), error=repr(error)[:200])

    async def _drain(self) -> None:
        """Submits under way are heard out; the rest is given a moment, then cancelled, which gives its row back."""
        await self._wait_for_visits(OTHERS_GRACE_SECONDS)
        for lane in self._pools:
            for task, visit in list(lane.claimed.items()):
                if visit.step not in {"submit", "submitting"}:
                    task.cancel()
        await self._wait_for_visits(SEND_GRACE_SECONDS)

    async def _wait_for_visits(self, seconds: float) -> None:
        tasks = [task for lane in self._pools for task in lane.claimed]
        if tasks:
            await asyncio.wait(tasks, timeout=seconds)
