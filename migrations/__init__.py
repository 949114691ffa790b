"""Alembic migrations. They import nothing from `app`, so that an old migration always does the same."""

OLD_REVISIONS = frozenset(f"{number:04}" for number in (*range(1, 15), *range(20, 24)))
"""The revisions of versions before the first release. `takeover.py` brings such databases to `v1_models`."""
