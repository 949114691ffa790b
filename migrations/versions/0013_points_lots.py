"""Points that expire: lots, what tasks took from them, and when the next of an account is due."""

import sqlalchemy as sa
from alembic import op

from migrations.types import ID, UtcTime, binary_string

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

INNODB = {
    "mariadb_charset": "utf8mb4",
    "mariadb_engine": "InnoDB",
    "mysql_charset": "utf8mb4",
    "mysql_engine": "InnoDB",
}


def upgrade() -> None:
    op.create_table(
        "points_lots",
        sa.Column("id", ID, autoincrement=True, nullable=False),
        sa.Column("user_id", sa.BigInteger(), nullable=False),
        sa.Column("ref", binary_string(128), nullable=True),
        sa.Column("origin_lot_id", sa.BigInteger(), nullable=True),
        sa.Column("granted", sa.BigInteger(), nullable=False),
        sa.Column("remaining", sa.BigInteger(), nullable=False),
        sa.Column("expired", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("expires_at", UtcTime(), nullable=False),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.CheckConstraint("granted > 0 AND remaining >= 0 AND expired >= 0", name=op.f("ck_points_lots_points")),
        sa.CheckConstraint("remaining + expired <= granted", name=op.f("ck_points_lots_granted")),
        sa.CheckConstraint("(ref IS NULL) = (origin_lot_id IS NOT NULL)", name=op.f("ck_points_lots_origin")),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("ref", name=op.f("uq_points_lots_ref")),
        **INNODB,
    )
    op.create_index("ix_points_lots_live", "points_lots", ["user_id", "remaining", "expires_at"])
    op.create_table(
        "points_lot_uses",
        sa.Column("task_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("lot_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("points", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("points > 0", name=op.f("ck_points_lot_uses_points")),
        sa.PrimaryKeyConstraint("task_id", "lot_id"),
        **INNODB,
    )
    op.add_column("points_accounts", sa.Column("next_expiry", UtcTime(), nullable=True))
    op.create_index("ix_points_accounts_next_expiry", "points_accounts", ["next_expiry"])


def downgrade() -> None:
    op.drop_index("ix_points_accounts_next_expiry", "points_accounts")
    op.drop_column("points_accounts", "next_expiry")
    op.drop_table("points_lot_uses")
    op.drop_table("points_lots")
