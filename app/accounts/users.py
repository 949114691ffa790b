"""Creates, provisions, finds and bans users."""

import secrets

from sqlalchemy import insert, select, update

from app.accounts.credentials import MAX_USER_ID
from app.database import Connection, Database, UniqueViolation, insert_ignore, retry_on_conflict, utc_now
from app.errors import InvalidParameter, NotFound, Unavailable
from app.tables import users

MAX_NAME_LENGTH = 64
MAX_OWN_ID = 10**12
"""The ids that the gateway chooses are at most this. Imported ids may be larger, up to MAX_USER_ID."""
MAX_DRAWS = 40
MAX_SPREAD = 1024


async def create_user(
    database: Database, *, user_id: int | None = None, username: str | None = None, admin: bool = False
) -> int:
    """Creates a user and returns the id. `user_id` imports a user with that id.

    Raises InvalidParameter if the id or the name is taken or not valid.
    """
    if user_id is not None and not 0 < user_id <= MAX_USER_ID:
        raise InvalidParameter("id", f"必须在 1 到 {MAX_USER_ID} 之间")
    if username is not None and not (username == username.strip() and 0 < len(username) <= MAX_NAME_LENGTH):
        raise InvalidParameter("username", "不能为空、首尾不能有空格且最多 64 个字符")
    for draw in range(MAX_DRAWS):
        try:
            return await _insert_user(database, user_id, draw, username=username, role="admin" if admin else "user")
        except UniqueViolation as error:
            if "username" in error.text:
                raise InvalidParameter("username", "已存在") from error
            if user_id is not None:
                raise InvalidParameter("id", "已存在") from error
    raise Unavailable


@retry_on_conflict
async def _insert_user(database: Database, user_id: int | None, draw: int, **columns: str | None) -> int:
    async with database.begin() as connection:
        new_id = user_id or await _draw_id(connection, draw)
        await connection.execute(insert(users).values(id=new_id, created_at=utc_now(), **columns))
    return new_id


async def _draw_id(connection: Connection, draw: int) -> int:
    """An id that is probably free: the next one, and after a collision one of the next `2**draw` or MAX_SPREAD.

    Several processes may draw the same id at the same moment; one of them gets it, and the others draw again. If an
    imported user has the last id of the range, any id of the range is drawn.
    """
    newest = await connection.scalar(_NEWEST_OWN_ID)
    new_id = int(newest or 0) + 1 + secrets.randbelow(min(2**draw, MAX_SPREAD))
    return new_id if new_id <= MAX_OWN_ID else 1 + secrets.randbelow(MAX_OWN_ID)


@retry_on_conflict
async def provision(database: Database, user_id: int) -> None:
    """Creates the user of a valid token (`JWT_AUTO_PROVISION`). Keeps an existing user."""
    async with database.begin() as connection:
        statement = insert_ignore(connection.dialect.name, users, "id")
        await connection.execute(statement.values(id=user_id, created_at=utc_now()))


@retry_on_conflict
async def set_status(database: Database, user_id: int, status: str) -> None:
    """Sets the status to `active` or `banned`. A ban invalidates every token issued so far.

    Raises NotFound for an unknown user.
    """
    values = {"status": status, "tokens_valid_from": utc_now()} if status == "banned" else {"status": status}
    async with database.begin() as connection:
        updated = await connection.execute(update(users).where(users.c.id == user_id).values(**values))
        if not updated.rowcount:
            raise NotFound("用户不存在")


async def find_user_id(database: Database, username: str) -> int | None:
    async with database.read() as connection:
        return await connection.scalar(select(users.c.id).where(users.c.username == username))


async def user_exists(database: Database, user_id: int) -> bool:
    async with database.read() as connection:
        return await connection.scalar(select(users.c.id).where(users.c.id == user_id)) is not None


_NEWEST_OWN_ID = select(users.c.id).where(users.c.id <= MAX_OWN_ID).order_by(users.c.id.desc()).limit(1)
