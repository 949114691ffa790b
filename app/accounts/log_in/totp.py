"""The second factor of a log-in: codes that change every 30 seconds (TOTP, RFC 6238), and recovery codes.

A user is enrolled once a code has proved that the secret arrived: `totp_step`, the newest used time step, is then set.
Each step and each recovery code is used once. Whoever uses one has locked the user's row.
"""

import base64
import hashlib
import hmac
import secrets
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pyotp
from sqlalchemy import Row, bindparam, delete, insert, select, update

from app.accounts.users import Then
from app.database import Connection, Database, retry_on_conflict, utc_now
from app.errors import Forbidden, InvalidParameter, NotFound
from app.tables import recovery_codes, users

ISSUER = "1818ai"
STEP_SECONDS = 30
WINDOW = (0, -1, 1)
"""Steps beside the present one that are accepted, because clocks differ and people type slowly."""
CODE_LENGTH = 6
MAX_CODE_LENGTH = 32
RECOVERY_CODES = 10
RECOVERY_BYTES = 10
ALREADY_ENABLED = "已启用动态验证码，停用后才能重新设置"


@dataclass(frozen=True, slots=True)
class Enrolment:
    """What an authenticator app needs: the secret in base32, and the same as an `otpauth://` link for a QR code."""

    secret: str
    url: str


async def begin_enrolment(database: Database, user_id: int) -> Enrolment:
    """A new secret, which counts once a code has confirmed it. Raises Forbidden for a user who is enrolled."""
    return await _store_secret(database, user_id, is_confirmed=False)


async def enrol(database: Database, user_id: int, *, then: Then | None = None) -> tuple[Enrolment, list[str]]:
    """Enrols the user at once, in place of an earlier enrolment. Returns the recovery codes, too. For operators.

    `then` runs in the transaction that stores the codes.
    """
    enrolment = await _store_secret(database, user_id, is_confirmed=True)
    return enrolment, await _new_codes(database, user_id, then)


@retry_on_conflict
async def _store_secret(database: Database, user_id: int, *, is_confirmed: bool) -> Enrolment:
    secret = pyotp.random_base32()
    async with database.begin() as connection:
        user = await lock_user(connection, user_id)
        if user is None:
            raise NotFound("用户不存在")
        if user.totp_step is not None and not is_confirmed:
            raise Forbidden(ALREADY_ENABLED)
        await _set(connection, user_id, totp_secret=secret, totp_step=0 if is_confirmed else None)
    url = pyotp.TOTP(secret).provisioning_uri(name=user.username or str(user_id), issuer_name=ISSUER)
    return Enrolment(secret, url)


@retry_on_conflict
async def confirm_enrolment(database: Database, user_id: int, code: str) -> list[str]:
    """Enrols the user, who sends a first code. Returns the recovery codes, which cannot be read again."""
    async with database.begin() as connection:
        user = await lock_user(connection, user_id)
        if user is None or user.totp_secret is None:
            raise InvalidParameter("code", "无效，请先获取密钥")
        if user.totp_step is not None:
            raise Forbidden(ALREADY_ENABLED)
        step = find_step(user.totp_secret, code, user.now)
        if step is None:
            raise InvalidParameter("code", "不正确")
        await _set(connection, user_id, totp_step=step)
        return await _replace_codes(connection, user_id)


@retry_on_conflict
async def disable(database: Database, user_id: int, code: str) -> None:
    """Ends the enrolment of a user, who sends a code or a recovery code."""
    async with database.begin() as connection:
        user = await lock_user(connection, user_id)
        if user is None or user.totp_step is None:
            raise InvalidParameter("code", "无效，未启用动态验证码")
        if not await use_code(connection, user, code):
            raise InvalidParameter("code", "不正确或已使用")
        await _set(connection, user_id, totp_secret=None, totp_step=None)
        await connection.execute(delete(recovery_codes).where(recovery_codes.c.user_id == user_id))


async def use_code(connection: Connection, user: Row[Any], code: str) -> bool:
    """Uses up a code or a recovery code of an enrolled user. `user` is what `lock_user` returned."""
    step = find_step(user.totp_secret, code, user.now)
    if step is not None:
        if step <= user.totp_step:
            return False
        await _set(connection, user.id, totp_step=step)
        return True
    used = await connection.execute(_USE_RECOVERY_CODE, {"user": user.id, "of": _digest(code)})
    return bool(used.rowcount)


def find_step(secret: str, code: str, now: datetime) -> int | None:
    """The time step to which this code belongs, if it is one of those that are accepted now."""
    code = code.strip().replace(" ", "")
    if len(code) != CODE_LENGTH:
        return None
    present, totp = int(now.timestamp()) // STEP_SECONDS, pyotp.TOTP(secret)
    sent = code.encode(errors="replace")
    steps = [present + offset for offset in WINDOW]
    return next((one for one in steps if hmac.compare_digest(totp.generate_otp(one).encode(), sent)), None)


async def lock_user(connection: Connection, user_id: int) -> Row[Any] | None:
    """The user's row with what decides about a log-in. It stays locked until the end of the transaction."""
    return (await connection.execute(_LOCK, {"user": user_id})).one_or_none()


@retry_on_conflict
async def _new_codes(database: Database, user_id: int, then: Then | None) -> list[str]:
    async with database.begin() as connection:
        await lock_user(connection, user_id)
        if then is not None:
            await then(connection, user_id)
        return await _replace_codes(connection, user_id)


async def _replace_codes(connection: Connection, user_id: int) -> list[str]:
    codes = [_new_code() for _ in range(RECOVERY_CODES)]
    await connection.execute(delete(recovery_codes).where(recovery_codes.c.user_id == user_id))
    for code in codes:
        row = {"user_id": user_id, "digest": _digest(code), "created_at": utc_now()}
        await connection.execute(insert(recovery_codes).values(**row))
    return codes


def _new_code() -> str:
    """80 random bits, as in `abcd-efgh-ijkl-mnop`."""
    text = base64.b32encode(secrets.token_bytes(RECOVERY_BYTES)).decode().lower()
    return "-".join(text[start : start + 4] for start in range(0, len(text), 4))


def _digest(code: str) -> str:
    plain = code.strip().lower().replace("-", "").replace(" ", "")
    return hashlib.sha256(plain.encode(errors="replace")).hexdigest()


async def _set(connection: Connection, user_id: int, **values: Any) -> None:
    await connection.execute(update(users).where(users.c.id == user_id).values(**values))


_LOCK = (
    select(
        users.c.id,
        users.c.username,
        users.c.status,
        users.c.password_hash,
        users.c.token_version,
        users.c.tokens_valid_from,
        users.c.totp_secret,
        users.c.totp_step,
        utc_now().label("now"),
    )
    .where(users.c.id == bindparam("user"))
    .with_for_update()
)
_USE_RECOVERY_CODE = (
    update(recovery_codes)
    .where(
        recovery_codes.c.user_id == bindparam("user"),
        recovery_codes.c.digest == bindparam("of"),
        recovery_codes.c.used_at.is_(None),
    )
    .values(used_at=utc_now())
)
