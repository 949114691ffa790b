"""Redeem codes: creates batches of codes, lists and voids them, and redeems each code once.

The database stores only digests. One transaction marks the code as redeemed and grants its points. The same user may
redeem a code again, for example after a lost response: the result is the same, and no points are granted again.
"""

import hashlib
import secrets
import unicodedata
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from sqlalchemy import BindParameter, Row, RowMapping, bindparam, case, func, insert, or_, select, true, update

from app.database import CommitUnknown, Connection, Database, retry_on_conflict, utc_now
from app.errors import CodeNotRedeemable, InvalidParameter, NotFound
from app.points import ledger
from app.points.limits import MAX_CODES_PER_BATCH, MAX_LOT_DAYS
from app.tables import redeem_codes as codes

ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # Crockford's Base32: 5 bits per character, no look-alikes
GROUP_COUNT, GROUP_LENGTH = 5, 5  # 125 random bits; lists show the first group, so 100 bits stay secret
LOOKALIKES = str.maketrans("OIL", "011")
MAX_BATCH_LENGTH = 64
MAX_CODE_LENGTH = 100  # as a caller may write it, with separators
INSERT_CHUNK = 500
STATUSES = ("unused", "redeemed", "expired", "void")


def new_code() -> str:
    """A random code `XXXXX-XXXXX-XXXXX-XXXXX-XXXXX`."""
    return "-".join("".join(secrets.choice(ALPHABET) for _ in range(GROUP_LENGTH)) for _ in range(GROUP_COUNT))


def digest_code(code: str) -> str | None:
    """SHA-256 in hex of the normalized code; None if it is not a code.

    Case, character width, grouping and look-alike letters make no difference.
    """
    if len(code) > MAX_CODE_LENGTH:
        return None
    characters = unicodedata.normalize("NFKC", code).upper()
    normalized = "".join(letter for letter in characters if letter.isalnum()).translate(LOOKALIKES)
    if len(normalized) != GROUP_COUNT * GROUP_LENGTH or not set(normalized) <= set(ALPHABET):
        return None
    return hashlib.sha256(normalized.encode()).hexdigest()


@retry_on_conflict
async def create_codes(
    database: Database,
    *,
    count: int,
    points: int,
    batch: str,
    expires: datetime | None = None,
    lot_days: int | None = None,
) -> list[str]:
    """Creates codes and returns them. The clear text cannot be read again. `expires` is the expiry of the codes."""
    async with database.begin() as connection:
        return await insert_codes(
            connection, count=count, points=points, batch=batch, expires=expires, lot_days=lot_days
        )


async def insert_codes(
    connection: Connection,
    *,
    count: int,
    points: int,
    batch: str,
    expires: datetime | None = None,
    lot_days: int | None = None,
) -> list[str]:
    """The same in the caller's transaction."""
    if not 0 < count <= MAX_CODES_PER_BATCH:
        raise InvalidParameter("count", f"须为 1 到 {MAX_CODES_PER_BATCH}")
    if not 0 < points <= ledger.MAX_POINTS:
        raise InvalidParameter("points", "须为正整数")
    if not batch or batch != batch.strip() or len(batch) > MAX_BATCH_LENGTH:
        raise InvalidParameter("batch", f"不能为空、首尾不能有空格且最多 {MAX_BATCH_LENGTH} 个字符")
    if lot_days is not None and not 0 < lot_days <= MAX_LOT_DAYS:
        raise InvalidParameter("lot_days", f"须为 1 到 {MAX_LOT_DAYS}")
    new_codes = [new_code() for _ in range(count)]
    shared = {"batch": batch, "points": points, "lot_days": lot_days, "expires_at": expires}
    rows = [{"digest": digest_code(code), "prefix": code[:GROUP_LENGTH], **shared} for code in new_codes]
    if expires is not None:
        await ledger.check_expiry(connection, expires)
    for start in range(0, count, INSERT_CHUNK):
        await connection.execute(insert(codes).values(created_at=utc_now()), rows[start : start + INSERT_CHUNK])
    return new_codes


async def list_codes(database: Database, batch: str | None = None, *, limit: int) -> tuple[list[dict[str, Any]], int]:
    """The newest codes of one batch or of all, and the total number. A row holds only the first group of the code."""
    condition = codes.c.batch == batch if batch is not None else true()
    async with database.read() as connection:
        total = int(await connection.scalar(select(func.count()).select_from(codes).where(condition)) or 0)
        rows = await connection.execute(_LIST.where(condition).limit(limit))
        return [dict(row._mapping) for row in rows], total


