"""Codes that are redeemed for points."""

import sqlalchemy as sa
from alembic import op

from migrations.types import ID, UtcTime, binary_string

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "redeem_codes",
        sa.Column("id", ID, autoincrement=True, nullable=False),
        sa.Column("batch", binary_string(64), nullable=False),
        sa.Column("digest", binary_string(64), nullable=False),
        sa.Column("prefix", binary_string(8), nullable=False),
        sa.Column("points", sa.BigInteger(), nullable=False),
        sa.Column("lot_days", sa.Integer(), nullable=True),
        sa.Column("expires_at", UtcTime(), nullable=True),
        sa.Column("voided_at", UtcTime(), nullable=True),
        sa.Column("redeemed_by", sa.BigInteger(), nullable=True),
        sa.Column("redeemed_at", UtcTime(), nullable=True),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.CheckConstraint("points > 0 AND (lot_days IS NULL OR lot_days > 0)", name=op.f("ck_redeem_codes_points")),
        sa.CheckConstraint("(redeemed_by IS NULL) = (redeemed_at IS NULL)", name=op.f("ck_redeem_codes_redeemed")),
        sa.CheckConstraint("redeemed_by IS NULL OR voided_at IS NULL", name=op.f("ck_redeem_codes_void")),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("digest", name=op.f("uq_redeem_codes_digest")),
        mariadb_charset="utf8mb4",
        mariadb_engine="InnoDB",
        mysql_charset="utf8mb4",
        mysql_engine="InnoDB",
    )
    op.create_index("ix_redeem_codes_batch", "redeem_codes", ["batch"])


def downgrade() -> None:
    op.drop_table("redeem_codes")
