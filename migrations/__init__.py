"""Alembic migrations: tables one topic a file, models and prices through `seeding`."""
