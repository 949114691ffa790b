"""Limits that the command line shows in its help. In a file of their own, so that the help loads no database."""

MAX_CODES_PER_BATCH = 10_000
MAX_LOT_DAYS = 3650
