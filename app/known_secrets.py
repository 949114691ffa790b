"""Well-known secrets for development and tests. Production refuses them.

They have a file of their own, so that the command line can show one in its help without loading the settings.
"""

DEVELOPMENT_JWT_SECRET = "development-only-secret-change-me-0123456789"  # noqa: S105
SANDBOX_API_KEY = "sk-sandbox"
