"""`gateway migrate`: runs the migrations that came with this code, on the database of the settings."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.util.exc import CommandError
from sqlalchemy.exc import DBAPIError

import migrations
from app.errors import GatewayError


def migrate(database_url: str, *, sql: bool = False) -> None:
    """Migrates to the newest revision, or prints the SQL that makes a new database.

    Raises GatewayError where the database refuses. What was stopped half way can be run again.
    """
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    config.attributes["database_url"] = database_url
    try:
        command.upgrade(config, "head", sql=sql)
    except (DBAPIError, CommandError, OSError) as error:
        raise GatewayError(f"migrate: {getattr(error, 'orig', None) or error}") from error
