"""Expires lots whose time is over, one transaction per user. A run may stop, repeat, or overlap with another run."""

from dataclasses import asdict, dataclass

import structlog
from sqlalchemy import bindparam, select

from app.database import Database, UniqueViolation, utc_now
from app.points import ledger
from app.tables import points_accounts as accounts

log = structlog.get_logger()

BATCH_SIZE = 200


@dataclass(slots=True)
class ExpiryResult:
    """Counts of one run. `failed_users` have an inconsistent ledger; the audit shows why."""

    users: int = 0
    lots: int = 0
    points: int = 0
    failed_users: int = 0


async def expire_lots(database: Database, *, batch_size: int = BATCH_SIZE) -> ExpiryResult:
    """Expires all lots that are due by the database's clock. It counts only the lots that this run expired."""
    result, last_user_id = ExpiryResult(), 0
    while user_ids := await _find_due_users(database, last_user_id, batch_size):
        for user_id in user_ids:
            await _expire_user(database, user_id, result)
        last_user_id = user_ids[-1]
    if result != ExpiryResult():
        log.info("lots_expired", **asdict(result))
    return result


async def _find_due_users(database: Database, last_user_id: int, limit: int) -> list[int]:
    async with database.read() as connection:
        return list(await connection.scalars(_DUE_USERS.limit(limit), {"last_user_id": last_user_id}))


async def _expire_user(database: Database, user_id: int, result: ExpiryResult) -> None:
    """Expires the lots of one user. An inconsistent ledger of one user must not stop the others."""
    try:
        lot_points = await ledger.expire_account(database, user_id)
    except (ledger.LedgerInconsistency, UniqueViolation) as error:
        result.failed_users += 1
        log.error("expiry_failed", user_id=user_id, error=str(error)[:200])
        return
    result.users += bool(lot_points)
    result.lots += len(lot_points)
    result.points += sum(lot_points)


_DUE_USERS = (
    select(accounts.c.user_id)
    .where(accounts.c.next_expiry <= utc_now(), accounts.c.user_id > bindparam("last_user_id"))
    .order_by(accounts.c.user_id)
)
