"""The table of tasks. It is both the record and the work queue."""

from datetime import UTC, datetime

from sqlalchemy import BigInteger, Boolean, CheckConstraint, Column, Index, Integer, String, Table, UniqueConstraint

from app.tables.types import ID, LONG_TEXT, MYSQL, POINTS, PROMPT, Json, UtcTime, binary_string, metadata

ERASED_UPDATE_TIME = datetime(1900, 1, 1, tzinfo=UTC)
"""The `updated_at` of erased tasks: `ix_tasks_changed` then lists those of a user without a row being read."""

tasks = Table(
    "tasks",
    metadata,
    Column("id", ID, primary_key=True, autoincrement=True),
    Column("task_no", binary_string(40), nullable=False),
    Column("user_id", BigInteger, nullable=False),
    Column("key_id", BigInteger, nullable=True),  # of the API key that submitted it; NULL: a JWT
    Column("end_user", binary_string(128), nullable=True),  # as the integration names them
    # the request and its price
    Column("model_name", binary_string(100), nullable=False),
    Column("task_type", String(32), nullable=False),
    Column("action", binary_string(64), nullable=False),
    Column("prompt", PROMPT, nullable=False),
    Column("image_url", Json, nullable=True),  # as submitted, without padding: a string, or a list
    Column("params", Json, nullable=False),  # as submitted
    Column("upstream_request", Json, nullable=False),  # the request body for SEE2AI, fixed at submit
    Column("points_cost", POINTS, nullable=False),
    # the state
    Column("status", String(16), nullable=False),
    Column("progress", Integer, nullable=False, server_default="0"),
    Column("step", String(16), nullable=False),
    Column("version", Integer, nullable=False, server_default="0"),  # the fence: each claim increments it
    Column("attempts", Integer, nullable=False, server_default="0"),  # failed attempts of this step, in a row
    Column("crashes", Integer, nullable=False, server_default="0"),  # claims that ended without a result, in a row
    Column("next_run_at", UtcTime, nullable=True),
    Column("lease_until", UtcTime, nullable=True),
    Column("deadline_at", UtcTime, nullable=False),
    Column("history", Json, nullable=False),  # a short history for the operator
    # the job at SEE2AI
    Column("upstream_task_id", binary_string(128), nullable=True),
    Column("upstream_state", Json, nullable=True),  # result URLs and poll counters; never shown to callers
    Column("suspected_orphan", Boolean, nullable=False, server_default="0"),
    # the outcome
    Column("results", Json, nullable=True),  # [{key, thumbnailKey, type, width, height, bytes}]
    Column("error_code", String(64), nullable=True),
    Column("error_message", String(255), nullable=True),
    Column("operator_note", LONG_TEXT, nullable=True),
    Column("created_at", UtcTime, nullable=False),
    Column("updated_at", UtcTime, nullable=False),
    Column("completed_at", UtcTime, nullable=True),
    Column("erased_at", UtcTime, nullable=True),  # prompt, parameters and results are gone
    Column("callback_url", LONG_TEXT, nullable=True),  # normalized; receives a webhook when the task ends
    Column("idempotency_key", binary_string(128), nullable=True),
    Column("idempotency_digest", String(64), nullable=True),  # SHA-256 of the request under this key
    UniqueConstraint("task_no"),
    Index("uq_tasks_user_id_idempotency_key", "user_id", "idempotency_key", unique=True),
    UniqueConstraint("action", "upstream_task_id"),
    Index("ix_tasks_due", "next_run_at"),
    Index("ix_tasks_newest", "user_id", "created_at"),
    Index("ix_tasks_changed", "user_id", "updated_at"),  # finds a user's tasks changed since a time
    # Counts a user's running tasks, where the last two are NULL, and the newest tasks that ended with a code.
    Index("ix_tasks_ended", "user_id", "error_code", "completed_at"),
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
