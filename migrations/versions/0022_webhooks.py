"""Webhooks: endpoints, secrets, and the outbox of deliveries."""

import sqlalchemy as sa
from alembic import op

from migrations.types import ID, LONG_TEXT, Json, UtcTime, binary_string

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None

MYSQL = {
    "mariadb_charset": "utf8mb4",
    "mariadb_engine": "InnoDB",
    "mysql_charset": "utf8mb4",
    "mysql_engine": "InnoDB",
}


def upgrade() -> None:
    op.add_column("tasks", sa.Column("callback_url", LONG_TEXT, nullable=True))
    op.create_table(
        "webhook_secrets",
        sa.Column("user_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("secret", binary_string(64), nullable=False),
        sa.Column("previous", binary_string(64), nullable=True),
        sa.Column("previous_until", UtcTime(), nullable=True),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("user_id"),
        **MYSQL,
    )
    op.create_table(
        "webhook_endpoints",
        sa.Column("id", ID, autoincrement=True, nullable=False),
        sa.Column("user_id", sa.BigInteger(), nullable=False),
        sa.Column("url", LONG_TEXT, nullable=False),
        sa.Column("events", Json(), nullable=False),
        sa.Column("secret", binary_string(64), nullable=False),
        sa.Column("previous", binary_string(64), nullable=True),
        sa.Column("previous_until", UtcTime(), nullable=True),
        sa.Column("failing_since", UtcTime(), nullable=True),
        sa.Column("failed_at", UtcTime(), nullable=True),
        sa.Column("disabled_at", UtcTime(), nullable=True),
        sa.Column("disabled_reason", sa.String(length=16), nullable=True),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.Column("updated_at", UtcTime(), nullable=False),
        sa.CheckConstraint(
            "(disabled_at IS NULL) = (disabled_reason IS NULL)", name=op.f("ck_webhook_endpoints_disabled")
        ),
        sa.PrimaryKeyConstraint("id"),
        sqlite_autoincrement=True,
        **MYSQL,
    )
    op.create_index("ix_webhook_endpoints_user_id", "webhook_endpoints", ["user_id"])
    op.create_table(
        "webhook_deliveries",
        sa.Column("id", ID, autoincrement=True, nullable=False),
        sa.Column("user_id", sa.BigInteger(), nullable=False),
        sa.Column("task_id", sa.BigInteger(), nullable=False),
        sa.Column("endpoint_id", sa.BigInteger(), nullable=False),
        sa.Column("host", binary_string(260), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("next_run_at", UtcTime(), nullable=True),
        sa.Column("lease_until", UtcTime(), nullable=True),
        sa.Column("give_up_at", UtcTime(), nullable=False),
        sa.Column("outcome", sa.String(length=16), nullable=True),
        sa.Column("status_code", sa.Integer(), nullable=True),
        sa.Column("duration_ms", sa.Integer(), nullable=True),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.Column("delivered_at", UtcTime(), nullable=True),
        sa.CheckConstraint("status IN ('pending', 'delivered', 'failed')", name=op.f("ck_webhook_deliveries_status")),
        sa.CheckConstraint(
            "(status = 'pending') = (next_run_at IS NOT NULL) AND (status = 'delivered') = (delivered_at IS NOT NULL)",
            name=op.f("ck_webhook_deliveries_ended"),
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("task_id", "endpoint_id", name=op.f("uq_webhook_deliveries_task_id_endpoint_id")),
        **MYSQL,
    )
    op.create_index("ix_webhook_deliveries_due", "webhook_deliveries", ["next_run_at", "host", "user_id"])
    op.create_index("ix_webhook_deliveries_newest", "webhook_deliveries", ["user_id", "id"])


def downgrade() -> None:
    op.drop_table("webhook_deliveries")
    op.drop_table("webhook_endpoints")
    op.drop_table("webhook_secrets")
    op.drop_column("tasks", "callback_url")
