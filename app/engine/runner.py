"""Claims due tasks in batches, runs them side by side, renews their leases, and releases them in batches.

It runs beside ARQ in the worker process and needs no Redis: a wakeup only makes it query sooner.
"""

import asyncio
import contextlib
import random
from collections import deque
from collections.abc import Sequence
from itertools import islice

import structlog

from app.aio import Alarm, acting_user, cancel_and_wait
from app.engine.claim import ClaimCommitUnknown, claim_due, has_due, release, renew_leases
from app.engine.execute import LostLease, record_lost_lease, run_steps
from app.engine.finish import finish_task
from app.engine.pools import Pool, build_pools
from app.engine.state import ClaimedTask, Release
from app.engine.transitions import Fail, after_exception, backoff_seconds, unchanged
from app.errors import Unavailable
from app.runtime import Runtime
from app.telemetry import metrics

log = structlog.get_logger()

IDLE_SECONDS = 1.0  # between queries of an idle worker without a wakeup
MAX_CLAIM_ROWS = 100
BATCH_WINDOW_SECONDS = 0.02  # how long a release waits for others
MAX_RELEASE_ROWS = 200
SUBMIT_GRACE_SECONDS = 65.0  # at shutdown; a submit that is cut off is a job that is paid for and lost
OTHERS_GRACE_SECONDS = 5.0


class TaskRunner:
    """One a process. `run` until `stop`; `wake` at a wakeup."""

    def __init__(self, runtime: Runtime, *, idle_seconds: float = IDLE_SECONDS) -> None:
        self._runtime = runtime
        self._idle_seconds = idle_seconds
        self._pools = tuple(build_pools(runtime.actions))
        self._running: dict[asyncio.Task[None], ClaimedTask] = {}
        self._releases: deque[Release] = deque()
        self._has_releases = asyncio.Event()
        self._woken = asyncio.Event()
        self._alarm = Alarm(self.wake)
        self._is_stopping = False

    def wake(self) -> None:
        """Query now."""
        self._woken.set()

    async def run(self) -> None:
        """Works until `stop` is called, then lets running tasks come to a safe point."""
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

    # ------------------------------------------------------------------ claim

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
                    idle_seconds = self._idle_seconds * random.uniform(0.8, 1.2)  # noqa: S311
                    await asyncio.wait_for(self._woken.wait(), idle_seconds)

    async def _claim_once(self) -> bool:
        """Fills the free slots of each pool. True where there may be more for them."""
        if len(self._releases) >= MAX_RELEASE_ROWS:
            return False  # more has ended than is written: a claimed task would wait here until its lease ends
        pools = [pool for pool in self._pools if pool.free > 0]
        due = await has_due(self._runtime.database, [pool.task_filter for pool in pools])
        return any([await self._claim(pool) for pool, is_due in zip(pools, due, strict=True) if is_due])

    async def _claim(self, pool: Pool) -> bool:
        limit, full_users = min(pool.free, MAX_CLAIM_ROWS), pool.full_users()
        if limit <= 0 or not pool.acquire(limit):
            return False  # running tasks have moved to this pool meanwhile
        found, claimed = 0, list[ClaimedTask]()

        def admit(users: Sequence[int]) -> list[bool]:
            nonlocal found
            found = len(users)
            return pool.admit(users, limit)

        try:
            lease_seconds, database = self._runtime.settings.lease_seconds, self._runtime.database
            claimed = await claim_due(
                database, pool.task_filter, limit, lease_seconds, excluded_users=full_users, admit=admit
            )
        except ClaimCommitUnknown as error:
            for task in error.claimed:
                self._release(unchanged(task, 0.0))
            raise
        finally:
            pool.release(limit - len(claimed))
        for task in claimed:
            pool.enter(task.user_id)
            if task.version == 1:  # the first claim: `created` became `queued`
                self._runtime.pubsub.publish(task.user_id, task.task_no)
            running = asyncio.create_task(_Run(self, task, pool).run())
            self._running[running] = task
            running.add_done_callback(self._running.pop)
        # Behind tasks that were not admitted there may be those of other users.
        return pool.free > 0 and (len(claimed) == limit or 0 < len(claimed) < found)

    def pool_for(self, step: str, action: str) -> Pool:
        return next(pool for pool in self._pools if pool.task_filter.matches(step, action))

    # ------------------------------------------------------------------ release

    def _release(self, one: Release) -> None:
        self._releases.append(one)
        self._has_releases.set()

    async def _release_loop(self) -> None:
        while True:
            await self._has_releases.wait()
            await asyncio.sleep(BATCH_WINDOW_SECONDS)
            self._has_releases.clear()
            await self._flush_releases()

    async def _flush_releases(self) -> None:
        """Until the database took them. At shutdown, or for a bug of ours, only as long as the leases hold.

        A release leaves the queue only after it is written: a cancellation here loses none, and a row that is written
        twice is refused by its version. A row that another worker took stays as it is. A row that nobody took does not
        count as a crash, however long the database was away.
        """
        while self._releases:
            batch = list(islice(self._releases, MAX_RELEASE_ROWS))
            try:
                released = await release(self._runtime.database, batch)
                self._on_released([one for one in batch if one.task.id in released])
            except Exception as error:
                log.warning("release_failed", tasks=len(batch), error=repr(error)[:300])
                is_worth_waiting = isinstance(error, Unavailable) and not self._is_stopping
                batch = [] if is_worth_waiting else [one for one in batch if not one.task.is_held()]
                await asyncio.sleep(0.5)
            if len(self._releases) >= MAX_RELEASE_ROWS:
                self.wake()
            for one in batch:
                self._releases.remove(one)

    def _on_released(self, released: list[Release]) -> None:
        """Wakes this worker when they are due. Publishes changes of progress only: most rows have none."""
        for one in released:
            self._alarm.ring_after(one.delay_seconds)
            if one.progress != one.task.progress:
                self._runtime.pubsub.publish(one.task.user_id, one.task.task_no)

    async def _renew_leases(self) -> None:
        lease_seconds = self._runtime.settings.lease_seconds
        while True:
            await asyncio.sleep(lease_seconds / 3)
            held = [task for task in self._running.values() if task.is_held()]
            if not held:
                continue
            try:
                await renew_leases(self._runtime.database, held, lease_seconds)
            except Exception as error:
                log.warning("lease_renewal_failed", tasks=len(held), error=repr(error)[:200])

    # ------------------------------------------------------------------ shutdown

    async def _drain(self) -> None:
        """Running submits are waited for. Other steps get a moment, then they are cancelled, which releases the row."""
        await self._wait_for_running(OTHERS_GRACE_SECONDS)
        for running, task in list(self._running.items()):
            if task.step not in {"submit", "submitting"}:
                running.cancel()
        await self._wait_for_running(SUBMIT_GRACE_SECONDS)

    async def _wait_for_running(self, seconds: float) -> None:
        if self._running:
            await asyncio.wait(list(self._running), timeout=seconds)


