"""Runs the migrations on a database."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.util.exc import CommandError
from sqlalchemy.exc import DBAPIError

import migrations
from app.errors import GatewayError


def migrate(database_url: str, *, sql: bool = False) -> None:
    """Migrates to the newest revision, or prints the SQL for a new database.

    Raises GatewayError if the database refuses. A stopped migration can be run again.
    """
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    config.attributes["database_url"] = database_url
    try:
        command.upgrade(config, "head", sql=sql)
    except (DBAPIError, CommandError, OSError) as error:
        raise GatewayError(f"migrate: {getattr(error, 'orig', None) or error}") from error
