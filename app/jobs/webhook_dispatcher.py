"""Delivers webhooks: claims due rows of the outbox, sends each message, and records the outcome.

It has its own concurrency limits, DNS threads and HTTP client, so a slow receiver delays no task. Limits for each host,
for each user, and for each user on one host keep one receiver from delaying others, and one user from delaying others
on a host that they share. It needs no Redis.
"""

import asyncio
import contextlib
import random
import time
from collections import Counter

import structlog

from app.aio import acting_user, cancel_and_wait
from app.egress import Egress
from app.errors import Unavailable
from app.failpoints import failpoint
from app.jobs.webhook_payload import build_payload
from app.runtime import Runtime
from app.telemetry import metrics
from app.webhooks.outbox import (
    DISABLED,
    Delivery,
    Due,
    claim,
    find_due,
    find_target,
    other_endpoints,
    overdue_seconds,
    record,
)
from app.webhooks.sender import TIMEOUT_SECONDS, Outcome, send
from app.webhooks.signing import write_message

log = structlog.get_logger()

MAX_CONCURRENCY = 64
MAX_PER_HOST = 8
MAX_PER_USER = 16
MAX_PER_USER_ON_HOST = 4
SLOW_SECONDS = 2.0  # a longer attempt makes its host and user slow, until an attempt is quick again
MAX_PER_SLOW_HOST = 2
MAX_PER_USER_ON_SLOW_HOST = 1
MAX_PER_SLOW_USER = 4
MAX_SLOW = 10_000  # remembered hosts and users
EGRESS_HEALTHY_SECONDS = 300.0  # after a response our own network counts as working for this long
MAX_QUERY_ROWS = 200
IDLE_SECONDS = 0.5
MEASURE_SECONDS = 15.0
RETRY_DELAYS = (5.0, 30.0, 120.0, 600.0, 1800.0, 3600.0, 7200.0, 14400.0, 28800.0)
FAILING_SECONDS = 24 * 3600.0  # an endpoint without a success for this long is disabled