class _Run:
    """One claimed task while it runs, and the slot that it has."""

    def __init__(self, runner: TaskRunner, task: ClaimedTask, pool: Pool) -> None:
        self._runner = runner
        self._runtime = runner._runtime
        self._task = task
        self._pool = pool

    async def run(self) -> None:
        """Runs the steps and releases the row. Every log line has the task's number."""
        task, runner = self._task, self._runner
        structlog.contextvars.bind_contextvars(task_no=task.task_no)
        acting_user.set(task.user_id)
        try:
            decision = await run_steps(self._runtime, task, self._can_continue)
            if isinstance(decision, Release):
                runner._release(decision)
            elif decision is not None:
                runner._alarm.ring_after(decision.delay_seconds)
            elif task.step == "rehost":
                runner.wake()
        except LostLease:
            record_lost_lease(task)
        except Unavailable:
            runner._release(unchanged(task, 1.0))
        except asyncio.CancelledError:
            # Here and not in the canceller: a library may swallow the cancellation, and the task goes on with its row.
            runner._release(unchanged(task, 0.0))
            raise
        except Exception as error:
            metrics.TASK_STEP_ERRORS.labels(task.step).inc()
            log.exception("step_failed", task_no=task.task_no, step=task.step)
            await self._after_exception(repr(error))
        finally:
            self._leave(self._pool)

    def _can_continue(self, step: str) -> bool:
        """The next step needs a free slot of its own pool; without one the row waits in the queue."""
        if self._pool.task_filter.matches(step, self._task.action):
            return True
        next_pool, user_id = self._runner.pool_for(step, self._task.action), self._task.user_id
        if user_id in next_pool.full_users() or not next_pool.acquire():
            return False
        next_pool.enter(user_id)
        self._leave(self._pool)
        self._pool = next_pool
        return True

    def _leave(self, pool: Pool) -> None:
        if pool.is_scarce:
            self._runner.wake()
        pool.leave(self._task.user_id)

    async def _after_exception(self, note: str) -> None:
        task = self._task
        if task.step == "submitting":
            return  # sent or not: nobody knows. The lease ends, and the task is found again.
        decision = after_exception(task, note)
        if isinstance(decision, Release):
            self._runner._release(decision)
        elif isinstance(decision, Fail):
            with contextlib.suppress(Unavailable):
                await finish_task(self._runtime, task, decision, task.history)
                self._runtime.pubsub.publish(task.user_id, task.task_no)
