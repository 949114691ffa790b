"""The tables of users, log-ins, API keys and what admins did."""
