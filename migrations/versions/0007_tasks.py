"""Tasks: the record and the queue."""

import sqlalchemy as sa
from alembic import op

from migrations.types import ID, LONG_TEXT, PROMPT, Json, UtcTime, binary_string

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "tasks",
        sa.Column("id", ID, autoincrement=True, nullable=False),
        sa.Column("task_no", binary_string(40), nullable=False),
        sa.Column("user_id", sa.BigInteger(), nullable=False),
        sa.Column("model_name", binary_string(100), nullable=False),
        sa.Column("task_type", sa.String(length=32), nullable=False),
        sa.Column("action", binary_string(64), nullable=False),
        sa.Column("prompt", PROMPT, nullable=False),
        sa.Column("image_url", Json(), nullable=True),
        sa.Column("params", Json(), nullable=False),
        sa.Column("upstream_request", Json(), nullable=False),
        sa.Column("points_cost", sa.BigInteger(), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("progress", sa.Integer(), server_default="0", nullable=False),
        sa.Column("step", sa.String(length=16), nullable=False),
        sa.Column("version", sa.Integer(), server_default="0", nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("crashes", sa.Integer(), server_default="0", nullable=False),
        sa.Column("next_run_at", UtcTime(), nullable=True),
        sa.Column("lease_until", UtcTime(), nullable=True),
        sa.Column("deadline_at", UtcTime(), nullable=False),
        sa.Column("history", Json(), nullable=False),
        sa.Column("upstream_task_id", binary_string(128), nullable=True),
        sa.Column("upstream_state", Json(), nullable=True),
        sa.Column("suspected_orphan", sa.Boolean(), server_default="0", nullable=False),
        sa.Column("results", Json(), nullable=True),
        sa.Column("error_code", sa.String(length=64), nullable=True),
        sa.Column("error_message", sa.String(length=255), nullable=True),
        sa.Column("operator_note", LONG_TEXT, nullable=True),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.Column("updated_at", UtcTime(), nullable=False),
        sa.Column("completed_at", UtcTime(), nullable=True),
        sa.CheckConstraint("(status = 'completed') = (results IS NOT NULL)", name=op.f("ck_tasks_results")),
        sa.CheckConstraint(
            "(status IN ('completed', 'failed')) = (step = 'done') AND (step = 'done') = (completed_at IS NOT NULL) AND (step = 'done') = (next_run_at IS NULL)",
            name=op.f("ck_tasks_ended"),
        ),
        sa.CheckConstraint(
            "status IN ('created', 'queued', 'processing', 'completed', 'failed')",
            name=op.f("ck_tasks_status"),
        ),
        sa.CheckConstraint(
            "step IN ('prepare', 'submit', 'submitting', 'poll', 'rehost', 'done')", name=op.f("ck_tasks_step")
        ),
        sa.CheckConstraint("points_cost >= 0", name=op.f("ck_tasks_points_cost")),
        sa.CheckConstraint("progress BETWEEN 0 AND 100", name=op.f("ck_tasks_progress")),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("action", "upstream_task_id", name=op.f("uq_tasks_action_upstream_task_id")),
        sa.UniqueConstraint("task_no", name=op.f("uq_tasks_task_no")),
        mariadb_charset="utf8mb4",
        mariadb_engine="InnoDB",
        mysql_charset="utf8mb4",
        mysql_engine="InnoDB",
    )
    op.create_index("ix_tasks_due", "tasks", ["next_run_at"], unique=False)
    op.create_index("ix_tasks_live", "tasks", ["user_id", "completed_at"], unique=False)
    op.create_index("ix_tasks_newest", "tasks", ["user_id", "created_at"], unique=False)


def downgrade() -> None:
    op.drop_table("tasks")
