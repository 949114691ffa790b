"""Reports about tasks and points: usage, statements and statistics. They change nothing."""
