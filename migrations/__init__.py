"""Alembic migrations. They import nothing from `app`, so that an old migration always does the same."""
