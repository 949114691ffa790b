"""The errors of the database package, how the driver's errors become ours, and the repeat after a conflict."""

import asyncio
import functools
import random
import sqlite3
from collections.abc import Awaitable, Callable
from typing import ParamSpec, TypeVar

import structlog
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from app.errors import Unavailable

log = structlog.get_logger()

P = ParamSpec("P")
T = TypeVar("T")

MAX_ATTEMPTS = 8
DUPLICATE_KEY = 1062
DEADLOCK, LOCK_WAIT, STALE_SNAPSHOT = 1213, 1205, 1020
STATEMENT_ENDED = frozenset({1317, 1969, 3024})  # by KILL QUERY, or by the time limit of MariaDB or MySQL
SERVER_AWAY = frozenset(
    {
        1021,
        1040,
        1045,
        1053,
        1114,
        1129,
        1152,
        1153,
        1158,
        1159,
        1160,
        1161,
        1203,
        1226,
        1290,
        1836,
        1927,
        2002,
        2003,
        2006,
        2013,
        2055,
    }
)


class TransactionConflict(Unavailable):
    """The transaction must be repeated as a whole, after a deadlock or a lock timeout."""


class CommitUnknown(Unavailable):
    """The connection broke during COMMIT. The commit may have happened, so read before you repeat."""


class StatementTimeout(Unavailable):
    """The database ended the statement, because it took too long or because an administrator ended it."""


class UniqueViolation(Exception):
    """A UNIQUE constraint refused a row. `text` is the driver's message, which names the constraint."""

    def __init__(self, text: str) -> None:
        self.text = text
        super().__init__(text)


class translate_errors:  # noqa: N801 (a context manager; as a class it costs less, and each transaction uses it)
    """Turns the errors of SQLAlchemy and the driver into ours."""

    def __init__(self, drop_idle: Callable[[], None]) -> None:
        self._drop_idle = drop_idle

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, CommitUnknown):
            self._drop_idle()
        if error is None or not isinstance(error, SQLAlchemyError | OSError):
            return
        if isinstance(error, IntegrityError) and _is_duplicate(error):
            raise UniqueViolation(str(error.orig)) from error
        if isinstance(error, DBAPIError) and _is_conflict(error):
            raise TransactionConflict from error
        if isinstance(error, DBAPIError) and _is_ended(error):
            log.warning("statement_timeout", error=_describe(error))
            raise StatementTimeout from error
        if isinstance(error, PoolTimeout | OSError) or (isinstance(error, DBAPIError) and is_away(error)):
            log.warning("database_away", error=_describe(error))
            if not isinstance(error, PoolTimeout):
                self._drop_idle()
            raise Unavailable from error


def _describe(error: Exception) -> str:
    cause = getattr(error, "orig", None) or error
    return f"{type(cause).__name__}: {str(cause) or 'no answer in time'}"[:300]


def _code(error: DBAPIError) -> int | None:
    args = getattr(error.orig, "args", ())
    return args[0] if args and isinstance(args[0], int) else None


def _is_conflict(error: DBAPIError) -> bool:
    if _code(error) in {DEADLOCK, LOCK_WAIT, STALE_SNAPSHOT}:
        return True
    return isinstance(error.orig, sqlite3.OperationalError) and "locked" in str(error.orig)


def _is_ended(error: DBAPIError) -> bool:
    return _code(error) in STATEMENT_ENDED or str(error.orig) == "interrupted"  # SQLite's word


def is_away(error: DBAPIError) -> bool:
    return error.connection_invalidated or _code(error) in SERVER_AWAY


def _is_duplicate(error: IntegrityError) -> bool:
    return _code(error) == DUPLICATE_KEY or "UNIQUE constraint failed" in str(error.orig)


def retry_on_conflict(function: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
    """Decorates a function that opens its own transaction: after a TransactionConflict it runs again, with jitter.

    The function must do nothing but the transaction, because only the transaction was rolled back.
    """

    @functools.wraps(function)
    async def with_retries(*args: P.args, **kwargs: P.kwargs) -> T:
        for attempt in range(MAX_ATTEMPTS):
            try:
                return await function(*args, **kwargs)
            except TransactionConflict:
                if attempt == MAX_ATTEMPTS - 1:
                    raise
                await asyncio.sleep(random.uniform(0.2, 1) * 0.01 * 2**attempt)  # noqa: S311
        raise AssertionError("unreachable")

    return with_retries
