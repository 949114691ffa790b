"""From a credential to a caller. Every refusal is the same `Unauthenticated`, after the same one query."""

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
    """Whose request it is. `scopes` is empty for a JWT, which may do all its user may; `claims` are a JWT's."""

    user_id: int
    role: str
    key_id: int | None = None
    scopes: tuple[str, ...] = ()
    claims: Claims | None = None

    def has_scope(self, scope: str) -> bool:
        return self.key_id is None or scope in self.scopes


async def authenticate(runtime: Runtime, credential: str) -> Caller:
    """The caller behind a JWT or an `sk-…` key, or Unauthenticated. One query; bans and revocations count at once."""
    if not credential or len(credential) > MAX_CREDENTIAL_LENGTH:
        raise Unauthenticated
    if credential.startswith(KEY_PREFIX):
        return await _from_api_key(runtime, _KEY, {"digest": digest_key(credential)})
    return await _from_claims(runtime, read_token(runtime.settings, credential))


async def reauthenticate(runtime: Runtime, caller: Caller) -> Caller:
    """The same caller later, without the credential: Unauthenticated once it is revoked, expired or its user banned."""
    if caller.claims is None:
        return await _from_api_key(runtime, _KEY_AGAIN, {"id": caller.key_id})
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
    # A token says its second only: one of the very second of a ban counts as issued before it.
    if user.tokens_valid_from and claims.issued_at <= int(user.tokens_valid_from.timestamp()):
        raise Unauthenticated
    return Caller(claims.user_id, user.role, claims=claims)


async def _from_api_key(runtime: Runtime, wanted: Select[Any], which: dict[str, Any]) -> Caller:
    async with runtime.database.read() as connection:
        key = (await connection.execute(wanted, which)).one_or_none()
    if key is None or key.revoked_at or key.status != "active" or (key.expires_at and key.expires_at <= key.now):
        raise Unauthenticated
    if key.last_used_at is None or key.now - key.last_used_at > LAST_USED_RESOLUTION:
        await _touch_last_used(runtime, key)
    return Caller(key.user_id, key.role, key.id, tuple(key.scopes))


async def _touch_last_used(runtime: Runtime, key: Row[Any]) -> None:
    """Best effort: a good request is not refused because this could not be written."""
    with suppress(Unavailable):
        async with runtime.database.begin() as connection:
            await connection.execute(update(api_keys).where(api_keys.c.id == key.id).values(last_used_at=utc_now()))


_USER = select(users_table.c.role, users_table.c.status, users_table.c.tokens_valid_from).where(
    users_table.c.id == bindparam("user_id")
)
_ANY_KEY = select(
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
_KEY = _ANY_KEY.where(api_keys.c.digest == bindparam("digest"))
_KEY_AGAIN = _ANY_KEY.where(api_keys.c.id == bindparam("id"))
