"""What processes tell each other beside the tasks: how a provider stands, whose turn a chore is, what a model takes."""

from sqlalchemy import Boolean, Column, Float, Integer, String, Table

from app.tables.types import MYSQL, UtcTime, binary_string, metadata

circuit_breakers = Table(
    "circuit_breakers",
    metadata,
    Column("provider", binary_string(64), primary_key=True),
    Column("version", Integer, nullable=False),  # every UPDATE names the version that it follows
    Column("billable_open", Boolean, nullable=False),
    Column("free_open", Boolean, nullable=False),
    Column("reason", String(255), nullable=False),  # in the provider's words, for the operator
    Column("pause_seconds", Float, nullable=False),
    Column("opened_at", UtcTime, nullable=True),
    Column("open_until", UtcTime, nullable=True),
    Column("probe_until", UtcTime, nullable=True),  # a probe is under way; forgotten after this time
    Column("successes", Integer, nullable=False),
    Column("successes_at_open", Integer, nullable=False),
    Column("updated_at", UtcTime, nullable=False),
    **MYSQL,
)

scheduled_jobs = Table(
    "chores",
    metadata,
    Column("name", binary_string(64), primary_key=True),
    Column("version", Integer, nullable=False),  # the fence: a process that was frozen past its lease ends nothing
    Column("due_at", UtcTime, nullable=False),
    Column("lease_until", UtcTime, nullable=True),
    Column("completed_at", UtcTime, nullable=True),
    Column("result", Integer, nullable=True),  # the number the newest run answered with
    **MYSQL,
)

model_durations = Table(
    "model_durations",
    metadata,
    Column("model_name", binary_string(100), primary_key=True),
    Column("typical_seconds", Float, nullable=False),
    Column("samples", Integer, nullable=False),  # completed tasks it is the median of
    Column("updated_at", UtcTime, nullable=False),
    **MYSQL,
)
