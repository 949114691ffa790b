"""Tasks: the record and the queue."""

from sqlalchemy import BigInteger, Boolean, CheckConstraint, Column, Index, Integer, String, Table, UniqueConstraint

from app.tables.columns import ID, LONG_TEXT, MYSQL, POINTS, PROMPT, Json, UtcTime, exact, metadata

tasks = Table(
    "tasks",
    metadata,
    Column("id", ID, primary_key=True, autoincrement=True),
    Column("task_no", exact(40), nullable=False),
    Column("user_id", BigInteger, nullable=False),
    # what was asked, and at which price
    Column("model_name", exact(100), nullable=False),
    Column("task_type", String(32), nullable=False),
    Column("action", exact(64), nullable=False),
    Column("prompt", PROMPT, nullable=False),
    Column("image_url", Json, nullable=True),  # as submitted: a string, or a list
    Column("params", Json, nullable=False),  # the caller's own
    Column("upstream_request", Json, key="request", nullable=False),  # the body for SEE2AI, fixed at submit
    Column("points_cost", POINTS, nullable=False),
    # where it stands
    Column("status", String(16), nullable=False),
    Column("progress", Integer, nullable=False, server_default="0"),
    Column("step", String(16), nullable=False),
    Column("version", Integer, nullable=False, server_default="0"),  # the fence: only grows
    Column("attempts", Integer, nullable=False, server_default="0"),  # failed tries of this step, in a row
    Column("crashes", Integer, nullable=False, server_default="0"),  # visits that never came back, in a row
    Column("next_run_at", UtcTime, nullable=True),
    Column("lease_until", UtcTime, nullable=True),
    Column("deadline_at", UtcTime, nullable=False),
    Column("history", Json, key="steps", nullable=False),  # a short history for the operator
    # what SEE2AI said
    Column("upstream_task_id", exact(128), nullable=True),
    Column(
        "upstream_state", Json, key="upstream", nullable=True
    ),  # result URLs and counters of the looks; never shown to callers
    Column("suspected_orphan", Boolean, nullable=False, server_default="0"),
    # how it ended
    Column("results", Json, nullable=True),  # [{key, thumbnailKey, type, width, height, bytes}]
    Column("error_code", String(64), nullable=True),
    Column("error_message", String(255), nullable=True),
    Column("operator_note", LONG_TEXT, nullable=True),
    Column("created_at", UtcTime, nullable=False),
    Column("updated_at", UtcTime, nullable=False),
    Column("completed_at", UtcTime, nullable=True),
    Column("callback_url", LONG_TEXT, nullable=True),  # as it is dialled; told of the end
    # the caller's own name for this very submit, and what was asked under it
    Column("idempotency_key", exact(128), nullable=True),
    Column("idempotency_digest", String(64), nullable=True),
    UniqueConstraint("task_no"),
    Index("uq_tasks_user_id_idempotency_key", "user_id", "idempotency_key", unique=True),
    UniqueConstraint("action", "upstream_task_id"),
    Index("ix_tasks_due", "next_run_at"),
    Index("ix_tasks_newest", "user_id", "created_at"),
    Index("ix_tasks_changed", "user_id", "updated_at"),  # what of a user's changed since
    Index("ix_tasks_live", "user_id", "completed_at"),  # how many of a user's tasks run: completed_at is NULL
    CheckConstraint("status IN ('created', 'queued', 'processing', 'completed', 'failed')", name="status"),
    CheckConstraint("step IN ('prepare', 'submit', 'submitting', 'poll', 'rehost', 'done')", name="step"),
    CheckConstraint("progress BETWEEN 0 AND 100", name="progress"),
    CheckConstraint("points_cost >= 0", name="points_cost"),
    CheckConstraint(
        "(status IN ('completed', 'failed')) = (step = 'done')"
        " AND (step = 'done') = (completed_at IS NOT NULL) AND (step = 'done') = (next_run_at IS NULL)",
        name="ended",
    ),
    CheckConstraint("(status = 'completed') = (results IS NOT NULL)", name="results"),
    **MYSQL,
)
