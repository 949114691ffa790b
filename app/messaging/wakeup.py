"""Wakes workers when a task becomes due. Best effort: workers also query the database, so a wakeup may be lost.

A background task sends the wakeups, and many become one ARQ job. A submit neither waits for Redis nor fails with it.
"""

import asyncio
import secrets

import structlog
from arq.connections import ArqRedis
from redis.exceptions import RedisError

from app.aio import cancel_and_wait
from app.telemetry import metrics

log = structlog.get_logger()

WAKE_JOB = "wake_worker"
BATCH_WINDOW_SECONDS = 0.02  # a process sends at most 50 wakeups per second
NOTIFY_TIMEOUT_SECONDS = 0.2
RETRY_DELAY_SECONDS = 1.0
JOB_TTL_SECONDS = 60  # by then the workers' own queries have found the task


class WorkerWakeup:
    """Sends the wakeups of one process. A wakeup names no task; workers query the rows that are due.

    ARQ makes keys of a fixed word and the job's id, such as `arq:job:ID`. So the id begins with the installation's
    `namespace`.
    """

    def __init__(self, redis: ArqRedis, namespace: str) -> None:
        self._redis = redis
        self._namespace = namespace
        self._is_requested = False
        self._sender: asyncio.Task[None] | None = None

    def notify(self) -> None:
        """Requests a wakeup and returns at once. Calls within the batch window become one job."""
        self._is_requested = True
        if self._sender is None or self._sender.done():
            self._sender = asyncio.create_task(self._send())

    async def _send(self) -> None:
        while self._is_requested:
            self._is_requested = False
            try:
                async with asyncio.timeout(NOTIFY_TIMEOUT_SECONDS):
                    job_id = f"{self._namespace}:{secrets.token_hex(16)}"
                    await self._redis.enqueue_job(WAKE_JOB, _job_id=job_id, _expires=JOB_TTL_SECONDS)
                await asyncio.sleep(BATCH_WINDOW_SECONDS)
            except (RedisError, OSError) as error:
                metrics.WAKEUPS_FAILED.inc()
                log.warning("wakeup_failed", error=repr(error)[:200])
                await asyncio.sleep(RETRY_DELAY_SECONDS)

    async def close(self) -> None:
        """Waits briefly for the wakeup that is being sent."""
        if self._sender is not None:
            await asyncio.wait([self._sender], timeout=2 * NOTIFY_TIMEOUT_SECONDS)
            await cancel_and_wait(self._sender)
