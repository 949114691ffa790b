"""`gateway migrate`: runs the migrations on the database of the settings."""

from app.database.schema.migrate import migrate

__all__ = ["migrate"]
