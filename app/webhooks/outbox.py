"""The outbox: one row for each receiver of a task's end. The transaction that ends the task writes the rows.

A claim is a lease by the database's clock, fenced by `version`, like a claim of a task. When a process dies, its lease
runs out and another process sends the message again. So delivery is at least once, under the same message id.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sqlalchemy import (
    ColumnElement,
    Integer,
    String,
    bindparam,
    case,
    func,
    insert,
    literal,
    select,
    tuple_,
    union_all,
    update,
)

from app.database import Connection, Database, retry_on_conflict, utc_after, utc_now
from app.tables import tasks, webhook_secrets
from app.tables import webhook_deliveries as deliveries
from app.tables import webhook_endpoints as endpoints
from app.webhooks.sender import Outcome
from app.webhooks.signing_secrets import SigningSecrets, get_secrets, secrets_columns, secrets_from_row

COMPLETED, FAILED, DISABLED = "task.completed", "task.failed", "webhook.disabled"
RETRY_WINDOW_SECONDS = 24 * 3600.0
"""After this time the gateway stops retrying a delivery."""
CALLBACK = 0
"""The `endpoint_id` of a delivery to the task's callbackUrl."""
GONE, FAILING = "gone", "failing"
MAX_ATTEMPT_GAP_SECONDS = 10 * 3600.0
"""A longer gap without an attempt means that no dispatcher ran. Retries are at most 9.6 hours apart."""


async def enqueue(connection: Connection, *, user_id: int, task_id: int, event: str) -> None:
    """Writes the deliveries of a task's end in one statement, inside the transaction that ends the task."""
    await connection.execute(_ENQUEUE, {"user": user_id, "task": task_id, "event": f'"{event}"'})


@dataclass(frozen=True, slots=True)
class Due:
    """A due delivery, with what the dispatcher needs to pick fairly."""

    id: int
    host: str
    user_id: int


@dataclass(frozen=True, slots=True)
class Delivery:
    """A claimed delivery. `attempts` includes the coming attempt; retries stop after `seconds_left`."""

    id: int
    host: str
    user_id: int
    task_id: int
    endpoint_id: int
    version: int
    attempts: int
    seconds_left: float


async def find_due(
    database: Database,
    limit: int,
    *,
    excluded_hosts: Collection[str] = (),
    excluded_users: Collection[int] = (),
    excluded_pairs: Collection[tuple[str, int]] = (),
) -> list[Due]:
    """Up to `limit` due deliveries, the longest due first, without those of the excluded hosts, users, and pairs.

    A pair is a host and a user.
    """
    values = {"limit": limit, "hosts": list(excluded_hosts), "users": list(excluded_users)}
    values["pairs"] = list(excluded_pairs)
    async with database.read() as connection:
        return [Due(*row) for row in await connection.execute(_DUE, values)]


@retry_on_conflict
async def claim(database: Database, picked: Sequence[Due], lease_seconds: float) -> list[Delivery]:
    """Claims the picked deliveries that are still due. Each goes to one process."""
    async with database.begin() as connection:
        rows = (await connection.execute(_LOCK_DUE, {"ids": [due.id for due in picked]})).all()
        if rows:
            await connection.execute(_CLAIM, {"ids": [row.id for row in rows], "lease": lease_seconds})
    return [
        Delivery(
            id=row.id,
            host=row.host,
            user_id=row.user_id,
            task_id=row.task_id,
            endpoint_id=row.endpoint_id,
            version=row.version + 1,
            attempts=row.attempts + 1,
            seconds_left=(row.give_up_at - row.now).total_seconds(),
        )
        for row in rows
    ]


async def other_endpoints(database: Database, delivery: Delivery) -> list[tuple[str, SigningSecrets]]:
    """URL and signing secrets of each other enabled endpoint of the user."""
    async with database.read() as connection:
        rows = await connection.execute(_OTHERS, {"endpoint": delivery.endpoint_id, "user": delivery.user_id})
        return [(row.url, secrets_from_row(row)) for row in rows]


async def find_target(database: Database, delivery: Delivery) -> tuple[str, SigningSecrets] | None:
    """The receiver's current URL and signing secrets; None where the endpoint is deleted or disabled."""
    async with database.read() as connection:
        if delivery.endpoint_id != CALLBACK:
            endpoint = {"endpoint": delivery.endpoint_id, "user": delivery.user_id}
            row = (await connection.execute(_ENDPOINT, endpoint)).one_or_none()
            return None if row is None else (row.url, secrets_from_row(row))
        row = (await connection.execute(_CALLBACK, {"task": delivery.task_id})).one_or_none()
    if row is None:
        return None
    signing_secrets = await get_secrets(database, delivery.user_id) if row.secret is None else secrets_from_row(row)
    return row.callback_url, signing_secrets


@retry_on_conflict
async def record(
    database: Database,
    delivery: Delivery,
    outcome: Outcome,
    *,
    retry_seconds: float | None,
    failing_seconds: float,
    counts_against_endpoint: bool,
) -> str | None:
    """Writes the outcome of an attempt, unless another process has claimed the row since.

    With `retry_seconds` None the delivery ends. A 410 disables the endpoint, and so does failure for
    `failing_seconds` without a success. Then the reason is returned. An outcome that does not count against the
    endpoint leaves its health unchanged.
    """
    is_over = outcome.is_delivered or retry_seconds is None
    changes = {
        "outcome": outcome.code,
        "status_code": outcome.status,
        "duration_ms": outcome.duration_ms,
        "lease_until": None,
        "next_run_at": None if is_over else utc_after(round(retry_seconds or 0, 3)),
        "delivered_at": utc_now() if outcome.is_delivered else None,
    }
    changes["status"] = "delivered" if outcome.is_delivered else "failed" if is_over else "pending"
    fence = (deliveries.c.id == delivery.id) & (deliveries.c.version == delivery.version)
    async with database.begin() as connection:
        statement = update(deliveries).where(fence).values(version=delivery.version + 1, **changes)
        written = await connection.execute(statement)
        if not written.rowcount or delivery.endpoint_id == CALLBACK or not counts_against_endpoint:
            return None
        return await _update_health(connection, delivery.endpoint_id, outcome, failing_seconds)


