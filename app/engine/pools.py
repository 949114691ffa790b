"""Concurrency pools of a worker: how many tasks of a kind it runs at once."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from app.engine.claim import TaskFilter
from app.upstreams.action import Action

FAST_CONCURRENCY = 128
SLOW_CONCURRENCY = 64
ALL_STEPS = ("prepare", "submit", "submitting", "poll", "rehost")


@dataclass(slots=True, eq=False)
class Pool:
    """A number of slots for the tasks of a filter. Nobody waits for a slot: a task without one stays in the queue."""

    task_filter: TaskFilter
    size: int
    used: int = 0

    @property
    def free(self) -> int:
        return self.size - self.used

    def acquire(self, slots: int = 1) -> bool:
        """True where so many slots were free; they are the caller's then."""
        if slots > self.free:
            return False
        self.used += slots
        return True

    def release(self, slots: int = 1) -> None:
        self.used -= slots


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
