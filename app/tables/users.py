"""The tables of users, their API keys and their uploads."""

from sqlalchemy import BigInteger, CheckConstraint, Column, Index, String, Table, UniqueConstraint

from app.tables.types import ID, MYSQL, Json, UtcTime, binary_string, metadata

users = Table(
    "users",
    metadata,
    Column("id", ID, primary_key=True, autoincrement=True),
    Column("username", binary_string(64), nullable=True),
    Column("role", String(16), nullable=False, server_default="user"),
    Column("status", String(16), nullable=False, server_default="active"),
    Column("tokens_valid_from", UtcTime, nullable=True),  # a JWT issued before this time is invalid
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
    Column("digest", binary_string(64), nullable=False),  # SHA-256 in hex; the key itself is stored nowhere
    Column("prefix", binary_string(16), nullable=False),
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

uploads = Table(
    "uploads",
    metadata,
    Column("id", ID, primary_key=True, autoincrement=True),
    Column("user_id", BigInteger, nullable=False),
    Column("object_key", binary_string(120), nullable=False),  # in the storage
    Column("size_bytes", BigInteger, nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("used_at", UtcTime, nullable=True),  # by the first task; NULL: it expires
    Column("expired_at", UtcTime, nullable=True),  # no task can use it any more, and the file is being deleted
    UniqueConstraint("object_key"),
    Index("ix_uploads_counted", "user_id", "created_at", "size_bytes"),
    Index("ix_uploads_unused", "used_at", "created_at"),
    CheckConstraint("size_bytes > 0", name="size_bytes"),
    CheckConstraint("used_at IS NULL OR expired_at IS NULL", name="expired"),
    **MYSQL,
)
