"""Secrets that everybody knows, for development and tests alone: production refuses them.

They stand apart from the settings because the command line shows one of them in its help and loads nothing for that.
"""

DEVELOPMENT_JWT_SECRET = "development-only-secret-change-me-0123456789"  # noqa: S105
SANDBOX_API_KEY = "sk-sandbox"
