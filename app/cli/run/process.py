"""How a process starts and ends: logs, the check of the database, metrics, and the exit code after SIGTERM.

The check tests that the database enforces the constraints that protect points.
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


def prepare_process(settings: Settings) -> None:
    """Starts logs and metrics. It ends the process where the database is unsafe or METRICS_PORT is taken."""
    configure_logs(settings)
    check_database_or_exit(settings)
    try:
        serve_metrics(settings)
    except OSError as error:
        fail(f"METRICS_PORT {settings.metrics_port} is not available: {error.strerror}")


def check_database_or_exit(settings: Settings) -> None:
    """Ends the process where the database is unsafe. An unreachable database is checked at the first connection."""

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
    """Uvicorn shuts down on SIGTERM and then raises it again. To a supervisor that must be a normal exit."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
