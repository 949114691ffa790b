"""Tasks, webhooks, and what processes share beside them. `app/tables` says what each column is for."""

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Float,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    UniqueConstraint,
)

from migrations.ddl import create_tables, drop_tables
from migrations.types import ID, JSON, LONG_TEXT, SEARCHED_TEXT, TABLE_OPTIONS, UTC_TIME, binary_string

revision = "v1_tasks_and_webhooks"
down_revision = "v1_users_and_points"
branch_labels = None
depends_on = None

schema = MetaData()

tasks = Table(
    "tasks",
    schema,
    Column("id", ID, primary_key=True, autoincrement=True),
    Column("task_no", binary_string(40), nullable=False),
    Column("user_id", BigInteger, nullable=False),
    Column("model_name", binary_string(100), nullable=False),
    Column("task_type", String(32), nullable=False),
    Column("action", binary_string(64), nullable=False),
    Column("prompt", SEARCHED_TEXT, nullable=False),
    Column("image_url", JSON, nullable=True),
    Column("params", JSON, nullable=False),
    Column("upstream_request", JSON, nullable=False),
    Column("points_cost", BigInteger, nullable=False),
    Column("status", String(16), nullable=False),
    Column("progress", Integer, nullable=False, server_default="0"),
    Column("step", String(16), nullable=False),
    Column("version", Integer, nullable=False, server_default="0"),
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("crashes", Integer, nullable=False, server_default="0"),
    Column("next_run_at", UTC_TIME, nullable=True),
    Column("lease_until", UTC_TIME, nullable=True),
    Column("deadline_at", UTC_TIME, nullable=False),
    Column("history", JSON, nullable=False),
    Column("upstream_task_id", binary_string(128), nullable=True),
    Column("upstream_state", JSON, nullable=True),
    Column("suspected_orphan", Boolean, nullable=False, server_default="0"),
    Column("results", JSON, nullable=True),
    Column("error_code", String(64), nullable=True),
    Column("error_message", String(255), nullable=True),
    Column("operator_note", LONG_TEXT, nullable=True),
    Column("created_at", UTC_TIME, nullable=False),
    Column("updated_at", UTC_TIME, nullable=False),
    Column("completed_at", UTC_TIME, nullable=True),
    Column("idempotency_key", binary_string(128), nullable=True),
    Column("idempotency_digest", String(64), nullable=True),
    Column("callback_url", LONG_TEXT, nullable=True),
    UniqueConstraint("action", "upstream_task_id", name="uq_tasks_action_upstream_task_id"),
    UniqueConstraint("task_no", name="uq_tasks_task_no"),
    Index("uq_tasks_user_id_idempotency_key", "user_id", "idempotency_key", unique=True),
    Index("ix_tasks_due", "next_run_at"),
    Index("ix_tasks_newest", "user_id", "created_at"),
    Index("ix_tasks_changed", "user_id", "updated_at"),
    Index("ix_tasks_live", "user_id", "completed_at"),
    CheckConstraint("status IN ('created', 'queued', 'processing', 'completed', 'failed')", name="ck_tasks_status"),
    CheckConstraint("step IN ('prepare', 'submit', 'submitting', 'poll', 'rehost', 'done')", name="ck_tasks_step"),
    CheckConstraint("progress BETWEEN 0 AND 100", name="ck_tasks_progress"),
    CheckConstraint("points_cost >= 0", name="ck_tasks_points_cost"),
    CheckConstraint(
        "(status IN ('completed', 'failed')) = (step = 'done')"
        " AND (step = 'done') = (completed_at IS NOT NULL) AND (step = 'done') = (next_run_at IS NULL)",
        name="ck_tasks_ended",
    ),
    CheckConstraint("(status = 'completed') = (results IS NOT NULL)", name="ck_tasks_results"),
    **TABLE_OPTIONS,
)

webhook_secrets = Table(
    "webhook_secrets",
    schema,
    Column("user_id", BigInteger, primary_key=True, autoincrement=False),
    Column("secret", binary_string(64), nullable=False),
    Column("previous", binary_string(64), nullable=True),
    Column("previous_until", UTC_TIME, nullable=True),
    Column("created_at", UTC_TIME, nullable=False),
    **TABLE_OPTIONS,
)

