"""The database: sessions, engines, and all that differs between MySQL and SQLite."""

from app.database.engines import open_database
from app.database.proof import DatabaseUnfit
from app.database.sessions import (
    LONGEST_COMMIT_SECONDS,
    LONGEST_TRANSACTION_SECONDS,
    CommitUnknown,
    Conflict,
    DuplicateRow,
    Session,
    Sessions,
    ping,
    repeat_on_conflict,
)
from app.database.spelling import containing, insert_if_absent, insert_or_change, utc_after, utc_now

__all__ = [
    "LONGEST_COMMIT_SECONDS",
    "LONGEST_TRANSACTION_SECONDS",
    "CommitUnknown",
    "Conflict",
    "DatabaseUnfit",
    "DuplicateRow",
    "Session",
    "Sessions",
    "containing",
    "insert_if_absent",
    "insert_or_change",
    "open_database",
    "ping",
    "repeat_on_conflict",
    "utc_after",
    "utc_now",
]
