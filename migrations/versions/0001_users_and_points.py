"""Users, their API keys, their points, and what is sold. `app/tables` says what each column is for."""

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    UniqueConstraint,
)

from migrations.ddl import create_tables, drop_tables
from migrations.types import ID, JSON, TABLE_OPTIONS, UTC_TIME, binary_string

revision = "v1_users_and_points"
down_revision = None
branch_labels = None
depends_on = None

schema = MetaData()

users = Table(
    "users",
    schema,
    Column("id", ID, primary_key=True, autoincrement=True),
    Column("username", binary_string(64), nullable=True),
    Column("role", String(16), nullable=False, server_default="user"),
    Column("status", String(16), nullable=False, server_default="active"),
    Column("tokens_valid_from", UTC_TIME, nullable=True),
    Column("created_at", UTC_TIME, nullable=False),
    UniqueConstraint("username", name="uq_users_username"),
    CheckConstraint("role IN ('user', 'admin')", name="ck_users_role"),
    CheckConstraint("status IN ('active', 'banned')", name="ck_users_status"),
    **TABLE_OPTIONS,
)

api_keys = Table(
    "api_keys",
    schema,
    Column("id", ID, primary_key=True, autoincrement=True),
    Column("user_id", BigInteger, nullable=False),
    Column("digest", binary_string(64), nullable=False),
    Column("prefix", binary_string(16), nullable=False),
    Column("name", String(100), nullable=False, server_default=""),
    Column("scopes", JSON, nullable=False),
    Column("expires_at", UTC_TIME, nullable=True),
    Column("last_used_at", UTC_TIME, nullable=True),
    Column("revoked_at", UTC_TIME, nullable=True),
    Column("created_at", UTC_TIME, nullable=False),
    UniqueConstraint("digest", name="uq_api_keys_digest"),
    Index("ix_api_keys_user_id", "user_id"),
    **TABLE_OPTIONS,
)

points_config = Table(
    "points_config",
    schema,
    Column("id", ID, primary_key=True, autoincrement=True),
    Column("model_name", binary_string(100), nullable=False),
    Column("description", String(255), nullable=False),
    Column("points_cost", BigInteger, nullable=False),
    Column("task_type", String(32), nullable=False),
    Column("action", binary_string(64), nullable=False),
    Column("params", JSON, nullable=False),
    Column("defaults", JSON, nullable=False),
    Column("price_rules", JSON, nullable=True),
    Column("enabled", Boolean, nullable=False, server_default="1"),
    Column("sort", Integer, nullable=False, server_default="0"),
    Column("created_at", UTC_TIME, nullable=False),
    Column("updated_at", UTC_TIME, nullable=False),
    UniqueConstraint("model_name", name="uq_points_config_model_name"),
    CheckConstraint("points_cost >= 0", name="ck_points_config_points_cost"),
    **TABLE_OPTIONS,
)

points_accounts = Table(
    "points_accounts",
    schema,
    Column("user_id", BigInteger, primary_key=True, autoincrement=False),
    Column("available", BigInteger, nullable=False, server_default="0"),
    Column("held", BigInteger, nullable=False, server_default="0"),
    Column("granted", BigInteger, nullable=False, server_default="0"),
    Column("spent", BigInteger, nullable=False, server_default="0"),
    Column("expired", BigInteger, nullable=False, server_default="0"),
    Column("seq", BigInteger, nullable=False, server_default="0"),
    Column("updated_at", UTC_TIME, nullable=False),
    Column("next_expiry", UTC_TIME, nullable=True),
    Index("ix_points_accounts_next_expiry", "next_expiry"),
    CheckConstraint("available >= 0", name="ck_points_accounts_available"),
    CheckConstraint("held >= 0", name="ck_points_accounts_held"),
    CheckConstraint("granted >= 0 AND spent >= 0 AND expired >= 0", name="ck_points_accounts_totals"),
    CheckConstraint("granted = available + held + spent + expired", name="ck_points_accounts_conservation"),
    **TABLE_OPTIONS,
)

