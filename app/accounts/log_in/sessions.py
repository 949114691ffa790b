"""Registers users, logs them in and out, and changes passwords. A session is an access token with a refresh token.

Who may not log in gets one answer for every reason, after the same work. A transaction that issues tokens locks the
user's row first. So a ban, a new password or a log-out of the same moment is either seen here, or ends the new tokens.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Row, bindparam, or_, select, update

from app.accounts.credentials import sign_token
from app.accounts.log_in.passwords import check_password, hash_password, needs_rehash, verify_password
from app.accounts.log_in.refresh_tokens import Client, FoundToken, end_family, find_token, issue_token, use_token
from app.accounts.log_in.totp import lock_user, use_code
from app.accounts.log_in.usernames import clean_username, read_user_id, username_key
from app.accounts.users import Then, add_user, invalidate_tokens
from app.database import Connection, Database, retry_on_conflict
from app.errors import (
    Forbidden,
    InvalidParameter,
    NotFound,
    RegistrationClosed,
    SecondFactorRequired,
    Unauthenticated,
    UsernameTaken,
)
from app.settings import Settings
from app.tables import users

WRONG_CREDENTIALS = "未登录: 用户名或密码错误"
WRONG_CODE = "未登录: 动态验证码错误或已使用"


@dataclass(frozen=True, slots=True)
class Session:
    """What a log-in gives. The refresh token of a cookie session is sent as a cookie only."""

    user_id: int
    access_token: str
    refresh_token: str
    expires_in: int
    is_cookie: bool


@dataclass(frozen=True, slots=True)
class VerifiedUser:
    """A user whose password was right, and the hash that it had then. `new_hash` replaces a hash of old parameters."""

    id: int
    password_hash: str
    has_second_factor: bool
    new_hash: str | None


@dataclass(frozen=True, slots=True)
class Profile:
    """What a user sees of the own account."""

    id: int
    username: str | None
    role: str
    created_at: datetime
    has_password: bool
    has_second_factor: bool


def require_own_log_in(settings: Settings) -> None:
    """Raises Forbidden where another service signs the tokens."""
    if settings.jwt_algorithm != "HS256":
        raise Forbidden("本平台由其他系统登录，此接口不可用")


async def register(
    database: Database,
    settings: Settings,
    *,
    username: str,
    password: str,
    client: Client,
    is_cookie: bool = False,
    then: Then | None = None,
) -> Session:
    """Creates a user with a password, and logs the user in. `then` joins the transaction.

    Raises RegistrationClosed, UsernameTaken and InvalidParameter.
    """
    require_own_log_in(settings)
    if not settings.is_registration_open:
        raise RegistrationClosed
    name = clean_username(username)
    check_password("password", password, name)
    if await _find(database, username_key(name), None) is not None:
        raise UsernameTaken
    password_hash = await hash_password(password, client.address)
    refresh_token = ""

    async def after_insert(connection: Connection, user_id: int) -> None:
        nonlocal refresh_token
        if then is not None:
            await then(connection, user_id)
        refresh_token = await issue_token(connection, user_id, client, is_cookie=is_cookie)

    user_id = await add_user(database, then=after_insert, username=name, password_hash=password_hash)
    return _session(settings, user_id, 0, refresh_token, is_cookie=is_cookie)


async def verify_log_in(database: Database, username: str, password: str, client: Client) -> VerifiedUser:
    """The user with this name, or with this id. Raises Unauthenticated with one text for every reason."""
    user = await _find(database, username_key(username), read_user_id(username))
    is_right = await verify_password(password, _hash_of(user), client.address)
    if user is None or not is_right or user.status != "active":
        raise Unauthenticated(WRONG_CREDENTIALS)
    new_hash = await hash_password(password, client.address) if needs_rehash(user.password_hash) else None
    return VerifiedUser(user.id, user.password_hash, user.totp_step is not None, new_hash)


@retry_on_conflict
async def begin_session(
    database: Database, settings: Settings, user: VerifiedUser, code: str | None, client: Client, *, is_cookie: bool
) -> Session:
    """Logs in a user whose password was verified. Raises SecondFactorRequired without a code that the user needs."""
    async with database.begin() as connection:
        row = await lock_user(connection, user.id)
        if row is None or row.status != "active" or row.password_hash != user.password_hash:
            raise Unauthenticated(WRONG_CREDENTIALS)
        if row.totp_step is not None:
            if code is None:
                raise SecondFactorRequired
            if not await use_code(connection, row, code):
                raise SecondFactorRequired(WRONG_CODE)
        if user.new_hash is not None:
            await connection.execute(update(users).where(users.c.id == row.id).values(password_hash=user.new_hash))
        refresh_token = await issue_token(connection, row.id, client, is_cookie=is_cookie)
    return _session(settings, user.id, row.token_version, refresh_token, is_cookie=is_cookie)


@retry_on_conflict
async def refresh(database: Database, settings: Settings, token: str, found: FoundToken, client: Client) -> Session:
    """New tokens for a refresh token, whose row is `found`. Raises Unauthenticated; the family may then have ended."""
    new_token = ""
    async with database.begin() as connection:
        row = await lock_user(connection, found.user_id)
        is_valid = row is not None and row.status == "active" and not _is_older(found, row)
        if row is not None and is_valid and await use_token(connection, token, client):
            new_token = await issue_token(
                connection, found.user_id, client, is_cookie=found.is_cookie, family=found.family
            )
    if row is None or not new_token:
        raise Unauthenticated
    return _session(settings, found.user_id, row.token_version, new_token, is_cookie=found.is_cookie)


def _is_older(found: FoundToken, user: Row[Any]) -> bool:
    """Whether the token was issued before all of the user's tokens were invalidated."""
    return user.tokens_valid_from is not None and found.created_at < user.tokens_valid_from


