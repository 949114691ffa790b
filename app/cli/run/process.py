"""How a process begins and ends: logs, proof that the database is fit, metrics; SIGTERM is an end like any other.

The proof: does the database refuse what would break the books?
"""

import asyncio
import signal
import sys

from app.cli.output import fail
from app.database import UnsafeDatabase, open_database
from app.errors import Unavailable
from app.settings import Settings
from app.telemetry.logs import configure_logs
from app.telemetry.metrics import serve_metrics

TIMEOUT_SECONDS = 5.0


def begin_process(settings: Settings) -> None:
    """Ends it in one line where the database is unfit or the port for metrics is taken."""
    configure_logs(settings)
    check_database_or_exit(settings)
    try:
        serve_metrics(settings)
    except OSError as error:
        fail(f"METRICS_PORT {settings.metrics_port} cannot be had: {error.strerror}")


def check_database_or_exit(settings: Settings) -> None:
    """Ends the process in one line where it does not. One that is away is proved at the first contact instead."""

    async def work() -> None:
        database = open_database(settings)
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                await database.verify()
        finally:
            await database.close()

    try:
        asyncio.run(work())
    except UnsafeDatabase as error:
        fail(error.reason)
    except (Unavailable, TimeoutError):
        return


def exit_zero_on_sigterm() -> None:
    """Uvicorn winds down on SIGTERM and then raises it again; to a supervisor that is an end like any other: 0."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
