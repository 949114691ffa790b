"""Sweeps lapsed lots: one user a transaction, so that it may be stopped anywhere, repeated, and run twice at once."""

from dataclasses import dataclass

import structlog
from sqlalchemy import bindparam, select

from app.database import Database, UniqueViolation, utc_now
from app.points import ledger
from app.tables import points_accounts as accounts

log = structlog.get_logger()

BATCH = 200


@dataclass(slots=True)
class ExpiryResult:
    """What one run ended. `stuck` are users whose books refused: the audit says why."""

    users: int = 0
    lots: int = 0
    points: int = 0
    stuck: int = 0


async def expire_lots(database: Database, *, batch: int = BATCH) -> ExpiryResult:
    """Ends all lots whose time is over by the database's clock. What submits or another run ended is not counted."""
    swept, last = ExpiryResult(), 0
    while users := await _due(database, last, batch):
        for user_id in users:
            await _sweep(database, user_id, swept)
        last = users[-1]
    if swept.users or swept.stuck:
        log.info("lots_expired", users=swept.users, lots=swept.lots, points=swept.points, stuck=swept.stuck)
    return swept


async def _due(database: Database, last: int, batch: int) -> list[int]:
    async with database.read() as connection:
        return list(await connection.scalars(_DUE.limit(batch), {"last": last}))


async def _sweep(database: Database, user_id: int, swept: ExpiryResult) -> None:
    """One user whose books are wrong must not keep the others' points alive."""
    try:
        ended = await ledger.expire_account(database, user_id)
    except (ledger.LedgerInconsistency, UniqueViolation) as error:
        swept.stuck += 1
        log.error("expiry_refused", user_id=user_id, error=str(error)[:200])
        return
    swept.users += bool(ended)
    swept.lots += len(ended)
    swept.points += sum(ended)


_DUE = (
    select(accounts.c.user_id)
    .where(accounts.c.next_expiry <= utc_now(), accounts.c.user_id > bindparam("last"))
    .order_by(accounts.c.user_id)
)
