"""Models and prices."""

import sqlalchemy as sa
from alembic import op

from migrations.types import ID, Json, UtcTime, binary_string

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "points_config",
        sa.Column("id", ID, autoincrement=True, nullable=False),
        sa.Column("model_name", binary_string(100), nullable=False),
        sa.Column("description", sa.String(length=255), nullable=False),
        sa.Column("points_cost", sa.BigInteger(), nullable=False),
        sa.Column("task_type", sa.String(length=32), nullable=False),
        sa.Column("action", binary_string(64), nullable=False),
        sa.Column("params", Json(), nullable=False),
        sa.Column("defaults", Json(), nullable=False),
        sa.Column("price_rules", Json(), nullable=True),
        sa.Column("enabled", sa.Boolean(), server_default="1", nullable=False),
        sa.Column("sort", sa.Integer(), server_default="0", nullable=False),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.Column("updated_at", UtcTime(), nullable=False),
        sa.CheckConstraint("points_cost >= 0", name=op.f("ck_points_config_points_cost")),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("model_name", name=op.f("uq_points_config_model_name")),
        mariadb_charset="utf8mb4",
        mariadb_engine="InnoDB",
        mysql_charset="utf8mb4",
        mysql_engine="InnoDB",
    )


def downgrade() -> None:
    op.drop_table("points_config")
