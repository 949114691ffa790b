"""Checks before the first write: the schema of this version, and constraints that the database enforces."""
