"""Bounds that the command line names in its help. They stand apart from the queries so that help loads no database."""

MOST_CODES_AT_ONCE = 10_000
LONGEST_LOT_DAYS = 3650
