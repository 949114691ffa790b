"""Tells receivers of the ends of tasks: claims what is due in the outbox, sends it, and records how it went.

It has hands, DNS threads and a way out of its own, so that no receiver, however slow, delays a task; and it shares
its hands out by receiver and by user, so that none delays another. It needs no Redis.
"""

import asyncio
import contextlib
import random
import time
from collections import Counter

import structlog

from app.aio import cancel_and_wait
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
SLOW_SECONDS = 2.0  # whoever took longer the last time has fewer hands until the next quick one: a host has one
EGRESS_HEALTHY_SECONDS = 300.0  # after any answer at all our own way out is known to be sound for so long
MAX_PER_SLOW_USER = 4
MAX_SLOW = 10_000
MAX_QUERY_ROWS = 200
IDLE_SECONDS = 0.5
MEASURE_SECONDS = 15.0
RETRY_DELAYS = (5.0, 30.0, 120.0, 600.0, 1800.0, 3600.0, 7200.0, 14400.0, 28800.0)
FAILING_SECONDS = 24 * 3600.0  # without one success: then an endpoint is disabled


class WebhookDispatcher:
    """One a process. `run` until cancelled; what is under way then is told again when its lease is over."""

    def __init__(self, runtime: Runtime, *, idle_seconds: float = IDLE_SECONDS) -> None:
        self._runtime = runtime
        self._idle_seconds = idle_seconds
        self._deliveries: dict[asyncio.Task[None], Delivery] = {}
        self._active_by_host: Counter[str] = Counter()
        self._active_by_user: Counter[int] = Counter()
        self._slow: dict[str | int, None] = {}  # hosts and users, the longest unheard first
        self._answered_at = float("-inf")
        self._woken = asyncio.Event()
        self._is_behind = False  # something due waits for a hand
        self._lease_seconds = TIMEOUT_SECONDS + runtime.settings.lease_seconds

    async def run(self) -> None:
        # Every hand may wait for a name nobody answers for, and leave a thread that waits a while longer.
        self._egress = Egress(self._runtime.settings.egress_allowed, dns_threads=2 * MAX_CONCURRENCY)
        measuring = asyncio.create_task(self._measure())
        try:
            while True:
                self._woken.clear()
                pause = self._idle_seconds
                try:
                    await self._claim_due()
                except Unavailable:
                    pause = 1.0  # the database is away, which is told where it is noticed
                except Exception:
                    log.exception("deliveries_not_claimed")
                    pause = 5.0
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._woken.wait(), pause * random.uniform(0.8, 1.2))  # noqa: S311
        finally:
            await cancel_and_wait(measuring, *self._deliveries)
            await self._egress.close()

    async def _claim_due(self) -> None:
        """Claims until nothing due is left, or no hand is free for it."""
        self._is_behind = True
        while self._free_slots() > 0:
            full_hosts = [host for host in self._active_by_host if self._capacity_for_host(host) <= 0]
            full_users = [user for user in self._active_by_user if self._capacity_for_user(user) <= 0]
            due = await find_due(self._runtime.database, MAX_QUERY_ROWS, hosts=full_hosts, users=full_users)
            chosen = self._pick_fairly(due)
            self._is_behind = bool(full_hosts or full_users) or len(chosen) < len(due)
            if not chosen:
                return
            for delivery in await claim(self._runtime.database, chosen, self._lease_seconds):
                self._active_by_host[delivery.host] += 1
                self._active_by_user[delivery.user_id] += 1
                task = asyncio.create_task(self._deliver(delivery))
                self._deliveries[task] = delivery
                task.add_done_callback(self._on_done)
            if len(due) < MAX_QUERY_ROWS:
                return

    def _pick_fairly(self, due: list[Due]) -> list[Due]:
        """The longest due first, as many as there are hands for: in all, for their host, and for their user."""
        hosts, users, chosen = Counter[str](), Counter[int](), list[Due]()
        for one in due:
            if len(chosen) == self._free_slots():
                break
            if hosts[one.host] >= self._capacity_for_host(one.host):
                continue
            if users[one.user_id] >= self._capacity_for_user(one.user_id):
                continue
            hosts[one.host] += 1
            users[one.user_id] += 1
            chosen.append(one)
        return chosen

    def _free_slots(self) -> int:
        return MAX_CONCURRENCY - len(self._deliveries)

    def _capacity_for_host(self, host: str) -> int:
        return (1 if host in self._slow else MAX_PER_HOST) - self._active_by_host[host]

    def _capacity_for_user(self, user: int) -> int:
        return (MAX_PER_SLOW_USER if user in self._slow else MAX_PER_USER) - self._active_by_user[user]

    def _on_done(self, task: "asyncio.Task[None]") -> None:
        delivery = self._deliveries.pop(task)
        if self._is_behind:
            self._woken.set()
        self._active_by_host -= Counter([delivery.host])  # who has no hand left goes from the count
        self._active_by_user -= Counter([delivery.user_id])

    async def _deliver(self, delivery: Delivery) -> None:
        began = time.monotonic()
        try:
            outcome = await self._attempt(delivery)
        except Unavailable:
            return  # its lease runs out, and it is found again
        except Exception:
            log.exception("delivery_failed", delivery=delivery.id)
            outcome = Outcome("internal")
        failpoint("webhook.after_send")
        if outcome.status is not None:
            self._answered_at = time.monotonic()
        self._track_latency(delivery, time.monotonic() - began)
        metrics.WEBHOOKS.labels(outcome.code).inc()
        told = {"outcome": outcome.code, "status": outcome.status, "ms": outcome.duration_ms}
        log.info("webhook_sent", delivery=delivery.id, host=delivery.host, attempt=delivery.attempts, **told)
        reason = await self._record(delivery, outcome)
        if reason is not None:
            await self._notify_disabled(delivery, reason)

    async def _attempt(self, delivery: Delivery) -> Outcome:
        target = await find_target(self._runtime.database, delivery)
        if target is None:
            return Outcome("disabled")
        message = await build_payload(self._runtime, delivery.task_id)
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
        """Until the database took it; only as long as the lease holds, after which it is sent again anyway.

        The reason where the endpoint was disabled by it.
        """
        retry_seconds = retry_after(delivery, outcome)
        # While nobody at all answers it is our way out, and held against no receiver.
        is_way_out_sound = time.monotonic() - self._answered_at < EGRESS_HEALTHY_SECONDS
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
                            counts_against_endpoint=outcome.counts_against_endpoint and is_way_out_sound,
                        )
                    except Unavailable:
                        await asyncio.sleep(1)
                    except Exception:
                        log.exception("delivery_not_recorded", delivery=delivery.id)
                        break
        return None

    async def _notify_disabled(self, delivery: Delivery, reason: str) -> None:
        """Its owner, once, at the endpoints that still work: what lasts is the list."""
        metrics.WEBHOOKS_DISABLED.labels(reason).inc()
        told = {"endpoint": delivery.endpoint_id, "user_id": delivery.user_id, "host": delivery.host}
        log.warning("webhook_disabled", reason=reason, **told)
        data = {"endpointId": delivery.endpoint_id, "reason": reason}
        try:
            for url, keys in await other_endpoints(self._runtime.database, delivery):
                message = write_message(f"msg_disabled_{delivery.id}_{delivery.version}", DISABLED, keys.now, data)
                await send(self._egress, url, keys, message)
        except Unavailable:
            return  # the database is away
        except Exception:
            log.exception("disabling_not_told", **told)

    async def _measure(self) -> None:
        while True:
            with contextlib.suppress(Exception):
                metrics.WEBHOOKS_OVERDUE.set(await overdue_seconds(self._runtime.database))
            await asyncio.sleep(MEASURE_SECONDS)


def retry_after(delivery: Delivery, outcome: Outcome) -> float | None:
    """Seconds to the next attempt, the last of which is made when the day is over; None where there is none."""
    if outcome.is_delivered or outcome.code in {"gone", "disabled"} or delivery.seconds_left <= 0:
        return None
    stair = RETRY_DELAYS[min(delivery.attempts, len(RETRY_DELAYS)) - 1]
    pause = max(stair * random.uniform(0.8, 1.2), outcome.retry_after_seconds or 0.0)  # noqa: S311
    return min(pause, delivery.seconds_left)
