"""Users: create, provision, ban. A user's points live in the ledger, not here."""

from sqlalchemy import insert, select, update

from app.accounts.credentials import MAX_USER_ID
from app.database import Connection, Database, UniqueViolation, insert_ignore, retry_on_conflict, utc_now
from app.errors import InvalidParameter, NotFound
from app.tables import users

MAX_NAME_LENGTH = 64
MAX_NEW_ID = 2**53 - 1  # JavaScript reads ids up to here exactly; imported ones may lie above


@retry_on_conflict
async def create_user(
    database: Database, *, user_id: int | None = None, username: str | None = None, admin: bool = False
) -> int:
    """A new user's id; `user_id` imports one as it is. InvalidParameter where id or name is taken or unusable."""
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
        taken = "username" if "username" in error.text else "id"
        raise InvalidParameter(taken, "已存在") from error
    return user_id


async def _next_id(connection: Connection) -> int:
    """One past the highest id below 2^53: an imported giant must not push new ids out of JavaScript's reach."""
    highest = select(users.c.id).where(users.c.id < MAX_NEW_ID).order_by(users.c.id.desc()).limit(1)
    return int(await connection.scalar(highest.with_for_update()) or 0) + 1


@retry_on_conflict
async def provision(database: Database, user_id: int) -> None:
    """The row of a valid but unknown subject (`JWT_AUTO_PROVISION`). Repeating is harmless."""
    async with database.begin() as connection:
        statement = insert_ignore(connection.dialect.name, users, "id")
        await connection.execute(statement.values(id=user_id, created_at=utc_now()))


@retry_on_conflict
async def set_status(database: Database, user_id: int, status: str) -> None:
    """`active` or `banned`. A ban voids every token issued so far; NotFound for an unknown user."""
    values = {"status": status, "tokens_valid_from": utc_now()} if status == "banned" else {"status": status}
    async with database.begin() as connection:
        changed = await connection.execute(update(users).where(users.c.id == user_id).values(**values))
        if not changed.rowcount:
            raise NotFound("用户不存在")


async def find_user_id(database: Database, username: str) -> int | None:
    async with database.read() as connection:
        return await connection.scalar(select(users.c.id).where(users.c.username == username))


async def user_exists(database: Database, user_id: int) -> bool:
    async with database.read() as connection:
        return await connection.scalar(select(users.c.id).where(users.c.id == user_id)) is not None
