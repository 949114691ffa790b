"""Alembic by hand: the migrations that came with this code, on the database of the settings."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.util.exc import CommandError
from sqlalchemy.engine import make_url
from sqlalchemy.exc import OperationalError

import migrations
from app.errors import GatewayError


def migrate(database_url: str, *, sql: bool = False) -> None:
    """To the newest revision, or print the SQL that would get there from nothing."""
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    config.attributes["database_url"] = database_url
    url = make_url(database_url)
    if url.get_backend_name() == "sqlite" and url.database:
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    try:
        command.upgrade(config, "head", sql=sql)
    except (OperationalError, CommandError, OSError) as error:
        raise GatewayError(f"migrate: {getattr(error, 'orig', None) or error}") from error
