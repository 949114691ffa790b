"""Who is calling: credentials, users, API keys. Knows nothing of points."""
