"""What processes tell each other beside the tasks: how a provider stands, and whose turn a chore is."""

import sqlalchemy as sa
from alembic import op

from migrations.types import UtcTime, binary_string

revision = "0020"
down_revision = "0014"
branch_labels = None
depends_on = None

MYSQL = {
    "mariadb_charset": "utf8mb4",
    "mariadb_engine": "InnoDB",
    "mysql_charset": "utf8mb4",
    "mysql_engine": "InnoDB",
}


def upgrade() -> None:
    op.create_table(
        "circuit_breakers",
        sa.Column("provider", binary_string(64), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("billable_open", sa.Boolean(), nullable=False),
        sa.Column("free_open", sa.Boolean(), nullable=False),
        sa.Column("reason", sa.String(length=255), nullable=False),
        sa.Column("pause_seconds", sa.Float(), nullable=False),
        sa.Column("opened_at", UtcTime(), nullable=True),
        sa.Column("open_until", UtcTime(), nullable=True),
        sa.Column("probe_until", UtcTime(), nullable=True),
        sa.Column("successes", sa.Integer(), nullable=False),
        sa.Column("successes_at_open", sa.Integer(), nullable=False),
        sa.Column("updated_at", UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("provider"),
        **MYSQL,
    )
    op.create_table(
        "scheduled_jobs",
        sa.Column("name", binary_string(64), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("due_at", UtcTime(), nullable=False),
        sa.Column("lease_until", UtcTime(), nullable=True),
        sa.Column("completed_at", UtcTime(), nullable=True),
        sa.Column("result", sa.Integer(), nullable=True),
        sa.PrimaryKeyConstraint("name"),
        **MYSQL,
    )


def downgrade() -> None:
    op.drop_table("scheduled_jobs")
    op.drop_table("circuit_breakers")
