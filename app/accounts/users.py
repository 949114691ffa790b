"""Users: create, provision, ban. A user's points live in the ledger, not here."""

from sqlalchemy import insert, select, update

from app.accounts.credentials import HIGHEST_USER_ID
from app.database import DuplicateRow, Session, Sessions, insert_if_absent, repeat_on_conflict, utc_now
from app.errors import InvalidParameter, NotFound
from app.tables import users

LONGEST_NAME = 64
HIGHEST_NEW_ID = 2**53 - 1  # JavaScript reads ids up to here exactly; imported ones may lie above


@repeat_on_conflict
async def create_user(
    sessions: Sessions, *, user_id: int | None = None, username: str | None = None, admin: bool = False
) -> int:
    """A new user's id; `user_id` imports one as it is. InvalidParameter where id or name is taken or unusable."""
    if user_id is not None and not 0 < user_id <= HIGHEST_USER_ID:
        raise InvalidParameter("id", f"必须在 1 到 {HIGHEST_USER_ID} 之间")
    if username is not None and not (username == username.strip() and 0 < len(username) <= LONGEST_NAME):
        raise InvalidParameter("username", "不能为空、首尾不能有空格且最多 64 个字符")
    row = {"username": username, "role": "admin" if admin else "user"}
    try:
        async with sessions.begin() as session:
            if user_id is None:
                user_id = await _next_id(session)
            await session.execute(insert(users).values(id=user_id, created_at=utc_now(), **row))
    except DuplicateRow as error:
        taken = "username" if "username" in error.text else "id"
        raise InvalidParameter(taken, "已存在") from error
    return user_id


async def _next_id(session: Session) -> int:
    """One past the highest id below 2^53: an imported giant must not push new ids out of JavaScript's reach."""
    highest = select(users.c.id).where(users.c.id < HIGHEST_NEW_ID).order_by(users.c.id.desc()).limit(1)
    return int(await session.scalar(highest.with_for_update()) or 0) + 1


@repeat_on_conflict
async def provision(sessions: Sessions, user_id: int) -> None:
    """The row of a valid but unknown subject (`JWT_AUTO_PROVISION`). Repeating is harmless."""
    async with sessions.begin() as session:
        statement = insert_if_absent(session.dialect.name, users, "id")
        await session.execute(statement.values(id=user_id, created_at=utc_now()))


@repeat_on_conflict
async def set_status(sessions: Sessions, user_id: int, status: str) -> None:
    """`active` or `banned`. A ban voids every token issued so far; NotFound for an unknown user."""
    values = {"status": status, "tokens_valid_from": utc_now()} if status == "banned" else {"status": status}
    async with sessions.begin() as session:
        changed = await session.execute(update(users).where(users.c.id == user_id).values(**values))
        if not changed.rowcount:
            raise NotFound("用户不存在")


async def find_user_id(sessions: Sessions, username: str) -> int | None:
    async with sessions.read() as session:
        return await session.scalar(select(users.c.id).where(users.c.username == username))


async def user_exists(sessions: Sessions, user_id: int) -> bool:
    async with sessions.read() as session:
        return await session.scalar(select(users.c.id).where(users.c.id == user_id)) is not None
