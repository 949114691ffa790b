"""The table of what admins changed. It is append-only, like the ledger."""

from sqlalchemy import BigInteger, Column, Index, String, Table, UniqueConstraint

from app.tables.types import ID, MYSQL, Json, UtcTime, binary_string, metadata

admin_actions = Table(
    "admin_actions",
    metadata,
    Column("id", ID, primary_key=True, autoincrement=True),
    Column("admin_id", BigInteger, nullable=True),  # NULL: the command line
    Column("action", binary_string(64), nullable=False),  # such as `user.ban`
    Column("target_type", binary_string(32), nullable=False),  # such as `user`
    Column("target", binary_string(128), nullable=False),  # its id, number or name
    Column("before", Json, nullable=True),
    Column("after", Json, nullable=True),
    Column("reason", String(255), nullable=False, server_default=""),
    Column("ref", binary_string(128), nullable=True),  # unique, so that an act is done once
    Column("request_id", binary_string(64), nullable=False, server_default=""),
    Column("created_at", UtcTime, nullable=False),
    UniqueConstraint("ref"),
    Index("ix_admin_actions_target", "target_type", "target", "id"),
    **MYSQL,
)
