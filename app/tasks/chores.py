"""Whose turn a chore is: one row each in `chores`, so that of all workers one does it, and when one dies another does.

The database's clock decides what is due. A turn is held by a lease and fenced by `version`, as tasks are. A chore must
still bear being done twice at once: a process that was frozen past its lease does not know it.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import or_, select, update

from app.database import Sessions, insert_if_absent, repeat_on_conflict, utc_after, utc_now
from app.tables import chores


@dataclass(frozen=True, slots=True)
class Turn:
    """How a chore stands. `age_seconds` and `result` are of its newest run to the end, None before the first."""

    is_due: bool
    age_seconds: float | None = None
    result: int | None = None


async def list_turns(sessions: Sessions) -> dict[str, Turn]:
    """By name; a chore that was never done has none."""
    async with sessions.read() as session:
        rows = await session.execute(_ALL)
        return {
            row.name: Turn(
                row.due_at <= row.now and (row.lease_until is None or row.lease_until <= row.now),
                _age_seconds(row.done_at, row.now),
                row.result,
            )
            for row in rows
        }


@repeat_on_conflict
async def take_turn(sessions: Sessions, name: str, lease_seconds: float) -> int | None:
    """The version to name from now on, where the chore is due and in nobody's hands."""
    async with sessions.begin() as session:
        first = insert_if_absent(session.dialect.name, chores, "name")
        await session.execute(first.values(name=name, version=0, due_at=utc_now()))
        is_free = or_(chores.c.lease_until.is_(None), chores.c.lease_until <= utc_now())
        taken = await session.execute(
            update(chores)
            .where(chores.c.name == name, chores.c.due_at <= utc_now(), is_free)
            .values(version=chores.c.version + 1, lease_until=utc_after(lease_seconds))
        )
        if not taken.rowcount:
            return None
        return await session.scalar(select(chores.c.version).where(chores.c.name == name))


async def keep_turn(sessions: Sessions, name: str, version: int, lease_seconds: float) -> bool:
    """Prolongs the lease; False where another has the chore by now."""
    return await _change(sessions, name, version, lease_until=utc_after(lease_seconds))


async def end_turn(sessions: Sessions, name: str, version: int, *, result: int, period_seconds: float) -> bool:
    """Done: due again after its period."""
    changes = {"due_at": utc_after(period_seconds), "done_at": utc_now(), "result": result}
    return await _change(sessions, name, version, lease_until=None, **changes)


async def give_turn_back(sessions: Sessions, name: str, version: int, delay_seconds: float) -> bool:
    """Not done: due again, for anybody, after a delay."""
    return await _change(sessions, name, version, lease_until=None, due_at=utc_after(delay_seconds))


@repeat_on_conflict
async def _change(sessions: Sessions, name: str, version: int, **changes: Any) -> bool:
    async with sessions.begin() as session:
        fence = (chores.c.name == name) & (chores.c.version == version)
        done = await session.execute(update(chores).where(fence).values(**changes))
        return bool(done.rowcount)


def _age_seconds(done_at: datetime | None, now: datetime) -> float | None:
    return None if done_at is None else (now - done_at).total_seconds()


_ALL = select(*chores.c, utc_now().label("now"))