async def _update_health(
    connection: Connection, endpoint_id: int, outcome: Outcome, failing_seconds: float
) -> str | None:
    """Updates the endpoint's health. Returns the reason where this outcome disables it."""
    this = (endpoints.c.id == endpoint_id) & endpoints.c.disabled_at.is_(None)
    if outcome.is_delivered:
        recovered = update(endpoints).where(this, endpoints.c.failing_since.is_not(None))
        await connection.execute(recovered.values(failing_since=None, failed_at=None))
        return None
    # After a long gap without attempts the failure counts from now: the gateway did not try in between.
    is_continuous = endpoints.c.failed_at > utc_after(-MAX_ATTEMPT_GAP_SECONDS)
    since = case((is_continuous, endpoints.c.failing_since), else_=utc_now())
    failed = update(endpoints).where(this)  # MySQL assigns from left to right
    await connection.execute(
        failed.ordered_values((endpoints.c.failing_since, since), (endpoints.c.failed_at, utc_now()))
    )
    reason = GONE if outcome.code == "gone" else FAILING
    is_final = literal(True) if reason == GONE else endpoints.c.failing_since <= utc_after(-failing_seconds)
    disabled = await connection.execute(
        update(endpoints).where(this, is_final).values(disabled_at=utc_now(), disabled_reason=reason)
    )
    return reason if disabled.rowcount else None


async def overdue_seconds(database: Database) -> float:
    """How long the oldest due delivery has waited; 0 where none is due."""
    async with database.read() as connection:
        row = (await connection.execute(_OLDEST)).one()
    return 0.0 if row.oldest is None else max((row.now - row.oldest).total_seconds(), 0.0)


def host_of(url: ColumnElement[str]) -> ColumnElement[str]:
    """SQL for the host and port of a normalized URL, which always has a path."""
    rest = func.substr(url, func.instr(url, "//", type_=Integer) + 2, type_=String)
    return func.substr(rest, 1, func.instr(rest, "/", type_=Integer) - 1, type_=String)


_task, _user = bindparam("task", type_=Integer), bindparam("user", type_=Integer)
_new = [literal("pending"), literal(0), literal(0), utc_now(), utc_after(RETRY_WINDOW_SECONDS), utc_now()]
_ENQUEUE = insert(deliveries).from_select(
    [
        "user_id",
        "task_id",
        "endpoint_id",
        "host",
        "status",
        "version",
        "attempts",
        "next_run_at",
        "give_up_at",
        "created_at",
    ],
    union_all(
        select(_user, _task, literal(CALLBACK), host_of(tasks.c.callback_url), *_new).where(
            tasks.c.id == _task, tasks.c.callback_url.is_not(None)
        ),
        select(_user, _task, endpoints.c.id, host_of(endpoints.c.url), *_new).where(
            endpoints.c.user_id == _user,
            endpoints.c.disabled_at.is_(None),
            func.instr(endpoints.c.events, bindparam("event", type_=String), type_=Integer) > 0,
        ),
    ),
)
_DUE = (
    select(deliveries.c.id, deliveries.c.host, deliveries.c.user_id)
    .where(
        deliveries.c.next_run_at <= utc_now(),
        deliveries.c.host.not_in(bindparam("hosts", expanding=True)),
        deliveries.c.user_id.not_in(bindparam("users", expanding=True)),
        tuple_(deliveries.c.host, deliveries.c.user_id).not_in(bindparam("pairs", expanding=True)),
    )
    .order_by(deliveries.c.next_run_at)
    .limit(bindparam("limit"))
)
_ids = deliveries.c.id.in_(bindparam("ids", expanding=True))
_LOCK_DUE = (
    select(deliveries, utc_now().label("now"))
    .where(_ids, deliveries.c.next_run_at <= utc_now())
    .with_for_update(skip_locked=True)
)
_CLAIM = (
    update(deliveries)
    .where(_ids)
    .values(
        version=deliveries.c.version + 1,
        attempts=deliveries.c.attempts + 1,
        lease_until=utc_after(bindparam("lease")),
        next_run_at=utc_after(bindparam("lease")),
    )
)
_ENABLED = select(endpoints.c.url, *secrets_columns(endpoints)).where(
    endpoints.c.user_id == bindparam("user"), endpoints.c.disabled_at.is_(None)
)
_ENDPOINT = _ENABLED.where(endpoints.c.id == bindparam("endpoint"))
_OTHERS = _ENABLED.where(endpoints.c.id != bindparam("endpoint"))
_CALLBACK = (
    select(tasks.c.callback_url, *secrets_columns(webhook_secrets))
    .select_from(tasks.outerjoin(webhook_secrets, webhook_secrets.c.user_id == tasks.c.user_id))
    .where(tasks.c.id == bindparam("task"), tasks.c.callback_url.is_not(None))
)
_OLDEST = select(func.min(deliveries.c.next_run_at).label("oldest"), utc_now().label("now"))
