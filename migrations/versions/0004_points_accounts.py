"""Accounts of points."""

import sqlalchemy as sa
from alembic import op

from migrations.types import UtcTime

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "points_accounts",
        sa.Column("user_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("available", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("held", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("granted", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("spent", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("expired", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("seq", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("updated_at", UtcTime(), nullable=False),
        sa.CheckConstraint("available >= 0", name=op.f("ck_points_accounts_available")),
        sa.CheckConstraint(
            "granted = available + held + spent + expired", name=op.f("ck_points_accounts_conservation")
        ),
        sa.CheckConstraint("granted >= 0 AND spent >= 0 AND expired >= 0", name=op.f("ck_points_accounts_totals")),
        sa.CheckConstraint("held >= 0", name=op.f("ck_points_accounts_held")),
        sa.PrimaryKeyConstraint("user_id"),
        mariadb_charset="utf8mb4",
        mariadb_engine="InnoDB",
        mysql_charset="utf8mb4",
        mysql_engine="InnoDB",
    )


def downgrade() -> None:
    op.drop_table("points_accounts")
