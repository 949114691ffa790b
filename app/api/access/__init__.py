"""Who may call a route: the caller, the client address and the rate limits."""
