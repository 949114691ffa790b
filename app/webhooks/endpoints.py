"""Webhook endpoints: the URLs that receive all ends of a user's tasks. Other users' endpoints are not found."""

from typing import Any

from sqlalchemy import ColumnElement, case, delete, func, insert, literal, select, update

from app.database import Connection, Database, retry_on_conflict, utc_after, utc_now
from app.egress import InvalidUrl, normalize_url
from app.errors import InvalidParameter, NotFound
from app.runtime import Runtime
from app.tables import users
from app.tables import webhook_deliveries as deliveries
from app.tables import webhook_endpoints as endpoints
from app.webhooks.outbox import host_of
from app.webhooks.signing import new_secret
from app.webhooks.signing_secrets import SigningSecrets, rotation, secrets_columns, secrets_from_row

MAX_ENDPOINTS = 10
MAX_SPREAD_SECONDS = 600
"""The longest time over which a new URL spreads the pending deliveries."""
MANUAL = "manual"
_RESET_HEALTH = {"failing_since": None, "failed_at": None}


def validate_target(field: str, url: str, allowed: frozenset[str]) -> str:
    """The caller's URL, normalized. It checks the form only; nothing is resolved. Raises InvalidParameter."""
    try:
        return normalize_url(url, allowed)
    except InvalidUrl as error:
        raise InvalidParameter(field, str(error)) from None


async def list_endpoints(database: Database, user_id: int) -> list[dict[str, Any]]:
    """The user's endpoints without their secrets, oldest first."""
    async with database.read() as connection:
        rows = await connection.execute(select(*_SHOWN).where(endpoints.c.user_id == user_id).order_by(endpoints.c.id))
        return [dict(row._mapping) for row in rows]


@retry_on_conflict
async def create_endpoint(runtime: Runtime, user_id: int, url: str, events: list[str]) -> dict[str, Any]:
    """The new endpoint with its `secret`, which is shown only here. Raises InvalidParameter above MAX_ENDPOINTS."""
    target = validate_target("url", url, runtime.settings.egress_allowed)
    secret = new_secret()
    async with runtime.database.begin() as connection:
        # The lock on the user's row keeps two requests at once from exceeding the limit.
        await connection.execute(select(users.c.id).where(users.c.id == user_id).with_for_update())
        mine = select(func.count()).select_from(endpoints).where(endpoints.c.user_id == user_id)
        if int(await connection.scalar(mine) or 0) >= MAX_ENDPOINTS:
            raise InvalidParameter("url", f"最多 {MAX_ENDPOINTS} 个推送端点，请先删除不用的")
        inserted = await connection.execute(
            insert(endpoints).values(
                user_id=user_id, url=target, events=events, secret=secret, created_at=utc_now(), updated_at=utc_now()
            )
        )
        row = (await connection.execute(select(*_SHOWN).where(endpoints.c.id == inserted.lastrowid))).one()
    return dict(row._mapping) | {"secret": secret}


@retry_on_conflict
async def change_endpoint(
    runtime: Runtime,
    user_id: int,
    endpoint_id: int,
    *,
    url: str | None = None,
    events: list[str] | None = None,
    enabled: bool | None = None,
) -> dict[str, Any]:
    """The changed endpoint. An argument of None changes nothing, and neither does the URL that it has already.

    A new URL resets the endpoint's health and brings its pending deliveries forward, one in each second. It also fences
    attempts to the old URL, because their outcome says nothing about the new one.
    """
    target = None if url is None else validate_target("url", url, runtime.settings.egress_allowed)
    changes: dict[str, Any] = {"updated_at": utc_now()}
    if events is not None:
        changes["events"] = events
    if enabled is True:
        changes |= {"disabled_at": None, "disabled_reason": None, **_RESET_HEALTH}
    if enabled is False:
        changes["disabled_at"] = func.coalesce(endpoints.c.disabled_at, utc_now())
        changes["disabled_reason"] = func.coalesce(endpoints.c.disabled_reason, MANUAL)
    this = _mine(user_id, endpoint_id)
    async with runtime.database.begin() as connection:
        current = await connection.scalar(select(endpoints.c.url).where(this).with_for_update())
        if current is None:
            raise NotFound("推送端点不存在")
        if target is not None and target != current:
            changes |= {"url": target, **_RESET_HEALTH}
            await _retarget(connection, endpoint_id, user_id, target)
        await connection.execute(update(endpoints).where(this).values(**changes))
        return dict((await connection.execute(select(*_SHOWN).where(this))).one()._mapping)


@retry_on_conflict
async def rotate_endpoint(database: Database, user_id: int, endpoint_id: int) -> SigningSecrets:
    """A new secret for the endpoint. The old one also signs for a day."""
    this = _mine(user_id, endpoint_id)
    async with database.begin() as connection:
        if not (await connection.execute(rotation(endpoints, this))).rowcount:
            raise NotFound("推送端点不存在")
        return secrets_from_row((await connection.execute(select(*secrets_columns(endpoints)).where(this))).one())


@retry_on_conflict
async def delete_endpoint(database: Database, user_id: int, endpoint_id: int) -> None:
    """Deletes the endpoint. Its pending deliveries fail at their next attempt; the log keeps them."""
    async with database.begin() as connection:
        if not (await connection.execute(delete(endpoints).where(_mine(user_id, endpoint_id)))).rowcount:
            raise NotFound("推送端点不存在")


async def get_endpoint(database: Database, user_id: int, endpoint_id: int) -> tuple[str, SigningSecrets]:
    """The endpoint's URL and signing secrets, also where it is disabled."""
    async with database.read() as connection:
        statement = select(endpoints.c.url, *secrets_columns(endpoints)).where(_mine(user_id, endpoint_id))
        row = (await connection.execute(statement)).one_or_none()
    if row is None:
        raise NotFound("推送端点不存在")
    return row.url, secrets_from_row(row)


def _mine(user_id: int, endpoint_id: int) -> ColumnElement[bool]:
    return (endpoints.c.id == endpoint_id) & (endpoints.c.user_id == user_id)


async def _retarget(connection: Connection, endpoint_id: int, user_id: int, target: str) -> None:
    """Sends the pending deliveries to `target`. They become due one in each second: the receiver is a stranger's.

    None becomes due later than it was. More than MAX_SPREAD_SECONDS deliveries share these seconds evenly.
    """
    pending = (deliveries.c.endpoint_id == endpoint_id) & (deliveries.c.status == "pending")
    pending &= deliveries.c.user_id == user_id
    first, number = (await connection.execute(select(func.min(deliveries.c.id), func.count()).where(pending))).one()
    if not number:
        return
    soon = utc_after((deliveries.c.id - first) % min(number, MAX_SPREAD_SECONDS))
    next_run_at = case((soon < deliveries.c.next_run_at, soon), else_=deliveries.c.next_run_at)
    changes = {"host": host_of(literal(target)), "version": deliveries.c.version + 1, "lease_until": None}
    await connection.execute(update(deliveries).where(pending).values(**changes, next_run_at=next_run_at))


_SHOWN = [endpoints.c[name] for name in ("id", "url", "events", "disabled_at", "disabled_reason", "created_at")]
