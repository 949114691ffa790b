"""Uploads of callers: who uploaded how much, what a task has used, and what expires."""

from sqlalchemy import BigInteger, CheckConstraint, Column, Index, MetaData, Table, UniqueConstraint

from migrations.ddl import create_tables, drop_tables
from migrations.types import ID, TABLE_OPTIONS, UTC_TIME, binary_string

revision = "v1_uploads"
down_revision = "v1_free_tasks"
branch_labels = None
depends_on = None

schema = MetaData()

uploads = Table(
    "uploads",
    schema,
    Column("id", ID, primary_key=True, autoincrement=True),
    Column("user_id", BigInteger, nullable=False),
    Column("object_key", binary_string(120), nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("created_at", UTC_TIME, nullable=False),
    Column("used_at", UTC_TIME, nullable=True),
    Column("expired_at", UTC_TIME, nullable=True),
    UniqueConstraint("object_key", name="uq_uploads_object_key"),
    Index("ix_uploads_counted", "user_id", "created_at", "size_bytes"),
    Index("ix_uploads_unused", "used_at", "created_at"),
    CheckConstraint("size_bytes > 0", name="ck_uploads_size_bytes"),
    CheckConstraint("used_at IS NULL OR expired_at IS NULL", name="ck_uploads_expired"),
    **TABLE_OPTIONS,
)


def upgrade() -> None:
    create_tables(schema)


def downgrade() -> None:
    drop_tables(schema)
