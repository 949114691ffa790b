"""The table of models and their prices."""

from sqlalchemy import Boolean, CheckConstraint, Column, Integer, String, Table, UniqueConstraint

from app.tables.types import ID, MYSQL, POINTS, Json, UtcTime, binary_string, metadata

points_config = Table(
    "points_config",
    metadata,
    Column("id", ID, primary_key=True, autoincrement=True),
    Column("model_name", binary_string(100), nullable=False),
    Column("description", String(255), nullable=False),
    Column("points_cost", POINTS, nullable=False),
    Column("task_type", String(32), nullable=False),
    Column("action", binary_string(64), nullable=False),  # the SEE2AI action
    Column("params", Json, nullable=False),  # fixed params, which a caller cannot override
    Column("defaults", Json, nullable=False),  # default params, which a caller can override
    Column("price_rules", Json, nullable=True),
    Column("enabled", Boolean, nullable=False, server_default="1"),
    Column("sort", Integer, nullable=False, server_default="0"),
    Column("created_at", UtcTime, nullable=False),
    Column("updated_at", UtcTime, nullable=False),
    UniqueConstraint("model_name"),
    CheckConstraint("points_cost >= 0", name="points_cost"),
    **MYSQL,
)