webhook_endpoints = Table(
    "webhook_endpoints",
    schema,
    Column("id", ID, primary_key=True, autoincrement=True),
    Column("user_id", BigInteger, nullable=False),
    Column("url", LONG_TEXT, nullable=False),
    Column("events", JSON, nullable=False),
    Column("secret", binary_string(64), nullable=False),
    Column("previous", binary_string(64), nullable=True),
    Column("previous_until", UTC_TIME, nullable=True),
    Column("failing_since", UTC_TIME, nullable=True),
    Column("failed_at", UTC_TIME, nullable=True),
    Column("disabled_at", UTC_TIME, nullable=True),
    Column("disabled_reason", String(16), nullable=True),
    Column("created_at", UTC_TIME, nullable=False),
    Column("updated_at", UTC_TIME, nullable=False),
    Index("ix_webhook_endpoints_user_id", "user_id"),
    CheckConstraint("(disabled_at IS NULL) = (disabled_reason IS NULL)", name="ck_webhook_endpoints_disabled"),
    sqlite_autoincrement=True,
    **TABLE_OPTIONS,
)

webhook_deliveries = Table(
    "webhook_deliveries",
    schema,
    Column("id", ID, primary_key=True, autoincrement=True),
    Column("user_id", BigInteger, nullable=False),
    Column("task_id", BigInteger, nullable=False),
    Column("endpoint_id", BigInteger, nullable=False),
    Column("host", binary_string(260), nullable=False),
    Column("status", String(16), nullable=False),
    Column("version", Integer, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("next_run_at", UTC_TIME, nullable=True),
    Column("lease_until", UTC_TIME, nullable=True),
    Column("give_up_at", UTC_TIME, nullable=False),
    Column("outcome", String(16), nullable=True),
    Column("status_code", Integer, nullable=True),
    Column("duration_ms", Integer, nullable=True),
    Column("created_at", UTC_TIME, nullable=False),
    Column("delivered_at", UTC_TIME, nullable=True),
    UniqueConstraint("task_id", "endpoint_id", name="uq_webhook_deliveries_task_id_endpoint_id"),
    Index("ix_webhook_deliveries_due", "next_run_at", "host", "user_id"),
    Index("ix_webhook_deliveries_newest", "user_id", "id"),
    CheckConstraint("status IN ('pending', 'delivered', 'failed')", name="ck_webhook_deliveries_status"),
    CheckConstraint(
        "(status = 'pending') = (next_run_at IS NOT NULL) AND (status = 'delivered') = (delivered_at IS NOT NULL)",
        name="ck_webhook_deliveries_ended",
    ),
    **TABLE_OPTIONS,
)

model_durations = Table(
    "model_durations",
    schema,
    Column("model_name", binary_string(100), primary_key=True),
    Column("typical_seconds", Float, nullable=False),
    Column("samples", Integer, nullable=False),
    Column("updated_at", UTC_TIME, nullable=False),
    **TABLE_OPTIONS,
)

circuit_breakers = Table(
    "circuit_breakers",
    schema,
    Column("provider", binary_string(64), primary_key=True),
    Column("version", Integer, nullable=False),
    Column("billable_open", Boolean, nullable=False),
    Column("free_open", Boolean, nullable=False),
    Column("reason", String(255), nullable=False),
    Column("pause_seconds", Float, nullable=False),
    Column("opened_at", UTC_TIME, nullable=True),
    Column("open_until", UTC_TIME, nullable=True),
    Column("probe_until", UTC_TIME, nullable=True),
    Column("successes", Integer, nullable=False),
    Column("successes_at_open", Integer, nullable=False),
    Column("updated_at", UTC_TIME, nullable=False),
    **TABLE_OPTIONS,
)

scheduled_jobs = Table(
    "scheduled_jobs",
    schema,
    Column("name", binary_string(64), primary_key=True),
    Column("version", Integer, nullable=False),
    Column("due_at", UTC_TIME, nullable=False),
    Column("lease_until", UTC_TIME, nullable=True),
    Column("completed_at", UTC_TIME, nullable=True),
    Column("result", Integer, nullable=True),
    **TABLE_OPTIONS,
)


def upgrade() -> None:
    create_tables(schema)


def downgrade() -> None:
    drop_tables(schema)
