"""Authenticates a JWT or an API key. Every refusal is the same `Unauthenticated`, after the same single query."""

from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import Row, Select, bindparam, select, update

from app.accounts import users
from app.accounts.credentials import KEY_PREFIX, MAX_CREDENTIAL_LENGTH, Claims, check_expiry, digest_key, read_token
from app.database import utc_now
from app.errors import Unauthenticated, Unavailable
from app.runtime import Runtime
from app.tables import api_keys
from app.tables import users as users_table

LAST_USED_RESOLUTION = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class Caller:
    """The authenticated caller.

    A JWT has `claims` and all rights of its user. An API key has `key_id` and `scopes`.
    """

    user_id: int
    role: str
    key_id: int | None = None
    scopes: tuple[str, ...] = ()
    claims: Claims | None = None

    def has_scope(self, scope: str) -> bool:
        return self.key_id is None or scope in self.scopes


async def authenticate(runtime: Runtime, credential: str) -> Caller:
    """The caller of a JWT or an `sk-…` key. Raises Unauthenticated.

    One query reads the newest state, so bans and revocations take effect at once.
    """
    if not credential or len(credential) > MAX_CREDENTIAL_LENGTH:
        raise Unauthenticated
    if credential.startswith(KEY_PREFIX):
        return await _from_api_key(runtime, _KEY_BY_DIGEST, {"digest": digest_key(credential)})
    return await _from_claims(runtime, read_token(runtime.settings, credential))


async def reauthenticate(runtime: Runtime, caller: Caller) -> Caller:
    """Checks an authenticated caller again, without the credential.

    Raises Unauthenticated if the credential is revoked or expired, or the user is banned.
    """
    if caller.claims is None:
        return await _from_api_key(runtime, _KEY_BY_ID, {"id": caller.key_id})
    check_expiry(caller.claims)
    return await _from_claims(runtime, caller.claims)


async def _from_claims(runtime: Runtime, claims: Claims) -> Caller:
    async with runtime.database.read() as connection:
        user = (await connection.execute(_USER, {"user_id": claims.user_id})).one_or_none()
    if user is None and runtime.settings.jwt_auto_provision:
        await users.provision(runtime.database, claims.user_id)
        return Caller(claims.user_id, "user", claims=claims)
    if user is None or user.status != "active":
        raise Unauthenticated
    # `iat` has whole seconds only. A token from the same second as the ban counts as issued before it.
    if user.tokens_valid_from and claims.issued_at <= int(user.tokens_valid_from.timestamp()):
        raise Unauthenticated
    return Caller(claims.user_id, user.role, claims=claims)


async def _from_api_key(runtime: Runtime, query: Select[Any], values: dict[str, Any]) -> Caller:
    async with runtime.database.read() as connection:
        key = (await connection.execute(query, values)).one_or_none()
    if key is None or key.revoked_at or key.status != "active" or (key.expires_at and key.expires_at <= key.now):
        raise Unauthenticated
    if key.last_used_at is None or key.now - key.last_used_at > LAST_USED_RESOLUTION:
        await _touch_last_used(runtime, key)
    return Caller(key.user_id, key.role, key.id, tuple(key.scopes))


async def _touch_last_used(runtime: Runtime, key: Row[Any]) -> None:
    """Best effort: a failed write must not refuse a valid request."""
    with suppress(Unavailable):
        async with runtime.database.begin() as connection:
            await connection.execute(update(api_keys).where(api_keys.c.id == key.id).values(last_used_at=utc_now()))


_USER = select(users_table.c.role, users_table.c.status, users_table.c.tokens_valid_from).where(
    users_table.c.id == bindparam("user_id")
)
_KEY = select(
    api_keys.c.id,
    api_keys.c.user_id,
    api_keys.c.scopes,
    api_keys.c.expires_at,
    api_keys.c.last_used_at,
    api_keys.c.revoked_at,
    users_table.c.role,
    users_table.c.status,
    utc_now().label("now"),
).join(users_table, users_table.c.id == api_keys.c.user_id)
_KEY_BY_DIGEST = _KEY.where(api_keys.c.digest == bindparam("digest"))
_KEY_BY_ID = _KEY.where(api_keys.c.id == bindparam("id"))
