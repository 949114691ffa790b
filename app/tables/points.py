"""The tables of points: accounts, the ledger, lots that expire, and redeem codes."""

from sqlalchemy import BigInteger, CheckConstraint, Column, Index, Integer, String, Table, UniqueConstraint

from app.tables.types import ID, MYSQL, POINTS, UtcTime, binary_string, metadata

points_accounts = Table(
    "points_accounts",
    metadata,
    Column("user_id", BigInteger, primary_key=True, autoincrement=False),
    Column("available", POINTS, nullable=False, server_default="0"),
    Column("held", POINTS, nullable=False, server_default="0"),  # reserved by tasks that have not ended
    Column("granted", POINTS, nullable=False, server_default="0"),
    Column("spent", POINTS, nullable=False, server_default="0"),
    Column("expired", POINTS, nullable=False, server_default="0"),
    Column("seq", BigInteger, nullable=False, server_default="0"),  # number of the newest ledger entry
    Column("next_expiry", UtcTime, nullable=True),  # earliest expiry of its lots with points; NULL if there are none
    Column("updated_at", UtcTime, nullable=False),
    Index("ix_points_accounts_next_expiry", "next_expiry"),
    CheckConstraint("available >= 0", name="available"),
    CheckConstraint("held >= 0", name="held"),
    CheckConstraint("granted >= 0 AND spent >= 0 AND expired >= 0", name="totals"),
    CheckConstraint("granted = available + held + spent + expired", name="conservation"),
    **MYSQL,
)

points_ledger = Table(
    "points_ledger",
    metadata,
    Column("id", ID, primary_key=True, autoincrement=True),
    Column("user_id", BigInteger, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("kind", String(16), nullable=False),
    Column("points", POINTS, nullable=False),  # signed change of `available`
    Column("held", POINTS, nullable=False),  # signed change of `held`
    Column("balance_after", POINTS, nullable=False),
    Column("task_id", BigInteger, nullable=True),
    Column("phase", String(8), nullable=True),  # 'open' or 'close', each once per task
    Column("ref", binary_string(128), nullable=True),  # unique, so that a top-up is applied once
    Column("remark", String(255), nullable=False, server_default=""),
    Column("created_at", UtcTime, nullable=False),
    UniqueConstraint("task_id", "phase"),
    UniqueConstraint("ref"),
    UniqueConstraint("user_id", "seq"),
    CheckConstraint("kind IN ('grant', 'deduct', 'settle', 'refund', 'expire', 'adjust')", name="kind"),
    CheckConstraint("balance_after >= 0", name="balance_after"),
    CheckConstraint(
        "(kind = 'deduct' AND phase = 'open' AND task_id IS NOT NULL AND held >= 0 AND points = -held)"
        " OR (kind = 'settle' AND phase = 'close' AND task_id IS NOT NULL AND held <= 0 AND points = 0)"
        " OR (kind = 'refund' AND phase = 'close' AND task_id IS NOT NULL AND held <= 0 AND points = -held)"
        " OR (kind IN ('grant', 'expire', 'adjust') AND phase IS NULL AND held = 0)",
        name="shape",
    ),
    CheckConstraint("kind <> 'grant' OR (ref IS NOT NULL AND points > 0)", name="grant"),
    CheckConstraint("kind <> 'expire' OR (ref IS NOT NULL AND points < 0)", name="expire"),
    CheckConstraint("kind <> 'adjust' OR ref IS NOT NULL", name="adjust"),
    **MYSQL,
)

# Lots hold the part of `available` that expires. Points that never expire have no lot.
points_lots = Table(
    "points_lots",
    metadata,
    Column("id", ID, primary_key=True, autoincrement=True),
    Column("user_id", BigInteger, nullable=False),
    Column("ref", binary_string(128), nullable=True),  # of the grant that created the lot
    Column("origin_lot_id", BigInteger, nullable=True),  # or the expired lot whose refunded points this lot holds
    Column("granted", POINTS, nullable=False),
    Column("remaining", POINTS, nullable=False),
    Column("expired", POINTS, nullable=False, server_default="0"),
    Column("expires_at", UtcTime, nullable=False),
    Column("created_at", UtcTime, nullable=False),
    UniqueConstraint("ref"),
    Index("ix_points_lots_live", "user_id", "remaining", "expires_at"),
    CheckConstraint("granted > 0 AND remaining >= 0 AND expired >= 0", name="points"),
    CheckConstraint("remaining + expired <= granted", name="granted"),
    CheckConstraint("(ref IS NULL) = (origin_lot_id IS NOT NULL)", name="origin"),
    **MYSQL,
)

points_lot_uses = Table(
    "points_lot_uses",
    metadata,
    Column("task_id", BigInteger, primary_key=True, autoincrement=False),
    Column("lot_id", BigInteger, primary_key=True, autoincrement=False),
    Column("points", POINTS, nullable=False),  # consumed from the lot by the task; a refund restores them
    CheckConstraint("points > 0", name="points"),
    **MYSQL,
)

redeem_codes = Table(
    "redeem_codes",
    metadata,
    Column("id", ID, primary_key=True, autoincrement=True),
    Column("batch", binary_string(64), nullable=False),
    Column("digest", binary_string(64), nullable=False),  # SHA-256 in hex; the code itself is stored nowhere
    Column("prefix", binary_string(8), nullable=False),
    Column("points", POINTS, nullable=False),
    Column("lot_days", Integer, nullable=True),  # days until the redeemed points expire; NULL: never
    Column("expires_at", UtcTime, nullable=True),  # of the code itself
    Column("voided_at", UtcTime, nullable=True),
    Column("redeemed_by", BigInteger, nullable=True),
    Column("redeemed_at", UtcTime, nullable=True),
    Column("created_at", UtcTime, nullable=False),
    UniqueConstraint("digest"),
    Index("ix_redeem_codes_batch", "batch"),
    CheckConstraint("points > 0 AND (lot_days IS NULL OR lot_days > 0)", name="points"),
    CheckConstraint("(redeemed_by IS NULL) = (redeemed_at IS NULL)", name="redeemed"),
    CheckConstraint("redeemed_by IS NULL OR voided_at IS NULL", name="void"),
    **MYSQL,
)
