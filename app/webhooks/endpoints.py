"""Endpoints: a user's standing addresses, each told of all their tasks' ends. Another's is not found."""

from typing import Any

from sqlalchemy import ColumnElement, Update, delete, func, insert, select, update

from app.database import Database, retry_on_conflict, utc_now
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
MANUAL = "manual"
_RESET_HEALTH = {"failing_since": None, "failed_at": None}


def validate_target(field: str, url: str, allowed: frozenset[str]) -> str:
    """A caller's URL in the spelling in which it is kept and dialled; judged by its form only."""
    try:
        return normalize_url(url, allowed)
    except InvalidUrl as problem:
        raise InvalidParameter(field, str(problem)) from None


async def list_endpoints(database: Database, user_id: int) -> list[dict[str, Any]]:
    """The oldest first, without their secrets."""
    async with database.read() as connection:
        rows = await connection.execute(select(*_SHOWN).where(endpoints.c.user_id == user_id).order_by(endpoints.c.id))
        return [dict(row._mapping) for row in rows]


@retry_on_conflict
async def create_endpoint(runtime: Runtime, user_id: int, url: str, events: list[str]) -> dict[str, Any]:
    """The endpoint as it is listed, with its `secret` for the only time. InvalidParameter for one too many."""
    target = validate_target("url", url, runtime.settings.egress_allowed)
    secret = new_secret()
    async with runtime.database.begin() as connection:
        # The user's row is held, so that two at once do not both find room for the last one.
        await connection.execute(select(users.c.id).where(users.c.id == user_id).with_for_update())
        mine = select(func.count()).select_from(endpoints).where(endpoints.c.user_id == user_id)
        if int(await connection.scalar(mine) or 0) >= MAX_ENDPOINTS:
            raise InvalidParameter("url", f"最多 {MAX_ENDPOINTS} 个推送端点，请先删除不用的")
        made = await connection.execute(
            insert(endpoints).values(
                user_id=user_id, url=target, events=events, secret=secret, created_at=utc_now(), updated_at=utc_now()
            )
        )
        row = (await connection.execute(select(*_SHOWN).where(endpoints.c.id == made.lastrowid))).one()
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
    """The endpoint as it then is; None leaves a thing as it was.

    A new address starts without a past of failures, and is told at once of what waits. What is under way to the old
    one is taken out of its process's hands: whatever comes of it says nothing about the new one.
    """
    changes: dict[str, Any] = {"updated_at": utc_now()}
    if url is not None:
        changes |= {"url": validate_target("url", url, runtime.settings.egress_allowed), **_RESET_HEALTH}
    if events is not None:
        changes["events"] = events
    if enabled is True:
        changes |= {"disabled_at": None, "disabled_reason": None, **_RESET_HEALTH}
    if enabled is False:
        changes["disabled_at"] = func.coalesce(endpoints.c.disabled_at, utc_now())
        changes["disabled_reason"] = func.coalesce(endpoints.c.disabled_reason, MANUAL)
    this = _mine(user_id, endpoint_id)
    async with runtime.database.begin() as connection:
        if not (await connection.execute(update(endpoints).where(this).values(**changes))).rowcount:
            raise NotFound("推送端点不存在")
        if url is not None:
            await connection.execute(_retarget(endpoint_id, user_id))
        return dict((await connection.execute(select(*_SHOWN).where(this))).one()._mapping)


@retry_on_conflict
async def rotate_endpoint(database: Database, user_id: int, endpoint_id: int) -> SigningSecrets:
    """A new secret for the endpoint; the old one signs beside it for a day."""
    this = _mine(user_id, endpoint_id)
    async with database.begin() as connection:
        if not (await connection.execute(rotation(endpoints, this))).rowcount:
            raise NotFound("推送端点不存在")
        return secrets_from_row((await connection.execute(select(*secrets_columns(endpoints)).where(this))).one())


@retry_on_conflict
async def delete_endpoint(database: Database, user_id: int, endpoint_id: int) -> None:
    """What it was still to be told fails at its next attempt; the log keeps what was."""
    async with database.begin() as connection:
        if not (await connection.execute(delete(endpoints).where(_mine(user_id, endpoint_id)))).rowcount:
            raise NotFound("推送端点不存在")


async def get_endpoint(database: Database, user_id: int, endpoint_id: int) -> tuple[str, SigningSecrets]:
    """Where it is, and what signs for it, whether or not it is enabled."""
    async with database.read() as connection:
        asked = select(endpoints.c.url, *secrets_columns(endpoints)).where(_mine(user_id, endpoint_id))
        row = (await connection.execute(asked)).one_or_none()
    if row is None:
        raise NotFound("推送端点不存在")
    return row.url, secrets_from_row(row)


def _mine(user_id: int, endpoint_id: int) -> ColumnElement[bool]:
    return (endpoints.c.id == endpoint_id) & (endpoints.c.user_id == user_id)


def _retarget(endpoint_id: int, user_id: int) -> Update:
    address = select(host_of(endpoints.c.url)).where(endpoints.c.id == endpoint_id).scalar_subquery()
    pending = (deliveries.c.endpoint_id == endpoint_id) & (deliveries.c.status == "pending")
    moved = {"host": address, "version": deliveries.c.version + 1, "lease_until": None, "next_run_at": utc_now()}
    return update(deliveries).where(pending, deliveries.c.user_id == user_id).values(**moved)


_SHOWN = [endpoints.c[name] for name in ("id", "url", "events", "disabled_at", "disabled_reason", "created_at")]
