"""The tasks of all users: search, one task with its history, and what an admin changes by hand."""
