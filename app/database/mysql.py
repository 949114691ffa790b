"""Connections to MySQL and MariaDB: TLS, keepalive, and tests of idle connections before they are used again.

Firewalls, balancers and the server itself forget a connection that was idle. Nothing tells us, so an idle connection
is tested before it is used again, and after a failure all idle connections are replaced.
"""

import asyncio
import socket
import ssl
import time
from typing import Any

import asyncmy
from asyncmy.constants import CLIENT
from sqlalchemy import event
from sqlalchemy.engine import URL, ExceptionContext, make_url
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.ext.asyncio import AsyncEngine

from app.database.schema.constraints import UnsafeDatabase
from app.setting_values.database_url import normalize_database_url

CONNECT_SECONDS = 5
"""For the TCP connection, and again for the handshake with TLS and the log-in."""
IDLE_SECONDS = 2.0
"""A connection that was idle for longer is tested before it is used again."""
PING_SECONDS = 2.0
KEEPALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}
"""Seconds and a count. The usual value of Linux is two hours, longer than any balancer remembers a connection."""
SECURE_TRANSPORT_REQUIRED, ACCESS_DENIED = 3159, 1045
DEAD = frozenset({1053, 1152, 1153, 1158, 1159, 1160, 1161, 1290, 1836, 1927, 2002, 2003, 2006, 2013, 2055})
"""Errors after which this connection is of no use: it broke, or its server shuts down or has become a replica."""


def read_mysql_url(url: str) -> tuple[URL, dict[str, Any]]:
    """The URL and the `connect_args` for `create_async_engine`. Raises ValueError like `normalize_database_url`.

    The password is passed as bytes, because asyncmy would encode text in Latin-1.
    """
    parsed = make_url(normalize_database_url(url))
    mode, ca = str(parsed.query.get("ssl_mode", "off")), str(parsed.query.get("ssl_ca", "")) or None
    options: dict[str, Any] = {
        "charset": "utf8mb4",
        "connect_timeout": CONNECT_SECONDS,
        "password": str(parsed.password or "").encode(),
        "async_creator_fn": _connect,
    }
    if mode != "off":
        options["ssl"] = _tls_context(mode, ca)
    return parsed.difference_update_query(["ssl_mode", "ssl_ca"]), options


def _tls_context(mode: str, ca: str | None) -> ssl.SSLContext:
    """`required` encrypts, `verify-ca` also checks the certificate, `verify-full` also the name of the host."""
    try:
        context = ssl.create_default_context(cafile=ca)
    except ssl.SSLError:
        raise UnsafeDatabase(f"DATABASE_SSL_CA: {ca} holds no certificate in PEM form") from None
    context.check_hostname = mode == "verify-full"
    if mode == "required":
        context.verify_mode = ssl.CERT_NONE
    return context


async def _connect(**options: Any) -> Any:
    """Opens one connection. Raises UnsafeDatabase if the two sides do not agree on TLS.

    asyncmy raises RuntimeError or IndexError for some broken handshakes; they become OSError.
    """
    connection: Any = asyncmy.connection.Connection(**options)  # type: ignore[no-untyped-call]
    try:
        async with asyncio.timeout(2 * CONNECT_SECONDS):
            await connection.connect()
    except TimeoutError:
        raise OSError(f"no log-in at {options.get('host')} within {2 * CONNECT_SECONDS} s") from None
    except (asyncmy.errors.Error, OSError) as error:
        await _raise_tls_problem(connection, options, error)
        raise
    except Exception as error:
        raise OSError(f"no connection: {error!r}") from error
    _keep_alive(connection)
    return connection


async def _raise_tls_problem(connection: Any, options: dict[str, Any], error: Exception) -> None:
    """Raises UnsafeDatabase if the error comes from TLS, or from its absence."""
    host, code = options.get("host", "localhost"), error.args[0] if error.args else None
    offers_tls = bool(getattr(connection, "server_capabilities", 0) & CLIENT.SSL)
    if "ssl" in options:
        if isinstance(error.__cause__, ssl.SSLError) and offers_tls:
            reason = getattr(error.__cause__, "verify_message", "") or str(error.__cause__)
            settings = "see DATABASE_SSL and DATABASE_SSL_CA"
            raise UnsafeDatabase(f"TLS with the database at {host} failed: {reason.rstrip('.')}: {settings}") from error
        if getattr(connection, "server_version", None) and not offers_tls:
            raise UnsafeDatabase(f"DATABASE_SSL is set, but the database at {host} has no TLS") from error
    elif code == SECURE_TRANSPORT_REQUIRED or (code == ACCESS_DENIED and offers_tls and await _accepts_tls(options)):
        raise UnsafeDatabase(f"the database at {host} accepts only TLS: set DATABASE_SSL=required") from error


async def _accepts_tls(options: dict[str, Any]) -> bool:
    """Whether the same log-in works with TLS. Some servers deny access without it and do not say why."""
    connection: Any = asyncmy.connection.Connection(**options, ssl=_tls_context("required", None))  # type: ignore[no-untyped-call]
    try:
        async with asyncio.timeout(2 * CONNECT_SECONDS):
            await connection.connect()
    except Exception:  # the first error is the one to report
        return False
    connection.close()
    return True


def _keep_alive(connection: Any) -> None:
    """asyncmy switches keepalive on, and leaves its times to the kernel."""
    sock = connection._transport.get_extra_info("socket")
    if sock is None or sock.family not in {socket.AF_INET, socket.AF_INET6}:
        return
    for name, value in KEEPALIVE.items():
        if hasattr(socket, name):  # not every system has all of them
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


class IdleConnections:
    """Decides whether an idle connection of a database's pools may be used again."""

    def __init__(self) -> None:
        self._dropped_at = -1.0

    def watch(self, engine: AsyncEngine) -> None:
        event.listen(engine.sync_engine, "checkin", self._note_use)
        event.listen(engine.sync_engine, "checkout", self._test)
        event.listen(engine.sync_engine, "handle_error", _mark_dead)

    def drop(self) -> None:
        """Replaces every connection that is idle now, before it would be used again."""
        self._dropped_at = time.monotonic()

    @staticmethod
    def _note_use(_connection: Any, record: Any) -> None:
        record.info["used_at"] = time.monotonic()

    def _test(self, connection: Any, record: Any, _proxy: Any) -> None:
        """Raises DisconnectionError: then SQLAlchemy's pool replaces the connection and calls this again."""
        used_at: float | None = record.info.get("used_at")
        if used_at is None:  # it is new
            return
        if used_at <= self._dropped_at or connection.driver_connection._stream_broken:
            raise DisconnectionError
        if time.monotonic() - used_at <= IDLE_SECONDS:
            return
        try:
            connection.run_async(_ping)
        except (asyncmy.errors.Error, OSError) as error:
            self.drop()
            raise DisconnectionError from error


async def _ping(connection: Any) -> None:
    async with asyncio.timeout(PING_SECONDS):
        await connection.ping(reconnect=False)


def _mark_dead(context: ExceptionContext) -> None:
    """Makes SQLAlchemy replace the connection and all older ones of its pool."""
    error = context.original_exception
    if error.args and error.args[0] in DEAD:
        context.is_disconnect = True
