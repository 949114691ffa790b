"""The API keys of a user: create, list, change, rotate and revoke. The database stores only digests of keys.

A key that replaces another one by rotation shares its budget. Locks are taken in the order user, account, key, budget.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Row, and_, func, insert, or_, select, update

from app.accounts.credentials import PREFIX_LENGTH, digest_key, new_api_key
from app.accounts.keys.budgets import create_budget, ensure_budget
from app.accounts.keys.caps import Caps
from app.accounts.keys.scopes import KEY_SCOPES
from app.database import Connection, Database, retry_on_conflict, utc_now
from app.errors import InvalidParameter, NotFound
from app.tables import api_keys, key_budgets, points_accounts, users

MAX_NAME_LENGTH = 100
MAX_KEYS = 100
"""Of one user, without expired and revoked ones."""
MAX_OVERLAP_HOURS = 168
MAX_EXPIRY = datetime(9999, 1, 1, tzinfo=UTC)  # in any time zone it is still a valid date

KeyRow = Row[*tuple[Any, ...]]
"""The columns of a key but for its digest, those of its budget, and `now`. A key without a budget has None there."""


@dataclass(frozen=True, slots=True)
class NewKey:
    """What a new key may do. None: no bound."""

    name: str = ""
    scopes: tuple[str, ...] = KEY_SCOPES
    models: list[str] | None = None
    addresses: list[str] | None = None
    expires_at: datetime | None = None
    caps: Caps = field(default_factory=Caps)
    end_user_caps: Caps = field(default_factory=Caps)


@retry_on_conflict
async def create_key(
    database: Database, user_id: int, new: NewKey, *, may_be_expired: bool = False
) -> tuple[str, KeyRow]:
    """The key, which cannot be read again, and its row. Raises InvalidParameter."""
    if len(new.name) > MAX_NAME_LENGTH:
        raise InvalidParameter("name", f"最多 {MAX_NAME_LENGTH} 个字符")
    async with database.begin() as connection:
        now = await _lock_user(connection, user_id)
        if not may_be_expired:
            _check_expiry(new.expires_at, now)
        await _check_number(connection, user_id)
        columns = {
            "name": new.name,
            "scopes": list(new.scopes),
            "models": new.models,
            "addresses": new.addresses,
            "expires_at": new.expires_at,
            "budget_id": await create_budget(connection, user_id, new.caps, new.end_user_caps),
        }
        api_key, key_id = await _insert(connection, user_id, columns)
        return api_key, await _read(connection, user_id, key_id)


async def list_keys(
    database: Database, user_id: int, *, with_revoked: bool, page: int, size: int
) -> tuple[list[KeyRow], int]:
    """One page, newest first, and the number of all."""
    mine = api_keys.c.user_id == user_id
    if not with_revoked:
        mine &= api_keys.c.revoked_at.is_(None)
    async with database.read_list(user_id) as connection:
        total = await connection.scalar(select(func.count()).select_from(api_keys).where(mine))
        shown = _KEYS.where(mine).order_by(api_keys.c.id.desc()).limit(size).offset((page - 1) * size)
        return list(await connection.execute(shown)), int(total or 0)


async def get_key(database: Database, user_id: int, key_id: int) -> KeyRow:
    """Raises NotFound where it is not this user's key."""
    async with database.read() as connection:
        return await _read(connection, user_id, key_id)


@retry_on_conflict
async def change_key(
    database: Database, user_id: int, key_id: int, columns: Mapping[str, Any], caps: Mapping[str, int | None]
) -> KeyRow:
    """Changes the given columns of the key, and of the budget that it may share. An expired key may live again.

    Raises NotFound and InvalidParameter.
    """
    async with database.begin() as connection:
        now = await _lock_user(connection, user_id)
        await connection.execute(_ACCOUNT.where(points_accounts.c.user_id == user_id))
        row = await _read_usable(connection, user_id, key_id)
        if "expires_at" in columns:
            _check_expiry(columns["expires_at"], now)
            if _is_expired(row):
                await _check_number(connection, user_id)
        budget_id = await ensure_budget(connection, key_id)
        if columns:
            await connection.execute(update(api_keys).where(api_keys.c.id == key_id).values(**columns))
        if caps:
            await connection.execute(
                update(key_budgets).where(key_budgets.c.id == budget_id).values(updated_at=utc_now(), **caps)
            )
        return await _read(connection, user_id, key_id)


