"""Takes over a database of the last version before the first release: from revision 0023 to `v1_models`.

All rows are kept, except the state of the circuit breakers. A stopped takeover can be run again from any point.
Delete this file when no such database is left.
"""

import importlib

import sqlalchemy as sa
from alembic import op
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from alembic.util.exc import CommandError

from migrations import OLD_REVISIONS
from migrations.ddl import create_table, find_checks, find_columns, find_indexes, has_table

NEWEST_OLD = "0023"
TAKEN_OVER = "v1_models"
USERS_AND_POINTS = importlib.import_module("migrations.versions.0001_users_and_points")
TASKS_AND_WEBHOOKS = importlib.import_module("migrations.versions.0002_tasks_and_webhooks")
RENAMED_IN_TASKS = {"upstream_request": "request", "upstream_state": "upstream", "history": "steps"}


def take_over(connection: sa.Connection) -> None:
    """Does nothing to other databases. Raises CommandError if the database has a still older revision."""
    migration = MigrationContext.configure(connection)
    revisions = migration.get_current_heads()
    if not OLD_REVISIONS & set(revisions):
        return
    if revisions != (NEWEST_OLD,):
        raise CommandError(
            f"the database is at revision {', '.join(revisions)} of a version before the first release:"
            f" first run `gateway migrate` of the last such version, which brings it to {NEWEST_OLD}"
        )
    with Operations.context(migration):
        if connection.dialect.name == "sqlite":
            _change_sqlite()
        else:
            _change_mysql(drop_check="DROP CONSTRAINT" if connection.dialect.is_mariadb else "DROP CHECK")
        op.execute("DROP TABLE IF EXISTS provider_state")
        USERS_AND_POINTS.upgrade()
        TASKS_AND_WEBHOOKS.upgrade()
        op.execute(f"UPDATE alembic_version SET version_num = '{TAKEN_OVER}'")  # noqa: S608


def _change_mysql(drop_check: str) -> None:
    """MySQL commits each ALTER by itself, so each one is skipped if it was executed."""
    if "request" in find_columns("tasks"):
        renames = ", ".join(f"RENAME COLUMN {old} TO {new}" for new, old in RENAMED_IN_TASKS.items())
        op.execute(f"ALTER TABLE tasks {renames}, {drop_check} ck_tasks_step")
    op.execute("UPDATE tasks SET step = 'rehost' WHERE step = 'host'")
    if "ck_tasks_step" not in find_checks("tasks"):
        op.execute(f"ALTER TABLE tasks {_add_checks(TASKS_AND_WEBHOOKS.tasks, 'ck_tasks_step')}")
    if has_table("points_codes"):
        op.execute(
            "ALTER TABLE points_codes RENAME TO redeem_codes"
            ", RENAME INDEX uq_points_codes_digest TO uq_redeem_codes_digest"
            ", RENAME INDEX ix_points_codes_batch TO ix_redeem_codes_batch"
            f", {drop_check} ck_points_codes_points, {drop_check} ck_points_codes_redeemed"
            f", {drop_check} ck_points_codes_void, {_add_checks(USERS_AND_POINTS.redeem_codes)}"
        )
    if has_table("chores"):
        op.execute("ALTER TABLE chores RENAME COLUMN done_at TO completed_at, RENAME TO scheduled_jobs")
    if "usual_seconds" in find_columns("model_durations"):
        op.execute("ALTER TABLE model_durations RENAME COLUMN usual_seconds TO typical_seconds")


def _add_checks(table: sa.Table, *names: str) -> str:
    """The ALTER clauses that add these CHECK constraints of the new table, or all of them."""
    checks = [one for one in table.constraints if isinstance(one, sa.CheckConstraint)]
    wanted = sorted((str(one.name), str(one.sqltext)) for one in checks if not names or one.name in names)
    return ", ".join(f"ADD CONSTRAINT {name} CHECK ({condition})" for name, condition in wanted)


def _change_sqlite() -> None:
    """SQLite cannot change a CHECK, so the rows move to a new table. All of it is one transaction (env.py)."""
    step = {"step": "CASE step WHEN 'host' THEN 'rehost' ELSE step END"}
    _rebuild("tasks", TASKS_AND_WEBHOOKS.tasks, RENAMED_IN_TASKS | step)
    _rebuild("points_codes", USERS_AND_POINTS.redeem_codes, {})
    op.execute("ALTER TABLE chores RENAME COLUMN done_at TO completed_at")
    op.execute("ALTER TABLE chores RENAME TO scheduled_jobs")
    op.execute("ALTER TABLE model_durations RENAME COLUMN usual_seconds TO typical_seconds")


def _rebuild(old_name: str, table: sa.Table, sources: dict[str, str]) -> None:
    """Moves the rows. `sources` has the old expression for each column whose name or value changes."""
    for index in find_indexes(old_name):
        op.execute(f"DROP INDEX {index}")
    op.execute(f"ALTER TABLE {old_name} RENAME TO old_{old_name}")
    create_table(table)
    columns = list(table.columns.keys())
    values = ", ".join(sources.get(name, name) for name in columns)
    op.execute(f"INSERT INTO {table.name} ({', '.join(columns)}) SELECT {values} FROM old_{old_name}")  # noqa: S608
    op.execute(f"DROP TABLE old_{old_name}")
