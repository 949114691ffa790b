"""A migration that stopped after any statement can be run again. Until then the gateway refuses the database."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest

from app.cli.migrate import migrate
from tests.support.database_contents import read_rows, read_structure
from tests.support.old_database import make_old_database
from tests.support.run import full
from tests.support.stopping import Stopped, count_changes, stop_after
from tests.support.worlds import REAL

FEW, SOME, ALL = 13, 5, 1


@pytest.mark.both_worlds
@pytest.mark.parametrize("is_full", [*full(True), False])
@pytest.mark.parametrize("kind", ["new", *full("old")])
def test_a_stopped_migration_can_be_run_again(
    new_database: Callable[[], AbstractContextManager[str]],
    refusal: Callable[[str], str],
    world_name: str,
    kind: str,
    is_full: bool,
) -> None:
    """On a new database, and on one of the last version before the first release.

    After every change on MariaDB, after some on the others.
    """
    every = (ALL if world_name == REAL else SOME) if is_full else FEW
    prepare = make_old_database if kind == "old" else lambda _url: None
    with new_database() as url:
        prepare(url)
        with count_changes() as changes:
            migrate(url)
        migrated = contents(url)
    for number, change in list(enumerate(changes, 1))[::every]:
        with new_database() as url:
            prepare(url)
            with stop_after(number), pytest.raises(Stopped):
                migrate(url)
            assert "run `gateway migrate`" in refusal(url), change
            migrate(url)
            assert contents(url) == migrated, change
            assert refusal(url) == "", change


def contents(url: str) -> tuple[Any, Any]:
    """The rows, without the times and ids of the seeded models; a rollback leaves a gap in the ids."""
    rows = read_rows(url)
    for row in rows["points_config"]:
        del row["id"], row["created_at"], row["updated_at"]
    return read_structure(url), rows
