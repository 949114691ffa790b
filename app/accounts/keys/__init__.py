"""API keys of users: their scopes, limits and budgets."""
