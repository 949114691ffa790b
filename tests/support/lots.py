"""Points that expire: tests move the lots into the past and do not wait."""

from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import select, update

from app.database import Database
from app.points import ledger
from app.tables import points_accounts, points_lots

TABLES = ((points_lots, "id", "expires_at"), (points_accounts, "user_id", "next_expiry"))


def in_hours(hours: float) -> datetime:
    return datetime.now(UTC) + timedelta(hours=hours)


async def later(database: Database, hours: float) -> None:
    """Moves every lot that many hours closer to its expiry."""
    async with database.begin() as connection:
        for table, key, column in TABLES:
            for row in (await connection.execute(select(table.c[key], table.c[column]))).all():
                if row[1] is not None:
                    earlier = {column: row[1] - timedelta(hours=hours)}
                    await connection.execute(update(table).where(table.c[key] == row[0]).values(**earlier))


async def lot(database: Database, user_id: int, points: int, hours: float, ref: str) -> None:
    """A grant of points that expire after that many hours."""
    expires = in_hours(hours)
    assert (await ledger.grant(database, user_id=user_id, points=points, ref=ref, expires=expires))[0]


async def remaining(database: Database) -> list[int]:
    """The points left in each lot, in the order of their creation."""
    async with database.read() as connection:
        return [
            int(row) for row in await connection.scalars(select(points_lots.c.remaining).order_by(points_lots.c.id))
        ]


async def all_lots(database: Database) -> list[Any]:
    async with database.read() as connection:
        return list(await connection.execute(select(points_lots).order_by(points_lots.c.id)))
