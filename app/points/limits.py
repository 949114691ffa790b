"""Bounds that the command line names in its help. They stand apart from the queries so that help loads no database."""

MAX_CODES_PER_BATCH = 10_000
MAX_LOT_DAYS = 3650
