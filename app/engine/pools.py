"""Concurrency pools of a worker: how many tasks of a kind it runs at once, and how users share them."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from app.engine.claim import TaskFilter
from app.upstreams.action import Action

FAST_CONCURRENCY = 128
SLOW_CONCURRENCY = 64
ALL_STEPS = ("prepare", "submit", "submitting", "poll", "rehost")


@dataclass(slots=True, eq=False)
class Pool:
    """A number of slots for the tasks of a filter. Nobody waits for a slot: a task without one stays in the queue.

    The last quarter of the slots is kept for users who have less than an eighth of all. So one user with many tasks
    cannot keep the tasks of others waiting, and alone may take three quarters.
    """

    task_filter: TaskFilter
    size: int
    used: int = 0
    by_user: Counter[int] = field(default_factory=Counter)
    """How many slots the tasks of each user have."""

    @property
    def free(self) -> int:
        return self.size - self.used

    @property
    def is_scarce(self) -> bool:
        """Only slots that are kept for users with few are free."""
        return self.free <= self.size // 4

    def full_users(self) -> list[int]:
        """The users who may take no slot now."""
        return [user for user, slots in self.by_user.items() if slots >= self._share] if self.is_scarce else []

    def acquire(self, slots: int = 1) -> bool:
        """True where so many slots were free; they are the caller's then."""
        if slots > self.free:
            return False
        self.used += slots
        return True

    def release(self, slots: int = 1) -> None:
        self.used -= slots

    def admit(self, users: Sequence[int], reserved: int) -> list[bool]:
        """For each of these tasks' users, in order, whether the task may have one of the `reserved` slots."""
        free, by_user, admitted = self.free + reserved, Counter(self.by_user), list[bool]()
        for user in users:
            admitted.append(free > self.size // 4 or by_user[user] < self._share)
            free -= admitted[-1]
            by_user[user] += admitted[-1]
        return admitted

    def enter(self, user_id: int) -> None:
        """A task of the user takes one of the acquired slots."""
        self.by_user[user_id] += 1

    def leave(self, user_id: int) -> None:
        """The task gives it back."""
        self.release()
        self.by_user[user_id] -= 1
        if self.by_user[user_id] <= 0:
            del self.by_user[user_id]

    @property
    def _share(self) -> int:
        return max(self.size // 8, 1)


def build_pools(actions: Mapping[str, Action]) -> Iterator[Pool]:
    """No slow step takes the slots of another kind: neither a provider those of another, nor submits those of polls.

    A submit may hang for a minute. Downloads and references wait for strangers' servers for longer. A pool leaves out
    the actions of other providers only, so a task whose action no release knows any more is claimed, too, and ends. A
    quarantined task may crash the process again: it is claimed alone, so no other task is counted a crash for it.
    """
    for provider in sorted({action.provider for action in actions.values()}):
        others = tuple(name for name, action in actions.items() if action.provider != provider)
        yield Pool(TaskFilter(("submit", "submitting"), False, others), FAST_CONCURRENCY)
        yield Pool(TaskFilter(("poll",), False, others), FAST_CONCURRENCY)
        yield Pool(TaskFilter(("prepare",), False, others), SLOW_CONCURRENCY)
        yield Pool(TaskFilter(("rehost",), False, others), SLOW_CONCURRENCY)
    yield Pool(TaskFilter(ALL_STEPS, True), 1)
