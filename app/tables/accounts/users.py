"""The tables of users and their log-ins."""

from sqlalchemy import BigInteger, Boolean, CheckConstraint, Column, Index, Integer, String, Table, UniqueConstraint

from app.tables.types import ID, MYSQL, UtcTime, binary_string, metadata

users = Table(
    "users",
    metadata,
    Column("id", ID, primary_key=True, autoincrement=True),
    Column("username", binary_string(64), nullable=True),
    Column("username_key", binary_string(191), nullable=True),  # as people see it, without case and width
    Column("password_hash", String(255), nullable=True),  # Argon2id; NULL: this user cannot log in here
    Column("token_version", Integer, nullable=False, server_default="0"),  # of valid own JWTs
    Column("totp_secret", String(64), nullable=True),  # base32; NULL: no second factor
    Column("totp_step", BigInteger, nullable=True),  # the newest used time step, so that no code works twice
    Column("role", String(16), nullable=False, server_default="user"),
    Column("status", String(16), nullable=False, server_default="active"),
    Column("tokens_valid_from", UtcTime, nullable=True),  # a JWT issued before this time is invalid
    Column("erased_at", UtcTime, nullable=True),
    Column("created_at", UtcTime, nullable=False),
    UniqueConstraint("username"),
    Index("uq_users_username_key", "username_key", unique=True),
    CheckConstraint("role IN ('user', 'admin')", name="role"),
    CheckConstraint("status IN ('active', 'banned')", name="status"),
    **MYSQL,
)

# A log-in starts a family. Each use of a refresh token replaces it by the next one of its family.
refresh_tokens = Table(
    "refresh_tokens",
    metadata,
    Column("id", ID, primary_key=True, autoincrement=True),
    Column("user_id", BigInteger, nullable=False),
    Column("family", binary_string(32), nullable=False),
    Column("digest", binary_string(64), nullable=False),  # SHA-256 in hex; the token itself is stored nowhere
    Column("client", binary_string(64), nullable=False),  # SHA-256 of the client's address and user agent
    Column("is_cookie", Boolean, nullable=False, server_default="0"),
    Column("created_at", UtcTime, nullable=False),
    Column("expires_at", UtcTime, nullable=False),
    Column("used_at", UtcTime, nullable=True),
    Column("revoked_at", UtcTime, nullable=True),
    UniqueConstraint("digest"),
    Index("ix_refresh_tokens_family", "family"),
    Index("ix_refresh_tokens_user_id", "user_id"),
    Index("ix_refresh_tokens_expires_at", "expires_at"),
    **MYSQL,
)

recovery_codes = Table(
    "recovery_codes",
    metadata,
    Column("id", ID, primary_key=True, autoincrement=True),
    Column("user_id", BigInteger, nullable=False),
    Column("digest", binary_string(64), nullable=False),  # SHA-256 in hex
    Column("used_at", UtcTime, nullable=True),
    Column("created_at", UtcTime, nullable=False),
    UniqueConstraint("user_id", "digest"),
    **MYSQL,
)