points_ledger = Table(
    "points_ledger",
    schema,
    Column("id", ID, primary_key=True, autoincrement=True),
    Column("user_id", BigInteger, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("kind", String(16), nullable=False),
    Column("points", BigInteger, nullable=False),
    Column("held", BigInteger, nullable=False),
    Column("balance_after", BigInteger, nullable=False),
    Column("task_id", BigInteger, nullable=True),
    Column("phase", String(8), nullable=True),
    Column("ref", binary_string(128), nullable=True),
    Column("remark", String(255), nullable=False, server_default=""),
    Column("created_at", UTC_TIME, nullable=False),
    UniqueConstraint("ref", name="uq_points_ledger_ref"),
    UniqueConstraint("task_id", "phase", name="uq_points_ledger_task_id_phase"),
    UniqueConstraint("user_id", "seq", name="uq_points_ledger_user_id_seq"),
    CheckConstraint(
        "kind IN ('grant', 'deduct', 'settle', 'refund', 'expire', 'adjust')", name="ck_points_ledger_kind"
    ),
    CheckConstraint("balance_after >= 0", name="ck_points_ledger_balance_after"),
    CheckConstraint(
        "(kind = 'deduct' AND phase = 'open' AND task_id IS NOT NULL AND held >= 0 AND points = -held)"
        " OR (kind = 'settle' AND phase = 'close' AND task_id IS NOT NULL AND held <= 0 AND points = 0)"
        " OR (kind = 'refund' AND phase = 'close' AND task_id IS NOT NULL AND held <= 0 AND points = -held)"
        " OR (kind IN ('grant', 'expire', 'adjust') AND phase IS NULL AND held = 0)",
        name="ck_points_ledger_shape",
    ),
    CheckConstraint("kind <> 'grant' OR (ref IS NOT NULL AND points > 0)", name="ck_points_ledger_grant"),
    CheckConstraint("kind <> 'expire' OR (ref IS NOT NULL AND points < 0)", name="ck_points_ledger_expire"),
    CheckConstraint("kind <> 'adjust' OR ref IS NOT NULL", name="ck_points_ledger_adjust"),
    **TABLE_OPTIONS,
)

points_lots = Table(
    "points_lots",
    schema,
    Column("id", ID, primary_key=True, autoincrement=True),
    Column("user_id", BigInteger, nullable=False),
    Column("ref", binary_string(128), nullable=True),
    Column("origin_lot_id", BigInteger, nullable=True),
    Column("granted", BigInteger, nullable=False),
    Column("remaining", BigInteger, nullable=False),
    Column("expired", BigInteger, nullable=False, server_default="0"),
    Column("expires_at", UTC_TIME, nullable=False),
    Column("created_at", UTC_TIME, nullable=False),
    UniqueConstraint("ref", name="uq_points_lots_ref"),
    Index("ix_points_lots_live", "user_id", "remaining", "expires_at"),
    CheckConstraint("granted > 0 AND remaining >= 0 AND expired >= 0", name="ck_points_lots_points"),
    CheckConstraint("remaining + expired <= granted", name="ck_points_lots_granted"),
    CheckConstraint("(ref IS NULL) = (origin_lot_id IS NOT NULL)", name="ck_points_lots_origin"),
    **TABLE_OPTIONS,
)

points_lot_uses = Table(
    "points_lot_uses",
    schema,
    Column("task_id", BigInteger, primary_key=True, autoincrement=False),
    Column("lot_id", BigInteger, primary_key=True, autoincrement=False),
    Column("points", BigInteger, nullable=False),
    CheckConstraint("points > 0", name="ck_points_lot_uses_points"),
    **TABLE_OPTIONS,
)

redeem_codes = Table(
    "redeem_codes",
    schema,
    Column("id", ID, primary_key=True, autoincrement=True),
    Column("batch", binary_string(64), nullable=False),
    Column("digest", binary_string(64), nullable=False),
    Column("prefix", binary_string(8), nullable=False),
    Column("points", BigInteger, nullable=False),
    Column("lot_days", Integer, nullable=True),
    Column("expires_at", UTC_TIME, nullable=True),
    Column("voided_at", UTC_TIME, nullable=True),
    Column("redeemed_by", BigInteger, nullable=True),
    Column("redeemed_at", UTC_TIME, nullable=True),
    Column("created_at", UTC_TIME, nullable=False),
    UniqueConstraint("digest", name="uq_redeem_codes_digest"),
    Index("ix_redeem_codes_batch", "batch"),
    CheckConstraint("points > 0 AND (lot_days IS NULL OR lot_days > 0)", name="ck_redeem_codes_points"),
    CheckConstraint("(redeemed_by IS NULL) = (redeemed_at IS NULL)", name="ck_redeem_codes_redeemed"),
    CheckConstraint("redeemed_by IS NULL OR voided_at IS NULL", name="ck_redeem_codes_void"),
    **TABLE_OPTIONS,
)


def upgrade() -> None:
    create_tables(schema)


def downgrade() -> None:
    drop_tables(schema)
