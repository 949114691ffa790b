"""The tables of webhooks: signing secrets, endpoints, and the outbox of deliveries."""

from sqlalchemy import BigInteger, CheckConstraint, Column, Index, Integer, String, Table, UniqueConstraint

from app.tables.types import ID, LONG_TEXT, MYSQL, Json, UtcTime, binary_string, metadata

# Signs the webhooks to the `callbackUrl`s of a user's tasks. Endpoints have their own secrets.
webhook_secrets = Table(
    "webhook_secrets",
    metadata,
    Column("user_id", BigInteger, primary_key=True, autoincrement=False),
    Column("secret", binary_string(64), nullable=False),  # in clear, because signing needs it
    Column("previous", binary_string(64), nullable=True),  # also signs, until `previous_until`
    Column("previous_until", UtcTime, nullable=True),
    Column("created_at", UtcTime, nullable=False),
    **MYSQL,
)

webhook_endpoints = Table(
    "webhook_endpoints",
    metadata,
    Column("id", ID, primary_key=True, autoincrement=True),
    Column("user_id", BigInteger, nullable=False),
    Column("url", LONG_TEXT, nullable=False),  # normalized
    Column("events", Json, nullable=False),  # the subscribed event types
    Column("secret", binary_string(64), nullable=False),
    Column("previous", binary_string(64), nullable=True),
    Column("previous_until", UtcTime, nullable=True),
    Column("failing_since", UtcTime, nullable=True),  # first failure after the newest success
    Column("failed_at", UtcTime, nullable=True),  # newest failure
    Column("disabled_at", UtcTime, nullable=True),  # NULL while enabled
    Column("disabled_reason", String(16), nullable=True),
    Column("created_at", UtcTime, nullable=False),
    Column("updated_at", UtcTime, nullable=False),
    Index("ix_webhook_endpoints_user_id", "user_id"),
    CheckConstraint("(disabled_at IS NULL) = (disabled_reason IS NULL)", name="disabled"),
    sqlite_autoincrement=True,  # never reuses the id of a deleted endpoint, because deliveries may still name it
    **MYSQL,
)

webhook_deliveries = Table(
    "webhook_deliveries",
    metadata,
    Column("id", ID, primary_key=True, autoincrement=True),
    Column("user_id", BigInteger, nullable=False),
    Column("task_id", BigInteger, nullable=False),
    Column("endpoint_id", BigInteger, nullable=False),  # 0: the task's own callbackUrl
    Column("host", binary_string(260), nullable=False),  # host:port of the receiver, for the limit per host
    Column("status", String(16), nullable=False),
    Column("version", Integer, nullable=False),  # the fence: each claim increments it
    Column("attempts", Integer, nullable=False),  # started since the delivery was queued or replayed
    Column("next_run_at", UtcTime, nullable=True),
    Column("lease_until", UtcTime, nullable=True),
    Column("give_up_at", UtcTime, nullable=False),
    # the newest attempt
    Column("outcome", String(16), nullable=True),
    Column("status_code", Integer, nullable=True),
    Column("duration_ms", Integer, nullable=True),
    Column("created_at", UtcTime, nullable=False),
    Column("delivered_at", UtcTime, nullable=True),
    UniqueConstraint("task_id", "endpoint_id"),  # one delivery per task and receiver
    Index("ix_webhook_deliveries_due", "next_run_at", "host", "user_id"),
    Index("ix_webhook_deliveries_newest", "user_id", "id"),
    CheckConstraint("status IN ('pending', 'delivered', 'failed')", name="status"),
    CheckConstraint(
        "(status = 'pending') = (next_run_at IS NOT NULL) AND (status = 'delivered') = (delivered_at IS NOT NULL)",
        name="ended",
    ),
    **MYSQL,
)
