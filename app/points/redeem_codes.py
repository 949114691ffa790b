"""Redeem codes: made in batches, shown once, kept as digests, each worth its points once.

A code is used up and its points are granted in one transaction, by a conditional UPDATE and a reference of its own.
Its user may ask again, as after an answer that was lost: they are told the same, and nothing is granted again.
"""

import hashlib
import secrets
import unicodedata
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import BindParameter, Row, bindparam, case, func, insert, or_, select, true, update

from app.database import CommitUnknown, Database, retry_on_conflict, utc_now
from app.errors import CodeNotRedeemable, InvalidParameter, NotFound
from app.points import ledger
from app.points.limits import MAX_CODES_PER_BATCH, MAX_LOT_DAYS
from app.tables import redeem_codes as codes

ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # Crockford's: 5 bits a character, and none to be taken for another
GROUPS, GROUP = 5, 5  # 125 random bits; lists show the first group, and 100 stay unknown
LOOKALIKES = str.maketrans("OIL", "011")
MAX_BATCH_LENGTH = 64
CHUNK = 500


def new_code() -> str:
    """As it is shown: `XXXXX-XXXXX-XXXXX-XXXXX-XXXXX`."""
    return "-".join("".join(secrets.choice(ALPHABET) for _ in range(GROUP)) for _ in range(GROUPS))


def digest_code(code: str) -> str | None:
    """SHA-256 in hex of what was meant, in whatever case, width and grouping it was typed; None for no code at all."""
    typed = unicodedata.normalize("NFKC", code).upper()
    meant = "".join(letter for letter in typed if letter.isalnum()).translate(LOOKALIKES)
    if len(meant) != GROUPS * GROUP or not set(meant) <= set(ALPHABET):
        return None
    return hashlib.sha256(meant.encode()).hexdigest()


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
    """New codes in clear, for the only time."""
    if not 0 < count <= MAX_CODES_PER_BATCH:
        raise InvalidParameter("count", f"须为 1 到 {MAX_CODES_PER_BATCH}")
    if not 0 < points <= ledger.MAX_POINTS:
        raise InvalidParameter("points", "须为正整数")
    if not batch or batch != batch.strip() or len(batch) > MAX_BATCH_LENGTH:
        raise InvalidParameter("batch", f"不能为空、首尾不能有空格且最多 {MAX_BATCH_LENGTH} 个字符")
    if lot_days is not None and not 0 < lot_days <= MAX_LOT_DAYS:
        raise InvalidParameter("lot_days", f"须为 1 到 {MAX_LOT_DAYS}")
    made = [new_code() for _ in range(count)]
    shared = {"batch": batch, "points": points, "lot_days": lot_days, "expires_at": expires}
    rows = [{"digest": digest_code(code), "prefix": code[:GROUP], **shared} for code in made]
    async with database.begin() as connection:
        if expires is not None:
            await ledger.check_expiry(connection, expires)
        for start in range(0, count, CHUNK):
            await connection.execute(insert(codes).values(created_at=utc_now()), rows[start : start + CHUNK])
    return made


async def list_codes(database: Database, batch: str | None = None, *, limit: int) -> tuple[list[dict[str, Any]], int]:
    """The newest codes, of one batch or of all, and how many there are: their first group, never the code."""
    wanted = codes.c.batch == batch if batch is not None else true()
    async with database.read() as connection:
        total = int(await connection.scalar(select(func.count()).select_from(codes).where(wanted)) or 0)
        rows = await connection.execute(_LIST.where(wanted).limit(limit))
        return [dict(row._mapping) for row in rows], total


@retry_on_conflict
async def void_batch(database: Database, batch: str) -> int:
    """Ends all codes of a batch that were not redeemed; how many. NotFound where there is no such batch."""
    async with database.begin() as connection:
        if await connection.scalar(select(codes.c.id).where(codes.c.batch == batch).limit(1)) is None:
            raise NotFound("批次不存在")
        unused = (codes.c.batch == batch) & codes.c.redeemed_by.is_(None) & codes.c.voided_at.is_(None)
        voided = await connection.execute(update(codes).where(unused).values(voided_at=utc_now()))
        return int(voided.rowcount)


@retry_on_conflict
async def redeem_code(database: Database, user_id: int, code: str) -> int:
    """Uses the code up and grants its points; how many, also where this user has had them before.

    CodeNotRedeemable changes nothing.
    """
    digest = digest_code(code)
    if digest is None:
        raise CodeNotRedeemable
    try:
        async with database.begin() as connection:
            used_up = await connection.execute(_REDEEM, {"digest_": digest, "user": user_id})
            row = (await connection.execute(_BY_DIGEST, {"digest_": digest})).one_or_none()
            if row is None or row.redeemed_by != user_id:
                raise CodeNotRedeemable(_reject_reason(row))
            if used_up.rowcount:
                expires = None if row.lot_days is None else row.now + timedelta(days=row.lot_days)
                told = {"ref": f"code:{row.id}", "remark": f"兑换码 {row.prefix}"}
                await ledger.grant_in_transaction(
                    connection, user_id=user_id, points=row.points, expires=expires, **told
                )
    except CommitUnknown:
        async with database.read() as connection:
            row = (await connection.execute(_BY_DIGEST, {"digest_": digest})).one()
        if row.redeemed_by != user_id:
            raise
    return int(row.points)


def _reject_reason(row: Row[Any] | None) -> str | None:
    """Who guesses learns nothing: an unknown code and a void one sound the same."""
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
