"""Before a process starts: does the database refuse what would break the books?"""

import asyncio

from app.cli.console import finish_badly
from app.database import DatabaseUnfit, open_database
from app.errors import Unavailable
from app.settings import Settings

PATIENCE_SECONDS = 5.0


def prove_or_exit(settings: Settings) -> None:
    """Ends the process in one line where it does not. One that is away is proved at the first contact instead."""

    async def work() -> None:
        sessions = open_database(settings)
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await sessions.prove()
        finally:
            await sessions.close()

    try:
        asyncio.run(work())
    except DatabaseUnfit as error:
        finish_badly(error.reason)
    except (Unavailable, TimeoutError):
        return
