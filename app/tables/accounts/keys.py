"""The tables of API keys and their budgets.

A budget counts what a key spends. It is read and changed while the account of the key's user is locked.
"""

from sqlalchemy import BigInteger, CheckConstraint, Column, Index, Integer, String, Table, UniqueConstraint

from app.tables.types import ID, MYSQL, POINTS, Json, UtcTime, binary_string, metadata

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", ID, primary_key=True, autoincrement=True),
    Column("user_id", BigInteger, nullable=False),
    Column("digest", binary_string(64), nullable=False),  # SHA-256 in hex; the key itself is stored nowhere
    Column("prefix", binary_string(16), nullable=False),
    Column("name", String(100), nullable=False, server_default=""),
    Column("scopes", Json, nullable=False),
    Column("models", Json, nullable=True),  # names of the models that it may use; NULL: all
    Column("addresses", Json, nullable=True),  # addresses and networks that it may come from; NULL: all
    Column("budget_id", BigInteger, nullable=True),  # keys that replace each other share one budget; NULL: not counted
    Column("expires_at", UtcTime, nullable=True),
    Column("last_used_at", UtcTime, nullable=True),
    Column("revoked_at", UtcTime, nullable=True),
    Column("created_at", UtcTime, nullable=False),
    UniqueConstraint("digest"),
    Index(None, "user_id"),
    **MYSQL,
)

key_budgets = Table(
    "key_budgets",
    metadata,
    Column("id", ID, primary_key=True, autoincrement=True),
    Column("user_id", BigInteger, nullable=False),
    # the caps; NULL: none
    Column("daily_cap", POINTS, nullable=True),
    Column("monthly_cap", POINTS, nullable=True),
    Column("total_cap", POINTS, nullable=True),
    Column("max_tasks", Integer, nullable=True),  # tasks in flight
    # the caps of each end user
    Column("end_user_daily_cap", POINTS, nullable=True),
    Column("end_user_monthly_cap", POINTS, nullable=True),
    Column("end_user_total_cap", POINTS, nullable=True),
    Column("end_user_max_tasks", Integer, nullable=True),
    # what is counted; a refund takes it back
    Column("day", binary_string(10), nullable=False, server_default=""),  # local, YYYY-MM-DD
    Column("spent_today", POINTS, nullable=False, server_default="0"),  # on `day`
    Column("spent_this_month", POINTS, nullable=False, server_default="0"),  # in the month of `day`
    Column("spent_total", POINTS, nullable=False, server_default="0"),
    Column("running_tasks", Integer, nullable=False, server_default="0"),
    Column("updated_at", UtcTime, nullable=False),
    Index("ix_key_budgets_user_id", "user_id"),
    CheckConstraint(
        "spent_today >= 0 AND spent_this_month >= 0 AND spent_total >= 0 AND running_tasks >= 0", name="counts"
    ),
    **MYSQL,
)

end_user_budgets = Table(
    "end_user_budgets",
    metadata,
    Column("budget_id", BigInteger, primary_key=True, autoincrement=False),
    Column("end_user", binary_string(128), primary_key=True),  # as the integration names them
    Column("day", binary_string(10), nullable=False, server_default=""),
    Column("spent_today", POINTS, nullable=False, server_default="0"),
    Column("spent_this_month", POINTS, nullable=False, server_default="0"),
    Column("spent_total", POINTS, nullable=False, server_default="0"),
    Column("running_tasks", Integer, nullable=False, server_default="0"),
    Column("updated_at", UtcTime, nullable=False),
    CheckConstraint(
        "spent_today >= 0 AND spent_this_month >= 0 AND spent_total >= 0 AND running_tasks >= 0", name="counts"
    ),
    **MYSQL,
)
