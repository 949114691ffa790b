"""What a user reads of their points."""

from dataclasses import dataclass

from sqlalchemy import bindparam, select

from app.database import Sessions
from app.tables import points_accounts


@dataclass(frozen=True, slots=True)
class Balance:
    """`available` can be spent now; `held` belongs to tasks still running."""

    available: int
    held: int


async def get_balance(sessions: Sessions, user_id: int) -> Balance:
    """The newest committed balance, from any process; zeros for a user who never had points."""
    async with sessions.read() as session:
        row = (await session.execute(_ACCOUNT, {"user": user_id})).one_or_none()
    return Balance(0, 0) if row is None else Balance(row.available, row.held)


_ACCOUNT = select(points_accounts.c.available, points_accounts.c.held).where(
    points_accounts.c.user_id == bindparam("user")
)
