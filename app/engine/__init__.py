"""What workers do with a task: claim it, run its steps, end it."""