async def list_batches(database: Database, *, page: int, size: int) -> tuple[list[dict[str, Any]], int]:
    """One page of batches, the newest first, with the number of codes in each state; and the number of batches."""
    async with database.read() as connection:
        total = int(await connection.scalar(_COUNT_BATCHES) or 0)
        names = list(await connection.scalars(_BATCH_NAMES.limit(size).offset((page - 1) * size)))
        rows = await connection.execute(_BATCHES, {"batches": names}) if names else ()
        return [_whole_numbers(row._mapping) for row in rows], total


def _whole_numbers(row: RowMapping) -> dict[str, Any]:
    """MySQL's SUM is a decimal number."""
    return {name: int(value) if isinstance(value, Decimal) else value for name, value in row.items()}


@retry_on_conflict
async def void_batch(database: Database, batch: str) -> int:
    """Voids all unredeemed codes of a batch and returns their number. NotFound for an unknown batch."""
    async with database.begin() as connection:
        return await void_codes(connection, batch)


async def void_codes(connection: Connection, batch: str) -> int:
    """The same in the caller's transaction."""
    if await connection.scalar(select(codes.c.id).where(codes.c.batch == batch).limit(1)) is None:
        raise NotFound("批次不存在")
    is_unused = (codes.c.batch == batch) & codes.c.redeemed_by.is_(None) & codes.c.voided_at.is_(None)
    updated = await connection.execute(update(codes).where(is_unused).values(voided_at=utc_now()))
    return int(updated.rowcount)


@retry_on_conflict
async def redeem_code(database: Database, user_id: int, code: str) -> int:
    """Redeems the code, grants its points to the user, and returns the points.

    The result is the same if this user has redeemed the code before. Raises CodeNotRedeemable.
    """
    digest = digest_code(code)
    if digest is None:
        raise CodeNotRedeemable
    try:
        async with database.begin() as connection:
            updated = await connection.execute(_REDEEM, {"digest_": digest, "user": user_id})
            row = (await connection.execute(_BY_DIGEST, {"digest_": digest})).one_or_none()
            if row is None or row.redeemed_by != user_id:
                raise CodeNotRedeemable(_reject_reason(row))
            if updated.rowcount:
                expires = None if row.lot_days is None else row.now + timedelta(days=row.lot_days)
                text = {"ref": f"code:{row.id}", "remark": f"兑换码 {row.prefix}"}
                await ledger.grant_in_transaction(
                    connection, user_id=user_id, points=row.points, expires=expires, **text
                )
    except CommitUnknown:
        async with database.read() as connection:
            row = (await connection.execute(_BY_DIGEST, {"digest_": digest})).one()
        if row.redeemed_by != user_id:
            raise
    return int(row.points)


def _reject_reason(row: Row[Any] | None) -> str | None:
    """The Chinese text; None for the default text. Unknown and void codes get the same text (see CodeNotRedeemable)."""
    if row is None or row.voided_at is not None:
        return None
    return "兑换码已被使用" if row.redeemed_by is not None else "兑换码已过期"


_digest: BindParameter[str] = bindparam("digest_")
_has_expired = codes.c.expires_at <= utc_now()
_REDEEM = (
    update(codes)
    .where(
        codes.c.digest == _digest,
        codes.c.redeemed_by.is_(None),
        codes.c.voided_at.is_(None),
        or_(codes.c.expires_at.is_(None), codes.c.expires_at > utc_now()),
    )
    .values(redeemed_by=bindparam("user"), redeemed_at=utc_now())
)
_BY_DIGEST = select(
    codes.c.id,
    codes.c.prefix,
    codes.c.points,
    codes.c.lot_days,
    codes.c.voided_at,
    codes.c.redeemed_by,
    utc_now().label("now"),
).where(codes.c.digest == _digest)
_STATUS = case(
    (codes.c.redeemed_by.is_not(None), "redeemed"),
    (codes.c.voided_at.is_not(None), "void"),
    (_has_expired, "expired"),
    else_="unused",
)
_LIST = select(
    codes.c.prefix,
    codes.c.batch,
    codes.c.points,
    _STATUS.label("status"),
    codes.c.expires_at,
    codes.c.lot_days,
    codes.c.redeemed_by,
    codes.c.redeemed_at,
).order_by(codes.c.id.desc())
_COUNT_BATCHES = select(func.count(codes.c.batch.distinct()))
_newest = func.max(codes.c.id).desc()
_BATCH_NAMES = select(codes.c.batch).group_by(codes.c.batch).order_by(_newest)
_BATCHES = (
    select(
        codes.c.batch,
        func.count().label("total"),
        *(func.sum(case({status: 1}, value=_STATUS, else_=0)).label(status) for status in STATUSES),
        func.min(codes.c.points).label("min_points"),
        func.max(codes.c.points).label("max_points"),
        func.max(codes.c.expires_at).label("expires_at"),
        func.min(codes.c.created_at).label("created_at"),
    )
    .where(codes.c.batch.in_(bindparam("batches", expanding=True)))
    .group_by(codes.c.batch)
    .order_by(_newest)
)
