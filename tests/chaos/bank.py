"""Top-ups during the storm: each is repeated with its reference until it has an answer, and some are sent twice."""

import asyncio
import random
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from app.errors import Unavailable
from app.points import ledger
from app.runtime import Runtime
from tests.chaos.callers import User

POINTS = 900
PAUSE_SECONDS = (1.0, 6.0)  # how long a user has no points before the next top-up
EXPIRING_SHARE, EXPIRING_SECONDS = 0.25, 90
TIMEOUT_SECONDS = 300.0


@dataclass(frozen=True)
class ActionInput:
    """One top-up, the same in each attempt."""

    user_id: int
    points: int
    ref: str
    expires: datetime | None = None


class Bank:
    """`orders` are the top-ups that each account must have at the end."""

    def __init__(self, runtime: Runtime, *, seed: int, run: str) -> None:
        self.orders: dict[str, ActionInput] = {}
        self.repeats = 0
        self._runtime = runtime
        self._run = run
        self._chance = random.Random(f"bank {seed}")
        self._waiting: set[int] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def order(self, user: User) -> None:
        """At most one order at a time for each user."""
        if user.id in self._waiting:
            return
        self._waiting.add(user.id)
        task = asyncio.create_task(self._serve(user))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, user: User) -> None:
        await asyncio.sleep(self._chance.uniform(*PAUSE_SECONDS))
        await self.grant(user.id, POINTS, may_expire=True)
        self._waiting.discard(user.id)

    async def grant(self, user_id: int, points: int, *, may_expire: bool = False) -> None:
        expires = None
        if may_expire and self._chance.random() < EXPIRING_SHARE:
            expires = datetime.now(UTC) + timedelta(seconds=EXPIRING_SECONDS)
        order = ActionInput(user_id, points, f"{self._run}-order-{len(self.orders)}", expires)
        self.orders[order.ref] = order
        copies = 3 if self._chance.random() < 0.3 else 1
        self.repeats += copies - 1
        await asyncio.gather(*[self._send(order) for _ in range(copies)])

    async def _send(self, order: ActionInput) -> None:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while True:
                try:
                    await ledger.grant(
                        self._runtime.database,
                        user_id=order.user_id,
                        points=order.points,
                        ref=order.ref,
                        expires=order.expires,
                    )
                except Unavailable:
                    self.repeats += 1
                    await asyncio.sleep(0.3)
                else:
                    return

    async def close(self) -> None:
        """Waits until every order is done."""
        while self._tasks:
            await asyncio.gather(*self._tasks)
