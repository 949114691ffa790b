"""Log-ins, budgets of API keys, what admins changed, and files that are to be deleted.

`app/tables` says what each column is for.
"""

import unicodedata
from typing import Any

import sqlalchemy as sa
from alembic import op
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

from migrations.ddl import add_columns, create_index, create_tables, drop_columns, drop_index, drop_tables
from migrations.types import ID, JSON, TABLE_OPTIONS, UTC_TIME, binary_string

revision = "v1_accounts"
down_revision = "v1_uploads"
branch_labels = None
depends_on = None


def _user_columns() -> list[Column[Any]]:
    return [
        Column("username_key", binary_string(191), nullable=True),
        Column("password_hash", String(255), nullable=True),
        Column("token_version", Integer, nullable=False, server_default="0"),
        Column("totp_secret", String(64), nullable=True),
        Column("totp_step", BigInteger, nullable=True),
        Column("erased_at", UTC_TIME, nullable=True),
    ]


def _key_columns() -> list[Column[Any]]:
    return [
        Column("models", JSON, nullable=True),
        Column("addresses", JSON, nullable=True),
        Column("budget_id", BigInteger, nullable=True),
    ]


def _task_columns() -> list[Column[Any]]:
    return [
        Column("key_id", BigInteger, nullable=True),
        Column("end_user", binary_string(128), nullable=True),
        Column("erased_at", UTC_TIME, nullable=True),
    ]


COLUMNS = {"users": _user_columns, "api_keys": _key_columns, "tasks": _task_columns}
NAMES_AT_ONCE = 1000
MAX_KEY_LENGTH = 191

schema = MetaData()

refresh_tokens = Table(
    "refresh_tokens",
    schema,
    Column("id", ID, primary_key=True, autoincrement=True),
    Column("user_id", BigInteger, nullable=False),
    Column("family", binary_string(32), nullable=False),
    Column("digest", binary_string(64), nullable=False),
    Column("client", binary_string(64), nullable=False),
    Column("is_cookie", Boolean, nullable=False, server_default="0"),
    Column("created_at", UTC_TIME, nullable=False),
    Column("expires_at", UTC_TIME, nullable=False),
    Column("used_at", UTC_TIME, nullable=True),
    Column("revoked_at", UTC_TIME, nullable=True),
    UniqueConstraint("digest", name="uq_refresh_tokens_digest"),
    Index("ix_refresh_tokens_family", "family"),
    Index("ix_refresh_tokens_user_id", "user_id"),
    Index("ix_refresh_tokens_expires_at", "expires_at"),
    **TABLE_OPTIONS,
)

recovery_codes = Table(
    "recovery_codes",
    schema,
    Column("id", ID, primary_key=True, autoincrement=True),
    Column("user_id", BigInteger, nullable=False),
    Column("digest", binary_string(64), nullable=False),
    Column("used_at", UTC_TIME, nullable=True),
    Column("created_at", UTC_TIME, nullable=False),
    UniqueConstraint("user_id", "digest", name="uq_recovery_codes_user_id_digest"),
    **TABLE_OPTIONS,
)

key_budgets = Table(
    "key_budgets",
    schema,
    Column("id", ID, primary_key=True, autoincrement=True),
    Column("user_id", BigInteger, nullable=False),
    Column("daily_cap", BigInteger, nullable=True),
    Column("monthly_cap", BigInteger, nullable=True),
    Column("total_cap", BigInteger, nullable=True),
    Column("max_tasks", Integer, nullable=True),
    Column("end_user_daily_cap", BigInteger, nullable=True),
    Column("end_user_monthly_cap", BigInteger, nullable=True),
    Column("end_user_total_cap", BigInteger, nullable=True),
    Column("end_user_max_tasks", Integer, nullable=True),
    Column("day", binary_string(10), nullable=False, server_default=""),
    Column("spent_today", BigInteger, nullable=False, server_default="0"),
    Column("spent_this_month", BigInteger, nullable=False, server_default="0"),
    Column("spent_total", BigInteger, nullable=False, server_default="0"),
    Column("running_tasks", Integer, nullable=False, server_default="0"),
    Column("updated_at", UTC_TIME, nullable=False),
    Index("ix_key_budgets_user_id", "user_id"),
    CheckConstraint(
        "spent_today >= 0 AND spent_this_month >= 0 AND spent_total >= 0 AND running_tasks >= 0",
        name="ck_key_budgets_counts",
    ),
    **TABLE_OPTIONS,
)