class WebhookDispatcher:
    """One per process; `run` works until it is cancelled. A cancelled attempt is repeated when its lease runs out."""

    def __init__(self, runtime: Runtime, *, idle_seconds: float = IDLE_SECONDS) -> None:
        self._runtime = runtime
        self._idle_seconds = idle_seconds
        self._deliveries: dict[asyncio.Task[None], Delivery] = {}
        self._active_by_host: Counter[str] = Counter()
        self._active_by_user: Counter[int] = Counter()
        self._active_by_pair: Counter[tuple[str, int]] = Counter()
        self._slow: dict[str | int, None] = {}  # hosts and users, the oldest entry first
        self._answered_at = float("-inf")
        self._woken = asyncio.Event()
        self._is_behind = False  # a due delivery waits for a free slot
        self._lease_seconds = TIMEOUT_SECONDS + runtime.settings.lease_seconds

    async def run(self) -> None:
        # Each slot may block one thread with DNS, and a timed-out lookup blocks its thread a while longer.
        self._egress = Egress(self._runtime.settings.egress_allowed, dns_threads=2 * MAX_CONCURRENCY)
        measurement = asyncio.create_task(self._measure_overdue())
        try:
            while True:
                self._woken.clear()
                pause = self._idle_seconds
                try:
                    await self._claim_due()
                except Unavailable:
                    pause = 1.0  # app/database logs that the database is unreachable
                except Exception:
                    log.exception("claim_deliveries_failed")
                    pause = 5.0
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._woken.wait(), pause * random.uniform(0.8, 1.2))  # noqa: S311
        finally:
            await cancel_and_wait(measurement, *self._deliveries)
            await self._egress.close()

    async def _claim_due(self) -> None:
        """Claims due deliveries until none is left or no slot is free."""
        self._is_behind = True
        while self._free_slots() > 0:
            full_hosts = [host for host in self._active_by_host if self._capacity_for_host(host) <= 0]
            full_users = [user for user in self._active_by_user if self._capacity_for_user(user) <= 0]
            full_pairs = [pair for pair in self._active_by_pair if self._capacity_for_pair(pair) <= 0]
            due = await find_due(
                self._runtime.database,
                MAX_QUERY_ROWS,
                excluded_hosts=full_hosts,
                excluded_users=full_users,
                excluded_pairs=full_pairs,
            )
            picked = self._pick_fairly(due)
            self._is_behind = bool(full_hosts or full_users or full_pairs) or len(picked) < len(due)
            if not picked:
                return
            for delivery in await claim(self._runtime.database, picked, self._lease_seconds):
                self._active_by_host[delivery.host] += 1
                self._active_by_user[delivery.user_id] += 1
                self._active_by_pair[delivery.host, delivery.user_id] += 1
                task = asyncio.create_task(self._deliver(delivery))
                self._deliveries[task] = delivery
                task.add_done_callback(self._on_done)
            if len(due) < MAX_QUERY_ROWS:
                return

    def _pick_fairly(self, due: list[Due]) -> list[Due]:
        """As many as have a free slot in all, for their host, their user and the two, the longest due first."""
        hosts, users, pairs, picked = Counter[str](), Counter[int](), Counter[tuple[str, int]](), list[Due]()
        for delivery in due:
            if len(picked) == self._free_slots():
                break
            if hosts[delivery.host] >= self._capacity_for_host(delivery.host):
                continue
            if users[delivery.user_id] >= self._capacity_for_user(delivery.user_id):
                continue
            pair = delivery.host, delivery.user_id
            if pairs[pair] >= self._capacity_for_pair(pair):
                continue
            hosts[delivery.host] += 1
            users[delivery.user_id] += 1
            pairs[pair] += 1
            picked.append(delivery)
        return picked

    def _free_slots(self) -> int:
        return MAX_CONCURRENCY - len(self._deliveries)

    def _capacity_for_host(self, host: str) -> int:
        return (MAX_PER_SLOW_HOST if host in self._slow else MAX_PER_HOST) - self._active_by_host[host]

    def _capacity_for_user(self, user: int) -> int:
        return (MAX_PER_SLOW_USER if user in self._slow else MAX_PER_USER) - self._active_by_user[user]

    def _capacity_for_pair(self, pair: tuple[str, int]) -> int:
        is_slow = pair[0] in self._slow
        return (MAX_PER_USER_ON_SLOW_HOST if is_slow else MAX_PER_USER_ON_HOST) - self._active_by_pair[pair]

    def _on_done(self, task: "asyncio.Task[None]") -> None:
        delivery = self._deliveries.pop(task)
        if self._is_behind:
            self._woken.set()
        self._active_by_host -= Counter([delivery.host])  # removes a host whose count is 0
        self._active_by_user -= Counter([delivery.user_id])
        self._active_by_pair -= Counter([(delivery.host, delivery.user_id)])

    async def _deliver(self, delivery: Delivery) -> None:
        acting_user.set(delivery.user_id)
        started_at = time.monotonic()
        try:
            outcome = await self._attempt(delivery)
        except Unavailable:
            return  # the lease runs out, and the delivery is due again
        except Exception:
            log.exception("delivery_failed", delivery=delivery.id)
            outcome = Outcome("internal")
        failpoint("webhook.after_send")
        if outcome.status is not None:
            self._answered_at = time.monotonic()
        self._track_latency(delivery, time.monotonic() - started_at)
        metrics.WEBHOOKS.labels(outcome.code).inc()
        result = {"outcome": outcome.code, "status": outcome.status, "ms": outcome.duration_ms}
        log.info("webhook_sent", delivery=delivery.id, host=delivery.host, attempt=delivery.attempts, **result)
        reason = await self._record(delivery, outcome)
        if reason is not None:
            await self._notify_disabled(delivery, reason)

    async def _attempt(self, delivery: Delivery) -> Outcome:
        target = await find_target(self._runtime.database, delivery)
        if target is None:
            return Outcome("disabled")
        message = await build_payload(self._runtime, delivery.task_id)
        if message is None:
            return Outcome("disabled")
        structlog.contextvars.bind_contextvars(message=message.id)  # on every line of this attempt
        return await send(self._egress, *target, message)

    def _track_latency(self, delivery: Delivery, seconds: float) -> None:
        for name in (delivery.host, delivery.user_id):
            self._slow.pop(name, None)
            if seconds > SLOW_SECONDS:
                self._slow[name] = None
        while len(self._slow) > MAX_SLOW:
            del self._slow[next(iter(self._slow))]

    async def _record(self, delivery: Delivery, outcome: Outcome) -> str | None:
        """Writes the outcome, and repeats that until the lease ends, after which the message is sent again anyway.

        Returns the reason where the outcome disables the endpoint.
        """
        retry_seconds = retry_after(delivery, outcome)
        # While no receiver answers, our own network is the likely cause.
        is_egress_healthy = time.monotonic() - self._answered_at < EGRESS_HEALTHY_SECONDS
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._lease_seconds):
                while True:
                    try:
                        return await record(
                            self._runtime.database,
                            delivery,
                            outcome,
                            retry_seconds=retry_seconds,
                            failing_seconds=FAILING_SECONDS,
                            counts_against_endpoint=outcome.counts_against_endpoint and is_egress_healthy,
                        )
                    except Unavailable:
                        await asyncio.sleep(1)
                    except Exception:
                        log.exception("record_delivery_failed", delivery=delivery.id)
                        break
        return None

    async def _notify_disabled(self, delivery: Delivery, reason: str) -> None:
        """Sends one message about it to the user's other endpoints. The list of endpoints shows it permanently."""
        metrics.WEBHOOKS_DISABLED.labels(reason).inc()
        context = {"endpoint": delivery.endpoint_id, "user_id": delivery.user_id, "host": delivery.host}
        log.warning("webhook_disabled", reason=reason, **context)
        data = {"endpointId": delivery.endpoint_id, "reason": reason}
        try:
            for url, signing_secrets in await other_endpoints(self._runtime.database, delivery):
                id_ = f"msg_disabled_{delivery.id}_{delivery.version}"
                message = write_message(id_, DISABLED, signing_secrets.now, data)
                await send(self._egress, url, signing_secrets, message)
        except Unavailable:
            return  # app/database logs that the database is unreachable
        except Exception:
            log.exception("disable_notice_failed", **context)

    async def _measure_overdue(self) -> None:
        while True:
            with contextlib.suppress(Exception):
                metrics.WEBHOOKS_OVERDUE.set(await overdue_seconds(self._runtime.database))
            await asyncio.sleep(MEASURE_SECONDS)


def retry_after(delivery: Delivery, outcome: Outcome) -> float | None:
    """Seconds until the next attempt; None where there is none. The last attempt is at the end of the retry window."""
    if outcome.is_delivered or outcome.code in {"gone", "disabled"} or delivery.seconds_left <= 0:
        return None
    delay = RETRY_DELAYS[min(delivery.attempts, len(RETRY_DELAYS)) - 1]
    seconds = max(delay * random.uniform(0.8, 1.2), outcome.retry_after_seconds or 0.0)  # noqa: S311
    return min(seconds, delivery.seconds_left)
