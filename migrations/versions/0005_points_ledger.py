"""The ledger of points."""

import sqlalchemy as sa
from alembic import op

from migrations.types import ID, UtcTime, binary_string

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "points_ledger",
        sa.Column("id", ID, autoincrement=True, nullable=False),
        sa.Column("user_id", sa.BigInteger(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("points", sa.BigInteger(), nullable=False),
        sa.Column("held", sa.BigInteger(), nullable=False),
        sa.Column("balance_after", sa.BigInteger(), nullable=False),
        sa.Column("task_id", sa.BigInteger(), nullable=True),
        sa.Column("phase", sa.String(length=8), nullable=True),
        sa.Column("ref", binary_string(128), nullable=True),
        sa.Column("remark", sa.String(length=255), server_default="", nullable=False),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.CheckConstraint(
            "(kind = 'deduct' AND phase = 'open' AND task_id IS NOT NULL AND held >= 0 AND points = -held) OR (kind = 'settle' AND phase = 'close' AND task_id IS NOT NULL AND held <= 0 AND points = 0) OR (kind = 'refund' AND phase = 'close' AND task_id IS NOT NULL AND held <= 0 AND points = -held) OR (kind IN ('grant', 'expire', 'adjust') AND phase IS NULL AND held = 0)",
            name=op.f("ck_points_ledger_shape"),
        ),
        sa.CheckConstraint("kind <> 'grant' OR (ref IS NOT NULL AND points > 0)", name=op.f("ck_points_ledger_grant")),
        sa.CheckConstraint(
            "kind <> 'expire' OR (ref IS NOT NULL AND points < 0)", name=op.f("ck_points_ledger_expire")
        ),
        sa.CheckConstraint("kind <> 'adjust' OR ref IS NOT NULL", name=op.f("ck_points_ledger_adjust")),
        sa.CheckConstraint(
            "kind IN ('grant', 'deduct', 'settle', 'refund', 'expire', 'adjust')",
            name=op.f("ck_points_ledger_kind"),
        ),
        sa.CheckConstraint("balance_after >= 0", name=op.f("ck_points_ledger_balance_after")),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("ref", name=op.f("uq_points_ledger_ref")),
        sa.UniqueConstraint("task_id", "phase", name=op.f("uq_points_ledger_task_id_phase")),
        sa.UniqueConstraint("user_id", "seq", name=op.f("uq_points_ledger_user_id_seq")),
        mariadb_charset="utf8mb4",
        mariadb_engine="InnoDB",
        mysql_charset="utf8mb4",
        mysql_engine="InnoDB",
    )


def downgrade() -> None:
    op.drop_table("points_ledger")
