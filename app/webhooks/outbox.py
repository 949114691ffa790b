"""The outbox: a row for each end and each receiver, written with the end itself, and claimed until it is delivered.

Claims are as those of tasks: leased by the database's clock and fenced by `version`. A row whose lease ran out was
left by a process that never came back, and is told again: at least once, under the same message id.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Integer, String, bindparam, case, func, insert, literal, select, union_all, update

from app.database import Connection, Database, retry_on_conflict, utc_after, utc_now
from app.tables import tasks, webhook_secrets
from app.tables import webhook_deliveries as deliveries
from app.tables import webhook_endpoints as endpoints
from app.webhooks.sender import Outcome
from app.webhooks.signing_secrets import SigningSecrets, get_secrets, secrets_columns, secrets_from_row

COMPLETED, FAILED, DISABLED = "task.completed", "task.failed", "webhook.disabled"
RETRY_WINDOW_SECONDS = 24 * 3600.0
"""How long a receiver is tried."""
CALLBACK = 0
"""The `endpoint_id` of what goes to the task's own callbackUrl."""
GONE, FAILING = "gone", "failing"
MAX_ATTEMPT_GAP_SECONDS = 10 * 3600.0
"""Between two attempts of one delivery, which are at most eight hours and a fifth apart."""


async def enqueue(connection: Connection, *, user_id: int, task_id: int, event: str) -> None:
    """Joins the transaction that ends the task: one statement, which finds nobody to tell for most users."""
    await connection.execute(_ENQUEUE, {"user": user_id, "task": task_id, "event": f'"{event}"'})


@dataclass(frozen=True, slots=True)
class Due:
    """What is due, and for whom: enough to share the hands out fairly."""

    id: int
    host: str
    user_id: int


@dataclass(frozen=True, slots=True)
class Delivery:
    """One attempt in this process's hands; `attempts` counts it. `seconds_left`: until nobody tries any longer."""

    id: int
    host: str
    user_id: int
    task_id: int
    endpoint_id: int
    version: int
    attempts: int
    seconds_left: float


async def find_due(database: Database, most: int, *, hosts: Collection[str], users: Collection[int]) -> list[Due]:
    """Up to `most` due rows, the longest due first, but none for these hosts and users."""
    passed_over = {"most": most, "hosts": list(hosts), "users": list(users)}
    async with database.read() as connection:
        return [Due(*row) for row in await connection.execute(_LOOK, passed_over)]


@retry_on_conflict
async def claim(database: Database, chosen: Sequence[Due], lease_seconds: float) -> list[Delivery]:
    """Those of the chosen that are still due; no row is handed to two processes."""
    async with database.begin() as connection:
        rows = (await connection.execute(_THESE, {"ids": [due.id for due in chosen]})).all()
        if rows:
            await connection.execute(_TAKE, {"ids": [row.id for row in rows], "lease": lease_seconds})
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
    """The user's other endpoints that are told of things, and what signs for each."""
    async with database.read() as connection:
        rows = await connection.execute(_OTHERS, {"endpoint": delivery.endpoint_id, "user": delivery.user_id})
        return [(row.url, secrets_from_row(row)) for row in rows]


async def find_target(database: Database, delivery: Delivery) -> tuple[str, SigningSecrets] | None:
    """The address as it is now, and what signs for it; None where nobody is to be told any longer."""
    async with database.read() as connection:
        if delivery.endpoint_id != CALLBACK:
            this = {"endpoint": delivery.endpoint_id, "user": delivery.user_id}
            row = (await connection.execute(_ENDPOINT, this)).one_or_none()
            return None if row is None else (row.url, secrets_from_row(row))
        row = (await connection.execute(_CALLBACK, {"task": delivery.task_id})).one_or_none()
    if row is None:
        return None
    keys = await get_secrets(database, delivery.user_id) if row.secret is None else secrets_from_row(row)
    return row.callback_url, keys


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
    """Writes what became of an attempt; nothing where the row is in other hands by now.

    None for `retry_seconds` ends it. An endpoint is disabled by a 410, or once it has failed for `failing_seconds`
    without a success between: then the reason is answered. Only what `counts_against_endpoint` says anything about it.
    """
    is_over = outcome.is_delivered or retry_seconds is None
    told = {
        "outcome": outcome.code,
        "status_code": outcome.status,
        "duration_ms": outcome.duration_ms,
        "lease_until": None,
        "next_run_at": None if is_over else utc_after(round(retry_seconds or 0, 3)),
        "delivered_at": utc_now() if outcome.is_delivered else None,
    }
    told["status"] = "delivered" if outcome.is_delivered else "failed" if is_over else "pending"
    fence = (deliveries.c.id == delivery.id) & (deliveries.c.version == delivery.version)
    async with database.begin() as connection:
        wrote = await connection.execute(update(deliveries).where(fence).values(version=delivery.version + 1, **told))
        if not wrote.rowcount or delivery.endpoint_id == CALLBACK or not counts_against_endpoint:
            return None
        return await _update_health(connection, delivery.endpoint_id, outcome, failing_seconds)


async def _update_health(
    connection: Connection, endpoint_id: int, outcome: Outcome, failing_seconds: float
) -> str | None:
    """How the endpoint does; the reason where this outcome disables it."""
    this = (endpoints.c.id == endpoint_id) & endpoints.c.disabled_at.is_(None)
    if outcome.is_delivered:
        works = update(endpoints).where(this, endpoints.c.failing_since.is_not(None))
        await connection.execute(works.values(failing_since=None, failed_at=None))
        return None
    # Where nobody tried for so long, we were not there, and nothing is known of the time between.
    is_kept_up = endpoints.c.failed_at > utc_after(-MAX_ATTEMPT_GAP_SECONDS)
    since = case((is_kept_up, endpoints.c.failing_since), else_=utc_now())
    failed = update(endpoints).where(this)  # MySQL assigns from left to right
    await connection.execute(
        failed.ordered_values((endpoints.c.failing_since, since), (endpoints.c.failed_at, utc_now()))
    )
    reason = GONE if outcome.code == "gone" else FAILING
    too_long = literal(True) if reason == GONE else endpoints.c.failing_since <= utc_after(-failing_seconds)
    disabled = await connection.execute(
        update(endpoints).where(this, too_long).values(disabled_at=utc_now(), disabled_reason=reason)
    )
    return reason if disabled.rowcount else None


async def overdue_seconds(database: Database) -> float:
    """How long the longest due row has waited for a hand; 0 where none is due."""
    async with database.read() as connection:
        row = (await connection.execute(_OLDEST)).one()
    return 0.0 if row.oldest is None else max((row.now - row.oldest).total_seconds(), 0.0)


def host_of(url: ColumnElement[str]) -> ColumnElement[str]:
    """Host and port of a URL in our spelling, which always has a path."""
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
_LOOK = (
    select(deliveries.c.id, deliveries.c.host, deliveries.c.user_id)
    .where(
        deliveries.c.next_run_at <= utc_now(),
        deliveries.c.host.not_in(bindparam("hosts", expanding=True)),
        deliveries.c.user_id.not_in(bindparam("users", expanding=True)),
    )
    .order_by(deliveries.c.next_run_at)
    .limit(bindparam("most"))
)
_ids = deliveries.c.id.in_(bindparam("ids", expanding=True))
_THESE = (
    select(deliveries, utc_now().label("now"))
    .where(_ids, deliveries.c.next_run_at <= utc_now())
    .with_for_update(skip_locked=True)
)
_TAKE = (
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