@retry_on_conflict
async def rotate_key(database: Database, user_id: int, key_id: int, overlap_hours: int) -> tuple[str, KeyRow, KeyRow]:
    """The new key, its row, and the row of the old one, which is valid for so many hours more; 0: revoked at once.

    The new key has the rights, the expiry and the budget of the old one. Raises NotFound, and InvalidParameter if the
    old key is not valid any more or has been replaced already.
    """
    async with database.begin() as connection:
        now = await _lock_user(connection, user_id)
        await connection.execute(_ACCOUNT.where(points_accounts.c.user_id == user_id))
        old = await _read_usable(connection, user_id, key_id)
        if _is_expired(old):
            raise InvalidParameter("id", "该密钥已过期，请新建密钥")
        budget_id = await ensure_budget(connection, key_id)
        is_newer = and_(api_keys.c.budget_id == budget_id, api_keys.c.id > key_id, api_keys.c.revoked_at.is_(None))
        if await connection.scalar(select(api_keys.c.id).where(api_keys.c.user_id == user_id, is_newer).limit(1)):
            raise InvalidParameter("id", "该密钥已被更换，请更换新的密钥")
        if overlap_hours:
            await _check_number(connection, user_id)
            until = now + timedelta(hours=overlap_hours)
            ends = {"expires_at": until if old.expires_at is None else min(old.expires_at, until)}
        else:
            ends = {"revoked_at": now}
        await connection.execute(update(api_keys).where(api_keys.c.id == key_id).values(**ends))
        columns = {name: getattr(old, name) for name in ("name", "scopes", "models", "addresses", "expires_at")}
        api_key, new_id = await _insert(connection, user_id, columns | {"budget_id": budget_id})
        return api_key, await _read(connection, user_id, new_id), await _read(connection, user_id, key_id)


@retry_on_conflict
async def revoke_key(database: Database, user_id: int, key_id: int) -> KeyRow:
    """Revokes the key at once, in every process. A repeat changes nothing. Raises NotFound."""
    async with database.begin() as connection:
        is_valid = and_(api_keys.c.id == key_id, api_keys.c.user_id == user_id, api_keys.c.revoked_at.is_(None))
        await connection.execute(update(api_keys).where(is_valid).values(revoked_at=utc_now()))
        return await _read(connection, user_id, key_id)


async def _lock_user(connection: Connection, user_id: int) -> datetime:
    """Changes of one user's keys run one after the other. Returns the database's time."""
    await connection.execute(select(users.c.id).where(users.c.id == user_id).with_for_update())
    return (await connection.execute(select(utc_now()))).scalar_one()


async def _check_number(connection: Connection, user_id: int) -> None:
    is_alive = and_(
        api_keys.c.user_id == user_id,
        api_keys.c.revoked_at.is_(None),
        or_(api_keys.c.expires_at.is_(None), api_keys.c.expires_at > utc_now()),
    )
    number = await connection.scalar(select(func.count()).select_from(api_keys).where(is_alive))
    if int(number or 0) >= MAX_KEYS:
        raise InvalidParameter("密钥", f"最多 {MAX_KEYS} 个有效的，请先吊销不用的密钥")


def _check_expiry(expires_at: datetime | None, now: datetime) -> None:
    if expires_at is not None and not now < expires_at < MAX_EXPIRY:
        raise InvalidParameter("expireTime", "须晚于当前时间，早于 9999 年")


async def _insert(connection: Connection, user_id: int, columns: dict[str, Any]) -> tuple[str, int]:
    api_key = new_api_key()
    made = await connection.execute(
        insert(api_keys).values(
            user_id=user_id,
            digest=digest_key(api_key),
            prefix=api_key[:PREFIX_LENGTH],
            created_at=utc_now(),
            **columns,
        )
    )
    return api_key, int(made.lastrowid)


async def _read(connection: Connection, user_id: int, key_id: int) -> KeyRow:
    row = (await connection.execute(_KEYS.where(api_keys.c.id == key_id, api_keys.c.user_id == user_id))).one_or_none()
    if row is None:
        raise NotFound("密钥不存在")
    return row


async def _read_usable(connection: Connection, user_id: int, key_id: int) -> KeyRow:
    """Locks the key. Raises NotFound, and InvalidParameter for a revoked key."""
    await connection.execute(
        select(api_keys.c.id).where(api_keys.c.id == key_id, api_keys.c.user_id == user_id).with_for_update()
    )
    row = await _read(connection, user_id, key_id)
    if row.revoked_at is not None:
        raise InvalidParameter("id", "该密钥已吊销，不能修改或更换")
    return row


def _is_expired(row: KeyRow) -> bool:
    return row.expires_at is not None and row.expires_at <= row.now


_ACCOUNT = select(points_accounts.c.user_id).with_for_update()
_KEYS = select(
    api_keys.c.id,
    api_keys.c.prefix,
    api_keys.c.name,
    api_keys.c.scopes,
    api_keys.c.models,
    api_keys.c.addresses,
    api_keys.c.budget_id,
    api_keys.c.expires_at,
    api_keys.c.last_used_at,
    api_keys.c.revoked_at,
    api_keys.c.created_at,
    *[column for column in key_budgets.c if column.name not in {"id", "user_id", "updated_at"}],
    utc_now().label("now"),
).outerjoin(key_budgets, key_budgets.c.id == api_keys.c.budget_id)
