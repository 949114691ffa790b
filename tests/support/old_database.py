"""A database of the last version before the first release, with rows in each table."""

from pathlib import Path

from tests.support.database_contents import run_script

FOLDER = Path(__file__).parents[1] / "migrations"


def make_old_database(url: str) -> None:
    """The database at the URL must be empty."""
    dialect = url.partition("+")[0]
    for name in (f"schema_0023.{dialect}.sql", "rows_0023.sql"):
        run_script(url, (FOLDER / name).read_text("utf-8"))
