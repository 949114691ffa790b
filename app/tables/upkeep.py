"""What processes tell each other beside the tasks: how a provider stands, whose turn a chore is, what a model takes."""

from sqlalchemy import Boolean, Column, Float, Integer, String, Table

from app.tables.columns import MYSQL, UtcTime, exact, metadata

provider_state = Table(
    "circuit_breakers",
    metadata,
    Column("provider", exact(64), primary_key=True),
    Column("version", Integer, nullable=False),  # the fence: who changes it names the state it knew
    Column("billable_open", Boolean, key="refuses_jobs", nullable=False),
    Column("free_open", Boolean, key="refuses_looks", nullable=False),
    Column("reason", String(255), nullable=False),  # in the provider's words, for the operator
    Column("pause_seconds", Float, nullable=False),
    Column("opened_at", UtcTime, nullable=True),
    Column("open_until", UtcTime, key="next_probe_at", nullable=True),
    Column("probe_until", UtcTime, nullable=True),  # somebody asks; forgotten when it is over
    Column("updated_at", UtcTime, nullable=False),
    **MYSQL,
)

chores = Table(
    "scheduled_jobs",
    metadata,
    Column("name", exact(64), primary_key=True),
    Column("version", Integer, nullable=False),  # the fence: a process that was frozen past its lease ends nothing
    Column("due_at", UtcTime, nullable=False),
    Column("lease_until", UtcTime, nullable=True),
    Column("completed_at", UtcTime, key="done_at", nullable=True),
    Column("result", Integer, nullable=True),  # the number the newest run answered with
    **MYSQL,
)

model_durations = Table(
    "model_durations",
    metadata,
    Column("model_name", exact(100), primary_key=True),
    Column("typical_seconds", Float, key="usual_seconds", nullable=False),
    Column("samples", Integer, nullable=False),  # completed tasks it is the median of
    Column("updated_at", UtcTime, nullable=False),
    **MYSQL,
)
