"""The REST API: routes, the response envelope, access checks and rate limits. It imports no tables and no SQL."""
