"""Creates, provisions, finds and bans users."""

import secrets
from collections.abc import Awaitable, Callable

from sqlalchemy import insert, select, update

from app.accounts.credentials import MAX_USER_ID
from app.accounts.log_in.refresh_tokens import end_families
from app.accounts.log_in.usernames import username_key
from app.database import Connection, Database, UniqueViolation, insert_ignore, retry_on_conflict, utc_now
from app.errors import InvalidParameter, NotFound, Unavailable, UsernameTaken
from app.tables import users

Then = Callable[[Connection, int], Awaitable[None]]
"""What is done for a new user in the transaction that creates it."""

MAX_NAME_LENGTH = 64
MAX_KEY_LENGTH = 191
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
    check_new_user(user_id, username)
    try:
        return await add_user(database, user_id=user_id, username=username, role="admin" if admin else "user")
    except UsernameTaken as error:
        raise InvalidParameter("username", "已存在") from error


def check_new_user(user_id: int | None, username: str | None) -> None:
    """Raises InvalidParameter if the id or the name is not valid."""
    if user_id is not None and not 0 < user_id <= MAX_USER_ID:
        raise InvalidParameter("id", f"必须在 1 到 {MAX_USER_ID} 之间")
    if username is not None and not (username == username.strip() and 0 < len(username) <= MAX_NAME_LENGTH):
        raise InvalidParameter("username", "不能为空、首尾不能有空格且最多 64 个字符")
    if username is not None and len(username_key(username)) > MAX_KEY_LENGTH:
        raise InvalidParameter("username", "过长")


async def add_user(
    database: Database, *, user_id: int | None = None, then: Then | None = None, **columns: str | None
) -> int:
    """Inserts a user with these columns, and calls `then` in the same transaction. Returns the id.

    Raises UsernameTaken for a name that looks like another user's, and InvalidParameter for an id that is taken.
    """
    for draw in range(MAX_DRAWS):
        try:
            return await _add_user(database, user_id, draw, then, **columns)
        except UniqueViolation as error:
            raise_taken(error, user_id)
    raise Unavailable


def raise_taken(error: UniqueViolation, user_id: int | None) -> None:
    """Raises UsernameTaken or InvalidParameter for a name or id that is taken. Returns if another id may be drawn."""
    if "username" in error.text:
        raise UsernameTaken from error
    if user_id is not None:
        raise InvalidParameter("id", "已存在") from error


@retry_on_conflict
async def _add_user(
    database: Database, user_id: int | None, draw: int, then: Then | None, **columns: str | None
) -> int:
    async with database.begin() as connection:
        new_id = await insert_user(connection, user_id, draw, **columns)
        if then is not None:
            await then(connection, new_id)
    return new_id


async def insert_user(connection: Connection, user_id: int | None, draw: int, **columns: str | None) -> int:
    """Inserts a user and returns the id. Raises UniqueViolation; after it `raise_taken` says whether to draw again."""
    username = columns.get("username")
    columns["username_key"] = None if username is None else username_key(username)
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


async def write_status(connection: Connection, user_id: int, status: str) -> None:
    """Sets the status to `active` or `banned`. A ban ends the user's JWTs and log-ins, so that an unban revives none.

    Raises NotFound for an unknown user.
    """
    updated = await connection.execute(update(users).where(users.c.id == user_id).values(status=status))
    if not updated.rowcount:
        raise NotFound("用户不存在")
    if status == "banned":
        await invalidate_tokens(connection, user_id)


async def invalidate_tokens(connection: Connection, user_id: int) -> None:
    """Ends every JWT and refresh token that the user has. API keys stay.

    The version decides about our own JWTs, so one of the same moment is valid. JWTs of other services have no version:
    the time decides about them.
    """
    values = {"token_version": users.c.token_version + 1, "tokens_valid_from": utc_now()}
    await connection.execute(update(users).where(users.c.id == user_id).values(**values))
    await end_families(connection, user_id)


async def get_token_version(database: Database, user_id: int) -> int:
    """The version that a new JWT of the user must have. Raises NotFound."""
    async with database.read() as connection:
        version = await connection.scalar(select(users.c.token_version).where(users.c.id == user_id))
    if version is None:
        raise NotFound("用户不存在")
    return int(version)


async def find_user_id(database: Database, username: str) -> int | None:
    async with database.read() as connection:
        return await connection.scalar(select(users.c.id).where(users.c.username == username))


async def user_exists(database: Database, user_id: int) -> bool:
    async with database.read() as connection:
        return await connection.scalar(select(users.c.id).where(users.c.id == user_id)) is not None


_NEWEST_OWN_ID = select(users.c.id).where(users.c.id <= MAX_OWN_ID).order_by(users.c.id.desc()).limit(1)
