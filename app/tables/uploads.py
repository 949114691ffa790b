"""The tables of uploads, and of files that are to be deleted."""

from sqlalchemy import BigInteger, CheckConstraint, Column, Index, Integer, Table, UniqueConstraint

from app.tables.types import ID, MYSQL, UtcTime, binary_string, metadata

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

# A transaction that gives up a file adds a row. A job deletes the file, then the row. The key `users/<id>` stands for
# all works of a user.
file_deletions = Table(
    "file_deletions",
    metadata,
    Column("object_key", binary_string(191), primary_key=True),
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("next_attempt_at", UtcTime, nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Index("ix_file_deletions_next_attempt_at", "next_attempt_at"),
    **MYSQL,
)