end_user_budgets = Table(
    "end_user_budgets",
    schema,
    Column("budget_id", BigInteger, primary_key=True, autoincrement=False),
    Column("end_user", binary_string(128), primary_key=True),
    Column("day", binary_string(10), nullable=False, server_default=""),
    Column("spent_today", BigInteger, nullable=False, server_default="0"),
    Column("spent_this_month", BigInteger, nullable=False, server_default="0"),
    Column("spent_total", BigInteger, nullable=False, server_default="0"),
    Column("running_tasks", Integer, nullable=False, server_default="0"),
    Column("updated_at", UTC_TIME, nullable=False),
    CheckConstraint(
        "spent_today >= 0 AND spent_this_month >= 0 AND spent_total >= 0 AND running_tasks >= 0",
        name="ck_end_user_budgets_counts",
    ),
    **TABLE_OPTIONS,
)

admin_actions = Table(
    "admin_actions",
    schema,
    Column("id", ID, primary_key=True, autoincrement=True),
    Column("admin_id", BigInteger, nullable=True),
    Column("action", binary_string(64), nullable=False),
    Column("target_type", binary_string(32), nullable=False),
    Column("target", binary_string(128), nullable=False),
    Column("before", JSON, nullable=True),
    Column("after", JSON, nullable=True),
    Column("reason", String(255), nullable=False, server_default=""),
    Column("ref", binary_string(128), nullable=True),
    Column("request_id", binary_string(64), nullable=False, server_default=""),
    Column("created_at", UTC_TIME, nullable=False),
    UniqueConstraint("ref", name="uq_admin_actions_ref"),
    Index("ix_admin_actions_target", "target_type", "target", "id"),
    **TABLE_OPTIONS,
)

file_deletions = Table(
    "file_deletions",
    schema,
    Column("object_key", binary_string(191), primary_key=True),
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("next_attempt_at", UTC_TIME, nullable=False),
    Column("created_at", UTC_TIME, nullable=False),
    Index("ix_file_deletions_next_attempt_at", "next_attempt_at"),
    **TABLE_OPTIONS,
)

REFUSAL = {
    "mysql": "SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'admin_actions is append-only'",
    "sqlite": "BEGIN SELECT RAISE(ABORT, 'admin_actions is append-only'); END",
}


def upgrade() -> None:
    create_tables(schema)
    for table, columns in COLUMNS.items():
        add_columns(table, columns)
    _fill_username_keys()
    create_index("uq_users_username_key", "users", ["username_key"], unique=True)
    _drop_triggers()  # an earlier run may have created one of them
    refusal = REFUSAL["sqlite" if op.get_context().dialect.name == "sqlite" else "mysql"]
    op.execute(f"CREATE TRIGGER admin_actions_no_update BEFORE UPDATE ON admin_actions FOR EACH ROW {refusal}")
    op.execute(f"CREATE TRIGGER admin_actions_no_delete BEFORE DELETE ON admin_actions FOR EACH ROW {refusal}")


def downgrade() -> None:
    _drop_triggers()
    drop_index("uq_users_username_key", "users")
    for table, columns in COLUMNS.items():
        drop_columns(table, columns)
    drop_tables(schema)


def _drop_triggers() -> None:
    op.execute("DROP TRIGGER IF EXISTS admin_actions_no_update")
    op.execute("DROP TRIGGER IF EXISTS admin_actions_no_delete")


def _fill_username_keys() -> None:
    """Of two names that look the same, the older user keeps the key. The other one has none until it is renamed."""
    if op.get_context().as_sql:
        return
    connection = op.get_bind()
    users = sa.table("users", sa.column("id"), sa.column("username"), sa.column("username_key"))
    missing = sa.select(users.c.id, users.c.username).where(
        users.c.username.is_not(None), users.c.username_key.is_(None)
    )
    taken = set(connection.scalars(sa.select(users.c.username_key).where(users.c.username_key.is_not(None))))
    last_id = 0
    while rows := connection.execute(
        missing.where(users.c.id > last_id).order_by(users.c.id).limit(NAMES_AT_ONCE)
    ).all():
        last_id = rows[-1].id
        for row in rows:
            key = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", row.username).casefold())
            if key not in taken and len(key) <= MAX_KEY_LENGTH:
                taken.add(key)
                connection.execute(sa.update(users).where(users.c.id == row.id).values(username_key=key))
