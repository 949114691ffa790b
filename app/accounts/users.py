"""Creates, provisions, finds and bans users."""

from sqlalchemy import insert, select, update

from app.accounts.credentials import MAX_USER_ID
from app.database import Connection, Database, UniqueViolation, insert_ignore, retry_on_conflict, utc_now
from app.errors import InvalidParameter, NotFound
from app.tables import users

MAX_NAME_LENGTH = 64
MAX_NEW_ID = 2**53 - 1  # JavaScript reads integers exactly up to here; imported ids may be larger


@retry_on_conflict
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
    row = {"username": username, "role": "admin" if admin else "user"}
    try:
        async with database.begin() as connection:
            if user_id is None:
                user_id = await _next_id(connection)
            await connection.execute(insert(users).values(id=user_id, created_at=utc_now(), **row))
    except UniqueViolation as error:
        field = "username" if "username" in error.text else "id"
        raise InvalidParameter(field, "已存在") from error
    return user_id


async def _next_id(connection: Connection) -> int:
    """The highest id below 2^53, plus one. A larger imported id must not push new ids beyond JavaScript's integers."""
    highest_id = select(users.c.id).where(users.c.id < MAX_NEW_ID).order_by(users.c.id.desc()).limit(1)
    return int(await connection.scalar(highest_id.with_for_update()) or 0) + 1


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
