"""Every table, index, CHECK and UNIQUE: the floor plan of the database. It holds no query and no rule of behaviour.

Written once for MySQL (8.0.16+, MariaDB 10.11) and SQLite; `migrations/` builds the same, and `alembic check`
holds the two against each other. All times are UTC with milliseconds. Points are whole numbers.
"""

import json
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)
from sqlalchemy.dialects import mysql
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator, TypeEngine


class UtcTime(TypeDecorator[datetime]):
    """An aware UTC datetime; milliseconds on MySQL, whose plain DATETIME drops fractions."""

    impl = DateTime
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if dialect.name in {"mysql", "mariadb"}:
            return dialect.type_descriptor(mysql.DATETIME(fsp=3))
        return dialect.type_descriptor(DateTime())

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        if value is None:
            return None
        value = value.astimezone(UTC).replace(tzinfo=None)
        return value.replace(microsecond=value.microsecond // 1000 * 1000)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        return None if value is None else value.replace(tzinfo=UTC)


class Json(TypeDecorator[Any]):
    """JSON kept as text: the same bytes on every database, Chinese readable in a console. NULL is None."""

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(LONG_TEXT)

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:  # noqa: ARG002
        return None if value is None else _write_json(value)

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:  # noqa: ARG002
        return None if value is None else json.loads(value)


_write_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
# A prompt of 20,000 characters is up to 80 KB in UTF-8: more than MySQL's TEXT holds.
LONG_TEXT = Text().with_variant(mysql.MEDIUMTEXT(), "mysql", "mariadb")
# Searched by callers: the default collation holds all emoji for equal, this one (on MySQL and MariaDB) does not.
PROMPT = Text().with_variant(mysql.MEDIUMTEXT(collation="utf8mb4_unicode_520_ci"), "mysql", "mariadb")
ID = BigInteger().with_variant(Integer(), "sqlite")
POINTS = BigInteger


def exact(length: int) -> TypeEngine[str]:
    """Names and keys compare byte by byte: MySQL's default collation ignores case and trailing blanks."""
    return String(length).with_variant(
        mysql.VARCHAR(length, charset="utf8mb4", collation="utf8mb4_bin"), "mysql", "mariadb"
    )


metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)
MYSQL: dict[str, Any] = {
    "mysql_engine": "InnoDB",
    "mysql_charset": "utf8mb4",
    "mariadb_engine": "InnoDB",
    "mariadb_charset": "utf8mb4",
}

# ------------------------------------------------------------------ who is calling

users = Table(
    "users",
    metadata,
    Column("id", ID, primary_key=True, autoincrement=True),
    Column("username", exact(64), nullable=True),
    Column("role", String(16), nullable=False, server_default="user"),
    Column("status", String(16), nullable=False, server_default="active"),
    Column("tokens_valid_from", UtcTime, nullable=True),  # a JWT issued before is void: ban, password change
    Column("created_at", UtcTime, nullable=False),
    UniqueConstraint("username"),
    CheckConstraint("role IN ('user', 'admin')", name="role"),
    CheckConstraint("status IN ('active', 'banned')", name="status"),
    **MYSQL,
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", ID, primary_key=True, autoincrement=True),
    Column("user_id", BigInteger, nullable=False),
    Column("digest", exact(64), nullable=False),  # SHA-256 in hex; the key itself is stored nowhere
    Column("prefix", exact(16), nullable=False),
    Column("name", String(100), nullable=False, server_default=""),
    Column("scopes", Json, nullable=False),
    Column("expires_at", UtcTime, nullable=True),
    Column("last_used_at", UtcTime, nullable=True),
    Column("revoked_at", UtcTime, nullable=True),
    Column("created_at", UtcTime, nullable=False),
    UniqueConstraint("digest"),
    Index(None, "user_id"),
    **MYSQL,
)

# ------------------------------------------------------------------ models and prices

points_config = Table(
    "points_config",
    metadata,
    Column("id", ID, primary_key=True, autoincrement=True),
    Column("model_name", exact(100), nullable=False),
    Column("description", String(255), nullable=False),
    Column("points_cost", POINTS, nullable=False),
    Column("task_type", String(32), nullable=False),
    Column("action", exact(64), nullable=False),  # the SEE2AI action it runs on
    Column("params", Json, nullable=False),  # fixed settings; a caller cannot override them
    Column("defaults", Json, nullable=False),
    Column("price_rules", Json, nullable=True),
    Column("enabled", Boolean, nullable=False, server_default="1"),
    Column("sort", Integer, nullable=False, server_default="0"),
    Column("created_at", UtcTime, nullable=False),
    Column("updated_at", UtcTime, nullable=False),
    UniqueConstraint("model_name"),
    CheckConstraint("points_cost >= 0", name="points_cost"),
    **MYSQL,
)

