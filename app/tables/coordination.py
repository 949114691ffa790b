"""State that processes share, besides the tasks: circuit breakers, scheduled jobs and durations of models."""

from sqlalchemy import Boolean, Column, Float, Integer, String, Table

from app.tables.types import MYSQL, UtcTime, binary_string, metadata

circuit_breakers = Table(
    "circuit_breakers",
    metadata,
    Column("provider", binary_string(64), primary_key=True),
    Column("version", Integer, nullable=False),  # the fence: an update names the version that it read
    Column("billable_open", Boolean, nullable=False),
    Column("free_open", Boolean, nullable=False),
    Column("reason", String(255), nullable=False),  # the provider's error message, for the operator
    Column("pause_seconds", Float, nullable=False),
    Column("opened_at", UtcTime, nullable=True),
    Column("open_until", UtcTime, nullable=True),
    Column("probe_until", UtcTime, nullable=True),  # a probe is under way; forgotten after this time
    Column("successes", Integer, nullable=False),  # accepted jobs, counted up to the second after each opening
    Column("successes_at_open", Integer, nullable=False),
    Column("updated_at", UtcTime, nullable=False),
    **MYSQL,
)

scheduled_jobs = Table(
    "scheduled_jobs",
    metadata,
    Column("name", binary_string(64), primary_key=True),
    Column("version", Integer, nullable=False),  # the fence: a process whose lease ran out cannot complete the run
    Column("due_at", UtcTime, nullable=False),
    Column("lease_until", UtcTime, nullable=True),
    Column("completed_at", UtcTime, nullable=True),
    Column("result", Integer, nullable=True),  # the number that the newest run returned
    **MYSQL,
)

model_durations = Table(
    "model_durations",
    metadata,
    Column("model_name", binary_string(100), primary_key=True),
    Column("typical_seconds", Float, nullable=False),
    Column("samples", Integer, nullable=False),  # number of completed tasks in the median
    Column("updated_at", UtcTime, nullable=False),
    **MYSQL,
)
