"""Alembic migrations. They import nothing of `app`, so that an old migration does for ever what it did once."""

OLD_REVISIONS = frozenset(f"{number:04}" for number in (*range(1, 15), *range(20, 24)))
"""Of databases made before the first release; `takeover.py` brings them to revision `v1_models`."""
