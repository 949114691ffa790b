"""The worker process: ARQ receives wakeups, and the task runner does the work."""