# ------------------------------------------------------------------ points

points_accounts = Table(
    "points_accounts",
    metadata,
    Column("user_id", BigInteger, primary_key=True, autoincrement=False),
    Column("available", POINTS, nullable=False, server_default="0"),
    Column("held", POINTS, nullable=False, server_default="0"),  # taken by tasks that have not ended
    Column("granted", POINTS, nullable=False, server_default="0"),
    Column("spent", POINTS, nullable=False, server_default="0"),
    Column("expired", POINTS, nullable=False, server_default="0"),
    Column("seq", BigInteger, nullable=False, server_default="0"),  # the number of its newest ledger entry
    Column("updated_at", UtcTime, nullable=False),
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
    Column("points", POINTS, nullable=False),  # what happened to `available`, signed
    Column("held", POINTS, nullable=False),  # what happened to `held`, signed
    Column("balance_after", POINTS, nullable=False),
    Column("task_id", BigInteger, nullable=True),
    Column("phase", String(8), nullable=True),  # a task opens once and closes once
    Column("ref", exact(128), nullable=True),  # a top-up by reference is applied once
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
    **MYSQL,
)

# ------------------------------------------------------------------ tasks: the record and the queue

tasks = Table(
    "tasks",
    metadata,
    Column("id", ID, primary_key=True, autoincrement=True),
    Column("task_no", exact(40), nullable=False),
    Column("user_id", BigInteger, nullable=False),
    # what was asked, and at which price
    Column("model_name", exact(100), nullable=False),
    Column("task_type", String(32), nullable=False),
    Column("action", exact(64), nullable=False),
    Column("prompt", PROMPT, nullable=False),
    Column("image_url", Json, nullable=True),  # as submitted: a string, or a list
    Column("params", Json, nullable=False),  # the caller's own
    Column("request", Json, nullable=False),  # the body for SEE2AI, fixed at submit
    Column("points_cost", POINTS, nullable=False),
    # where it stands
    Column("status", String(16), nullable=False),
    Column("progress", Integer, nullable=False, server_default="0"),
    Column("step", String(16), nullable=False),
    Column("version", Integer, nullable=False, server_default="0"),  # the fence: only grows
    Column("attempts", Integer, nullable=False, server_default="0"),  # failed tries of this step, in a row
    Column("crashes", Integer, nullable=False, server_default="0"),  # visits that never came back, in a row
    Column("next_run_at", UtcTime, nullable=True),
    Column("lease_until", UtcTime, nullable=True),
    Column("deadline_at", UtcTime, nullable=False),
    Column("steps", Json, nullable=False),  # a short history for the operator
    # what SEE2AI said
    Column("upstream_task_id", exact(128), nullable=True),
    Column("upstream", Json, nullable=True),  # result URLs and counters of the looks; never shown to callers
    Column("suspected_orphan", Boolean, nullable=False, server_default="0"),
    # how it ended
    Column("results", Json, nullable=True),  # [{key, thumbnailKey, type, width, height, bytes}]
    Column("error_code", String(64), nullable=True),
    Column("error_message", String(255), nullable=True),
    Column("operator_note", LONG_TEXT, nullable=True),
    Column("created_at", UtcTime, nullable=False),
    Column("updated_at", UtcTime, nullable=False),
    Column("completed_at", UtcTime, nullable=True),
    UniqueConstraint("task_no"),
    UniqueConstraint("action", "upstream_task_id"),
    Index("ix_tasks_due", "next_run_at"),
    Index("ix_tasks_newest", "user_id", "created_at"),
    Index("ix_tasks_live", "user_id", "completed_at"),  # how many of a user's tasks run: completed_at is NULL
    CheckConstraint("status IN ('created', 'queued', 'processing', 'completed', 'failed')", name="status"),
    CheckConstraint("step IN ('prepare', 'submit', 'submitting', 'poll', 'host', 'done')", name="step"),
    CheckConstraint("progress BETWEEN 0 AND 100", name="progress"),
    CheckConstraint("points_cost >= 0", name="points_cost"),
    CheckConstraint(
        "(status IN ('completed', 'failed')) = (step = 'done')"
        " AND (step = 'done') = (completed_at IS NOT NULL) AND (step = 'done') = (next_run_at IS NULL)",
        name="ended",
    ),
    CheckConstraint("(status = 'completed') = (results IS NOT NULL)", name="results"),
    **MYSQL,
)
