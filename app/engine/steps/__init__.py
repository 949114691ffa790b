"""The steps of a task, one file each."""
