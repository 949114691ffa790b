"""Routes of a user's own account: log-in, API keys, usage."""