async def log_out(database: Database, token: str) -> None:
    """Ends the log-in to which this refresh token belongs. Nothing happens for an unknown token."""
    found = await find_token(database, token)
    if found is not None:
        await _end(database, found)


@retry_on_conflict
async def _end(database: Database, found: FoundToken) -> None:
    async with database.begin() as connection:
        await lock_user(connection, found.user_id)
        await end_family(connection, found.family)


@retry_on_conflict
async def log_out_everywhere(database: Database, user_id: int) -> None:
    """Ends every token of the user. API keys stay."""
    async with database.begin() as connection:
        await invalidate_tokens(connection, user_id)


async def change_password(
    database: Database,
    settings: Settings,
    user_id: int,
    *,
    old: str,
    new: str,
    client: Client,
    is_cookie: bool = False,
) -> Session:
    """Changes the password, ends every token of the user, and begins a new session.

    Raises InvalidParameter for a wrong old password, and for a new one that is not allowed.
    """
    require_own_log_in(settings)
    user = await _find(database, None, user_id)
    check_password("newPassword", new, None if user is None else user.username)
    if not await verify_password(old, _hash_of(user), client.address):
        raise InvalidParameter("oldPassword", "不正确，或该用户未设置密码")
    password_hash = await hash_password(new, client.address)
    return await _replace_password(
        database, settings, user_id, _hash_of(user), password_hash, client, is_cookie=is_cookie
    )


@retry_on_conflict
async def _replace_password(
    database: Database,
    settings: Settings,
    user_id: int,
    old_hash: str | None,
    new_hash: str,
    client: Client,
    *,
    is_cookie: bool,
) -> Session:
    async with database.begin() as connection:
        row = await lock_user(connection, user_id)
        if row is None or row.status != "active" or row.password_hash != old_hash:
            raise InvalidParameter("oldPassword", "不正确，或该用户未设置密码")
        await _store_password(connection, user_id, new_hash)
        await invalidate_tokens(connection, user_id)
        refresh_token = await issue_token(connection, user_id, client, is_cookie=is_cookie)
    return _session(settings, user_id, row.token_version + 1, refresh_token, is_cookie=is_cookie)


async def set_password(
    database: Database, user_id: int, password: str, *, keeps_tokens: bool = False, then: Then | None = None
) -> None:
    """Sets a password in place of any other. For operators. `then` runs in the same transaction. Raises NotFound.

    It ends every token of the user, unless it `keeps_tokens`.
    """
    user = await _find(database, None, user_id)
    if user is None:
        raise NotFound("用户不存在")
    check_password("password", password, user.username)
    await _set_password(database, user_id, await hash_password(password, ""), keeps_tokens=keeps_tokens, then=then)


@retry_on_conflict
async def _set_password(
    database: Database, user_id: int, password_hash: str, *, keeps_tokens: bool, then: Then | None
) -> None:
    async with database.begin() as connection:
        await lock_user(connection, user_id)
        await _store_password(connection, user_id, password_hash)
        if not keeps_tokens:
            await invalidate_tokens(connection, user_id)
        if then is not None:
            await then(connection, user_id)


async def _store_password(connection: Connection, user_id: int, password_hash: str) -> None:
    await connection.execute(update(users).where(users.c.id == user_id).values(password_hash=password_hash))


async def get_profile(database: Database, user_id: int) -> Profile:
    """Raises NotFound."""
    user = await _find(database, None, user_id)
    if user is None:
        raise NotFound("用户不存在")
    has = {"has_password": user.password_hash is not None, "has_second_factor": user.totp_step is not None}
    return Profile(user.id, user.username, user.role, user.created_at, **has)


def _session(settings: Settings, user_id: int, version: int, refresh_token: str, *, is_cookie: bool) -> Session:
    hours = settings.jwt_access_minutes / 60
    access_token = sign_token(settings, user_id, hours=hours, version=version)
    return Session(user_id, access_token, refresh_token, settings.jwt_access_minutes * 60, is_cookie)


async def _find(database: Database, key: str | None, user_id: int | None) -> Row[*tuple[Any, ...]] | None:
    """The user with this username key. If there is none, the user with this id."""
    async with database.read() as connection:
        row: Row[*tuple[Any, ...]] | None = (await connection.execute(_FIND, {"key": key, "user": user_id})).first()
    return row


def _hash_of(user: Row[*tuple[Any, ...]] | None) -> str | None:
    return None if user is None else user.password_hash


_FIND = (
    select(
        users.c.id,
        users.c.username,
        users.c.role,
        users.c.status,
        users.c.password_hash,
        users.c.totp_step,
        users.c.created_at,
    )
    .where(or_(users.c.username_key == bindparam("key"), users.c.id == bindparam("user")))
    .order_by((users.c.username_key == bindparam("key")).desc())
    .limit(1)
)
