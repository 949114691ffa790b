"""Accounts: authentication, credentials, users, API keys and tickets. They hold no points."""
