"""Authenticates a JWT or an API key. Every refusal is the same `Unauthenticated`, after the same single query.

Callers who come in the same moment share the query. Nothing is remembered.
"""

from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from sqlalchemy import Row, bindparam, select, update

from app.accounts import users
from app.accounts.credentials import (
    KEY_PREFIX,
    MAX_CREDENTIAL_LENGTH,
    Claims,
    check_expiry,
    digest_key,
    read_key_id,
    read_token,
)
from app.accounts.keys.addresses import is_allowed
from app.accounts.keys.scopes import expand_scopes
from app.accounts.log_in.jwks import key_set
from app.database import Connection, utc_now
from app.errors import Forbidden, Unauthenticated, Unavailable
from app.runtime import Runtime
from app.tables import api_keys
from app.tables import users as users_table

LAST_USED_RESOLUTION = timedelta(minutes=1)
_touched: set[int] = set()
"""The keys whose use is being written."""


@dataclass(frozen=True, slots=True)
class Caller:
    """The authenticated caller.

    A JWT has `claims` and all rights of its user. An API key has `key_id` and `scopes`. In production an admin who
    logs in here has no rights of an admin as long as `lacks_second_factor`.
    An API key may be bound to models and to client addresses; None: to none. `address` is the client address from which
    a key was used.
    """

    user_id: int
    role: str
    key_id: int | None = None
    scopes: tuple[str, ...] = ()
    claims: Claims | None = None
    lacks_second_factor: bool = False
    models: tuple[str, ...] | None = None
    addresses: tuple[str, ...] | None = None
    address: str = ""

    def has_scope(self, scope: str) -> bool:
        return self.key_id is None or scope in self.scopes

    def may_use(self, model_name: str) -> bool:
        return self.models is None or model_name in self.models

    def check_model(self, model_name: str) -> None:
        """Raises Forbidden for a model that is not in the list of the API key."""
        if not self.may_use(model_name):
            raise Forbidden(f"该密钥不能使用模型 {model_name}")

    def at_address(self, address: str) -> "Caller":
        """The same caller at this client address. Raises Forbidden if the API key may not be used from there."""
        if self.key_id is None:
            return self
        if self.addresses is not None and not is_allowed(self.addresses, address):
            raise Forbidden("该密钥不能从此地址使用")
        return replace(self, address=address)


async def authenticate(runtime: Runtime, credential: str) -> Caller:
    """The caller of a JWT or an `sk-…` key. Raises Unauthenticated.

    One query reads the newest state, so bans and revocations take effect at once.
    """
    if not credential or len(credential) > MAX_CREDENTIAL_LENGTH:
        raise Unauthenticated
    if credential.startswith(KEY_PREFIX):
        return await _from_api_key(runtime, await runtime.database.load(_read_keys, digest_key(credential)))
    return await _from_claims(runtime, await _read_claims(runtime, credential))


async def reauthenticate(runtime: Runtime, caller: Caller) -> Caller:
    """Checks an authenticated caller again, without the credential.

    Raises Unauthenticated if the credential is revoked or expired, or the user is banned, and Forbidden if the API key
    may no longer be used from the address of the caller.
    """
    if caller.key_id is not None:
        found = await _from_api_key(runtime, await runtime.database.load(_read_keys_by_id, caller.key_id))
        return found.at_address(caller.address)
    if caller.claims is None:
        raise Unauthenticated
    check_expiry(caller.claims)
    return await _from_claims(runtime, caller.claims)


async def _read_claims(runtime: Runtime, token: str) -> Claims:
    settings = runtime.settings
    if settings.jwt_algorithm == "HS256" or not settings.jwt_jwks:
        return read_token(settings, token)
    public_key = await key_set(settings.jwt_jwks, settings.jwt_algorithm).find_key(runtime.egress, read_key_id(token))
    if public_key is None:
        raise Unauthenticated
    return read_token(settings, token, public_key)


async def _from_claims(runtime: Runtime, claims: Claims) -> Caller:
    user = await runtime.database.load(_read_users, claims.user_id)
    if user is None and runtime.settings.jwt_auto_provision:
        await users.provision(runtime.database, claims.user_id)
        return Caller(claims.user_id, "user", claims=claims)
    if user is None or user.status != "active":
        raise Unauthenticated
    if claims.version is not None:
        if claims.version != user.token_version:
            raise Unauthenticated
    # `iat` has whole seconds only. A token from the same second as the ban counts as issued before it.
    elif user.tokens_valid_from and claims.issued_at <= int(user.tokens_valid_from.timestamp()):
        raise Unauthenticated
    must_have = user.role == "admin" and claims.version is not None and runtime.settings.environment == "production"
    return Caller(claims.user_id, user.role, claims=claims, lacks_second_factor=must_have and user.totp_step is None)


async def _from_api_key(runtime: Runtime, key: Row[*tuple[Any, ...]] | None) -> Caller:
    if key is None or key.revoked_at or key.status != "active" or (key.expires_at and key.expires_at <= key.now):
        raise Unauthenticated
    if key.last_used_at is None or key.now - key.last_used_at > LAST_USED_RESOLUTION:
        await _touch_last_used(runtime, key)
    return Caller(
        key.user_id,
        key.role,
        key.id,
        expand_scopes(key.scopes),
        models=None if key.models is None else tuple(key.models),
        addresses=None if key.addresses is None else tuple(key.addresses),
    )


async def _touch_last_used(runtime: Runtime, key: Row[*tuple[Any, ...]]) -> None:
    """Best effort: a failed write must not refuse a valid request. One of many requests at once writes."""
    if key.id in _touched:
        return
    _touched.add(key.id)
    try:
        with suppress(Unavailable):
            async with runtime.database.begin() as connection:
                await connection.execute(update(api_keys).where(api_keys.c.id == key.id).values(last_used_at=utc_now()))
    finally:
        _touched.discard(key.id)


async def _read_users(connection: Connection, user_ids: set[int]) -> dict[int, Row[*tuple[Any, ...]]]:
    return {row.id: row for row in await connection.execute(_USERS, {"user_ids": sorted(user_ids)})}


async def _read_keys(connection: Connection, digests: set[str]) -> dict[str, Row[*tuple[Any, ...]]]:
    return {row.digest: row for row in await connection.execute(_KEYS_BY_DIGEST, {"digests": sorted(digests)})}


async def _read_keys_by_id(connection: Connection, ids: set[int]) -> dict[int, Row[*tuple[Any, ...]]]:
    return {row.id: row for row in await connection.execute(_KEYS_BY_ID, {"ids": sorted(ids)})}


_USERS = select(
    users_table.c.id,
    users_table.c.role,
    users_table.c.status,
    users_table.c.token_version,
    users_table.c.tokens_valid_from,
    users_table.c.totp_step,
).where(users_table.c.id.in_(bindparam("user_ids", expanding=True)))
_KEY = select(
    api_keys.c.id,
    api_keys.c.digest,
    api_keys.c.user_id,
    api_keys.c.scopes,
    api_keys.c.models,
    api_keys.c.addresses,
    api_keys.c.expires_at,
    api_keys.c.last_used_at,
    api_keys.c.revoked_at,
    users_table.c.role,
    users_table.c.status,
    utc_now().label("now"),
).join(users_table, users_table.c.id == api_keys.c.user_id)
_KEYS_BY_DIGEST = _KEY.where(api_keys.c.digest.in_(bindparam("digests", expanding=True)))
_KEYS_BY_ID = _KEY.where(api_keys.c.id.in_(bindparam("ids", expanding=True)))
