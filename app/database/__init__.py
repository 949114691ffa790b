"""The database: connections, transactions, and the SQL that differs between MySQL and SQLite."""

from app.database.connections import (
    COMMIT_TIMEOUT_SECONDS,
    TRANSACTION_TIMEOUT_SECONDS,
    Connection,
    Database,
    ping,
)
from app.database.dialect import (
    insert_ignore,
    like_contains,
    local_day,
    rows_of_json,
    seconds_between,
    upsert,
    upsert_rows,
    utc_after,
    utc_now,
)
from app.database.engines import open_database
from app.database.errors import (
    CommitUnknown,
    StatementTimeout,
    TransactionConflict,
    UniqueViolation,
    retry_on_conflict,
)
from app.database.paging import START, PageQuery, count_up_to_reach
from app.database.schema.constraints import UnsafeDatabase

__all__ = [
    "COMMIT_TIMEOUT_SECONDS",
    "START",
    "TRANSACTION_TIMEOUT_SECONDS",
    "CommitUnknown",
    "Connection",
    "Database",
    "PageQuery",
    "StatementTimeout",
    "TransactionConflict",
    "UniqueViolation",
    "UnsafeDatabase",
    "count_up_to_reach",
    "insert_ignore",
    "like_contains",
    "local_day",
    "open_database",
    "ping",
    "retry_on_conflict",
    "rows_of_json",
    "seconds_between",
    "upsert",
    "upsert_rows",
    "utc_after",
    "utc_now",
]
